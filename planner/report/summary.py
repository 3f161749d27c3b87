"""The answer in a sentence or two: which GPU runs the request, by how much, and what the others do."""

from collections.abc import Sequence

from planner.answer import Answer
from planner.units import gib


def deciding_need(answer: Answer) -> int | None:
    """Give the need that decides over ``fits``, in bytes: the upper end of its range, or the need itself."""
    return answer.need_bytes if answer.worst_need_bytes is None else answer.worst_need_bytes


def _takes(answer: Answer) -> str:
    need = deciding_need(answer)
    at_worst = " at worst" if answer.worst_need_bytes is not None else ""
    return "" if need is None else f" ({gib(need)} of {gib(answer.card.usable_bytes)}{at_worst})"


def _named(answers: Sequence[Answer]) -> str:
    names = [answer.card.name for answer in answers]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _verb(answers: Sequence[Answer], one: str, several: str) -> str:
    return f"{_named(answers)} {one if len(answers) == 1 else several}"


def _others(answers: Sequence[Answer]) -> list[str]:
    """Say what the GPUs do that do not simply run it, the hopeful ones first."""
    said = []
    slower = [answer for answer in answers if answer.verdict == "tight" and not is_uncertain(answer)]
    uncertain = [answer for answer in answers if answer.verdict == "tight" and is_uncertain(answer)]
    lacking = [answer for answer in answers if answer.verdict == "no"]
    unknown = [answer for answer in answers if answer.verdict == "unknown"]
    if slower:
        said.append(f"{_verb(slower, 'runs', 'run')} it more slowly, with smaller kernels or allocator retries.")
    if uncertain:
        said.append(f"{_verb(uncertain, 'may run', 'may run')} it: the need fits, the upper end of its range does not.")
    if lacking:
        said.append(f"{_verb(lacking, 'does', 'do')} not run it.")
    if unknown:
        said.append(f"For {_named(unknown)} there is no answer.")
    return said


def is_uncertain(answer: Answer) -> bool:
    """Tell whether a ``tight`` answer is so because the upper end of its need does not fit, while the need does."""
    return answer.need_bytes is not None and answer.need_bytes <= answer.card.usable_bytes


def summary(answers: Sequence[Answer]) -> str:
    """Answer in a few sentences which of these GPUs run the request; the smallest that does comes first.

    Raises:
        ValueError: there are no answers.
    """
    if not answers:
        raise ValueError("there are no answers to sum up")
    fitting = sorted((one for one in answers if one.verdict == "fits"), key=lambda one: one.card.usable_bytes)
    others = _others([one for one in answers if one.verdict != "fits"])
    if len(answers) == 1:
        [only] = answers
        return f"{only.card.name} runs this{_takes(only)}." if fitting else others[0].replace(" it ", " this ", 1)
    if not fitting:
        best = next((verdict for verdict in ("tight", "unknown") if any(a.verdict == verdict for a in answers)), "no")
        if best == "no":
            return "None of your GPUs runs this."
        return " ".join(["None of your GPUs runs this with room to spare.", *others])
    smallest = fitting[0]
    if len(fitting) == len(answers):
        return f"All of your GPUs run this; {smallest.card.name} is the smallest{_takes(smallest)}."
    if len(fitting) == 1:
        return " ".join([f"{smallest.card.name} is the only one of your GPUs that runs this{_takes(smallest)}.", *others])
    return " ".join([f"{smallest.card.name} is the smallest of your GPUs that runs this{_takes(smallest)}.", *others])
