"""Grade what a change does to an answer, and say it in words."""

from typing import Literal

from planner.answer import MINIMUM_STEP, Answer, Verdict
from planner.components import STAGE_NAMES
from planner.units import gib

# The better verdict, or less memory without one, or nothing.
Effect = Literal["fits", "tight", "saves", "nothing"]

_RANK: dict[Verdict, int] = {"no": 0, "unknown": 0, "tight": 1, "fits": 2}


def _decisive_bytes(answer: Answer, verdict: Verdict) -> int:
    """Give the size that must shrink for a better verdict.

    That is the minimum where the verdict is ``no``, else the worst need.
    """
    size = answer.minimum_bytes if verdict == "no" else answer.worst_need_bytes or answer.need_bytes
    return size or 0


def _changes(base: Answer, answer: Answer) -> tuple[int, int, int]:
    """Compute the growth in bytes of the need, the minimum, and the size that decides."""
    return (
        (answer.need_bytes or 0) - (base.need_bytes or 0),
        (answer.minimum_bytes or 0) - (base.minimum_bytes or 0),
        _decisive_bytes(answer, base.verdict) - _decisive_bytes(base, base.verdict),
    )


def effect_of(base: Answer, answer: Answer) -> Effect:
    """Grade the change that leads from one answer to the other.

    Less than 16 MiB counts as nothing.
    """
    if _RANK[answer.verdict] > _RANK[base.verdict]:
        return "fits" if answer.verdict == "fits" else "tight"
    need, _, decisive = _changes(base, answer)
    # Where it runs, the need must come down too, not only the upper end of its range.
    most = decisive if base.verdict == "no" else max(need, decisive)
    return "saves" if _RANK[answer.verdict] == _RANK[base.verdict] and -most >= MINIMUM_STEP else "nothing"


def _stage(answer: Answer) -> str:
    return STAGE_NAMES.get(answer.peak_stage or "", "weights")


def _inside(stage: str) -> str:
    return stage if stage.startswith(("UNet", "VAE", "ControlNet")) else stage[:1].lower() + stage[1:]


def remark(base: Answer, answer: Answer, effect: Effect, *, touches: bool, why: str = "") -> str:
    """Say in a sentence what the change does.

    `touches` says whether it moves the stage that peaked, and `why` may say why it raises the need.
    """
    before, after = _inside(_stage(base)), _inside(_stage(answer))
    if answer.card.whole != base.card.whole:
        return f"The same request has {gib(answer.headroom_bytes or 0)} to spare there."
    if answer.card != base.card:
        makes = "Makes it fit" if effect == "fits" else "Makes it run, more slowly"
        return f"{makes}: each has {gib(answer.card.usable_bytes)} usable in place of {gib(base.card.usable_bytes)}."
    stays = f"the peak stays in the {before}" if before == after else f"the peak moves to the {after}"
    if effect == "fits":
        return f"Makes it fit: {stays}."
    if effect == "tight":
        return f"Makes it run, more slowly: {stays}."
    if effect == "saves":
        return f"{'Helps' if base.verdict == 'fits' else 'Helps, but not enough'}: {stays}."
    need, minimum, decisive = _changes(base, answer)
    because = f": {why}" if why else ""
    if need >= MINIMUM_STEP:
        though = f", though it runs from {gib(-minimum)} less" if minimum <= -MINIMUM_STEP else ""
        return f"Raises the need by {gib(need)}{though}{because}."
    if need <= -MINIMUM_STEP and decisive >= MINIMUM_STEP and base.verdict != "no":
        return f"Saves {gib(-need)} if its assumptions hold, and needs {gib(decisive)} more if they do not."
    if decisive >= MINIMUM_STEP:
        return f"Raises the {'minimum' if base.verdict == 'no' else 'need'} by {gib(decisive)}{because}."
    return f"Saves nothing here: {stays}." if touches else f"Does not touch the {before}, where the memory peaks."
