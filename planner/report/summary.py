"""The answer in a sentence or two: which GPU runs the request, by how much, and what the others do."""

from collections.abc import Sequence

from planner.answer import Answer
from planner.units import gib


def deciding_need(answer: Answer) -> int | None:
    """Give the need that decides over ``fits``, in bytes: the upper end of its range, or the need itself."""
    return answer.need_bytes if answer.worst_need_bytes is None else answer.worst_need_bytes


def is_uncertain(answer: Answer) -> bool:
    """Tell whether a ``tight`` answer is so because only the upper end of its need does not fit."""
    # A measured answer has no range: where it is tight, its runs had allocator retries or failures.
    if answer.need_bytes is None or answer.worst_need_bytes is None:
        return False
    return answer.need_bytes <= answer.card.usable_bytes


def _takes(answer: Answer) -> str:
    at_worst = " at worst" if answer.worst_need_bytes is not None else ""
    return f"{gib(deciding_need(answer) or 0)} of {gib(answer.card.usable_bytes)}{at_worst}"


def _named(answers: Sequence[Answer]) -> str:
    names = [answer.card.name for answer in answers]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _rest(answers: Sequence[Answer], what: str) -> list[str]:
    """Say what the GPUs do on which the request does not simply fit, the most hopeful first."""
    slower = [answer for answer in answers if answer.verdict == "tight" and not is_uncertain(answer)]
    uncertain = [answer for answer in answers if answer.verdict == "tight" and is_uncertain(answer)]
    lacking = [answer for answer in answers if answer.verdict == "no"]
    unknown = [answer for answer in answers if answer.verdict == "unknown"]
    said = []
    if slower:
        said.append(f"{_named(slower)} can run {what} more slowly, with smaller workspaces or allocator retries.")
    if uncertain:
        said.append(f"{_named(uncertain)} may run {what}: the need fits, the upper end of its range does not.")
    if lacking:
        said.append(f"{_named(lacking)} cannot run {what}.")
    if unknown:
        said.append(f"There is no answer for {_named(unknown)}.")
    return said


def summary(answers: Sequence[Answer]) -> str:
    """Say in a few sentences which of these GPUs run the request, the smallest that does first.

    Raises:
        ValueError: there are no answers.
    """
    if not answers:
        raise ValueError("there are no answers to sum up")
    fitting = sorted((one for one in answers if one.verdict == "fits"), key=lambda one: one.card.usable_bytes)
    others = [one for one in answers if one.verdict != "fits"]
    if not fitting:
        is_hopeful = len(answers) > 1 and any(one.verdict == "tight" for one in answers)
        first = ["None of your GPUs runs this comfortably."] if is_hopeful else []
        return " ".join([*first, *_rest(answers, "it" if first else "this")])
    smallest = fitting[0]
    name, takes = smallest.card.name, _takes(smallest)
    if len(answers) == 1:
        return f"{name} runs this: it takes {takes}."
    if not others:
        return f"All of your GPUs run this: on {name}, the smallest, it takes {takes}."
    which = "the only one" if len(fitting) == 1 else "the smallest"
    # Where others may run it too, only comfort sets this one apart.
    how = "" if all(one.verdict == "no" for one in others) else " comfortably"
    return " ".join([f"{name} is {which} of your GPUs that runs this{how}: it takes {takes}.", *_rest(others, "it")])
