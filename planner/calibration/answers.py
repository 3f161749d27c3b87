"""Answers that rest on measured runs: the dry run corrected by them, and a run of this very request itself."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from statistics import median

from planner.answer import Answer, Verdict, not_measured, verdict_within, worst
from planner.calibration.calibrate import NOMINAL, Calibrated
from planner.calibration.evidence import Evidence
from planner.calibration.runs import Observation
from planner.calibration.similarity import ATTENTION, MIN_WEIGHT
from planner.calibration.workspace_curve import Curve, curve_of
from planner.cards.lookup import Card, family_of
from planner.components import STAGE_NAMES, STAGES
from planner.programs.library import Library
from planner.replay.kernels import KernelPolicy
from planner.request import GenerationRequest

# A run with a peak this many times larger or smaller than the dry run's is not of this request.
_BEYOND = 1.5
# One run may fail among this many that came to their end.
_FEW_FAILED = 5


@lru_cache(maxsize=256)
def _curve(library: Library, request: GenerationRequest, policy: KernelPolicy) -> Curve:
    return curve_of(library, request, policy)


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _evidence_line(found: Calibrated, card: Card) -> str:
    stale = f"; {len(found.stale)} of them, with other versions, count half" if found.stale else ""
    how = (
        f"the interval should contain {NOMINAL:.0%} of such runs"
        if found.has_data
        else "too few for an interval of their own: it spans all that kernels could take"
    )
    return (
        f"{card.name}: calibrated on {_runs(len(found.runs))} of {family_of(card.compute_capability)} GPUs, together "
        f"worth {found.weight:.1f} runs just like this one{stale}; {how}"
    )


def calibrated(
    request: GenerationRequest, card: Card, library: Library, evidence: Evidence, raw: Answer
) -> tuple[Answer, bool]:
    """Correct the dry run `raw` by measured runs, and tell whether they are enough to prefer it.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    calibration = evidence.calibration(card.compute_capability)
    target = evidence.target(request, card)
    if calibration is None or not any(target.weight(run.observation.traits) for run in calibration.runs):
        reason = "no run of such GPUs with such kernels was measured yet; the basis dry-run answers without one"
        return Answer(card=card, basis="calibrated", verdict="unknown", reason=reason), False
    curve = _curve(library, request.allocation_form(), KernelPolicy.of(card.compute_capability, request.dtype))
    found = calibration.answer(curve, target)
    contexts = evidence.contexts(card)
    allocated, reserved = round(found.allocated_bytes), round(found.reserved_bytes)
    constant = round(found.constant)
    # The learned constant is not workspace, so the least memory has it as well.
    least = max((raw.minimum_bytes or 0) - card.context_bytes + constant, 0)
    known = replace(card, context_bytes=contexts.middle, context_low_bytes=contexts.low)
    hopeful = round(least * min(1.0, found.reserved[0] / reserved)) + contexts.middle
    worst_need = max(found.reserved[1], reserved) + contexts.high
    stages = {stage: round(found.stages[stage]) for stage in STAGES if stage in found.stages}
    answer = Answer(
        card=card,
        basis="calibrated",
        verdict=verdict_within(worst_need_bytes=worst_need, minimum_bytes=hopeful, card=known),
        need_bytes=reserved + contexts.middle,
        minimum_bytes=min(least, reserved) + contexts.middle,
        peak_allocated_bytes=allocated,
        minimum_allocated_bytes=min(allocated, max(0, (raw.minimum_allocated_bytes or 0) + constant)),
        peak_reserved_bytes=reserved,
        context_bytes=contexts.middle,
        interval_bytes=found.allocated,
        peak_stage=found.peak_stage,
        stages={stage: stages.get(stage, min(raw.stages[stage], allocated)) for stage in STAGES},
        evidence=_evidence_line(found, card),
        stack=raw.stack,
        runs=found.runs,
        worst_need_bytes=worst_need,
    )
    if not found.has_data:
        few = f"what was measured is worth {found.weight:.1f} runs just like this one, and {MIN_WEIGHT:g} are needed"
        return replace(answer, reason=f"{card.name}: {few}: the sizes are the dry run's"), False
    return answer, True


def measured(request: GenerationRequest, card: Card, evidence: Evidence, raw: Answer | None = None) -> Answer:
    """Answer from runs of this request on this GPU model, or ``unknown`` with the reason.

    Runs that met the end of their GPU's memory count only where they had the whole of it: nobody else held memory, and
    no smaller capacity was emulated. Where the dry run `raw` is known, runs that cannot be of the request are left out.
    """
    fresh, stale = evidence.of_request(request, card)
    cudnn = evidence.target(request, card).cudnn
    alike = [one for one in fresh if one.attention == ATTENTION and one.cudnn in (None, cudnn)]
    able = [one for one in alike if one.peak_allocated_bytes and (one.kind == "full" or one.is_alone)]
    heard = [one for one in able if raw is None or _is_believable(one, raw)]
    full = [one for one in heard if one.kind == "full" and one.peak_reserved_bytes]
    limited = [one for one in heard if one.kind == "limited" and one.peak_reserved_bytes]
    failed = [one for one in heard if one.kind == "out-of-memory"]
    ran = full or limited
    if not ran and not failed:
        return _unknown(card, stale, len(able) - len(heard))
    heard = [one for one in heard if one in (*ran, *failed)]
    said = f"{card.name}: measured on {_runs(len(heard))} of this request on such a GPU"
    said += f", the last {heard[0].created_at[:10]}"
    ids = tuple(one.run_id for one in heard)
    if emulated := sum(one.emulated_bytes is not None for one in heard):
        said += f", {emulated} of them at an emulated capacity without meeting it"
    if not ran:
        return _out_of_memory(card, failed, said, ids)
    if failed:
        said += f", {len(failed)} of them out of memory"
    if not full:
        retries = max(one.num_alloc_retries for one in ran)
        said += f", with {retries} allocator {'retry' if retries == 1 else 'retries'}"
    answer = replace(_as_measured(card, ran, evidence.contexts(card).middle), evidence=said, runs=ids)
    if card.usable_bytes < (answer.need_bytes or 0):
        # What it took is more than is there: it was not measured whether it also runs in less, so the dry run says.
        beyond: Verdict = "tight" if raw is None else worst((raw.verdict, "tight"))
        reason = f"{card.name}: the runs took more than is there; whether it also runs in less was not measured"
        return replace(answer, verdict=beyond, reason=reason)
    # A single failure among many runs that came to their end is an exception.
    runs_well = bool(full) and len(failed) <= len(full) / _FEW_FAILED
    return replace(answer, verdict="fits" if runs_well else "tight")


def _is_believable(one: Observation, raw: Answer) -> bool:
    """Tell whether a run can be of this request, by the dry run: a mistyped row must not answer."""
    least, most = raw.minimum_allocated_bytes, max(raw.peak_allocated_bytes or 0, *(raw.interval_bytes or (0, 0)))
    if least is None or not most:
        return True
    if one.kind == "out-of-memory":
        # It must have needed more than such a GPU has, and the replay says about how much it needs.
        return _BEYOND * (raw.worst_need_bytes or raw.need_bytes or 0) >= raw.card.usable_bytes
    peak, reserved = one.peak_allocated_bytes or 0, one.peak_reserved_bytes
    if not least / _BEYOND <= peak <= _BEYOND * most:
        return False
    if reserved is None:
        return True
    most_reserved = max(raw.peak_reserved_bytes or 0, (raw.worst_need_bytes or 0) - (raw.context_bytes or 0))
    return peak <= reserved <= _BEYOND * max(most_reserved, peak)


def _unknown(card: Card, stale: Sequence[Observation], unbelievable: int) -> Answer:
    reason = not_measured(card)
    if unbelievable:
        reason = (
            f"what was measured of this request on such a GPU ({card.name}) cannot be of it: it is more than half as "
            "much again, or that much less, than the dry run says"
        )
    elif stale:
        reason = (
            f"this request was measured on such a GPU ({card.name}) only with other versions, the last with "
            f"{stale[0].versions}; 'python -m planner verify' measures it anew"
        )
    return Answer(card=card, basis="measured", verdict="unknown", reason=reason, runs=tuple(o.run_id for o in stale))


def _out_of_memory(card: Card, failed: Sequence[Observation], said: str, ids: tuple[str, ...]) -> Answer:
    where = STAGE_NAMES.get(failed[0].ended_in or "", failed[0].ended_in or "")
    reason = f"{said}: out of memory" + (f" in: {where}" if where else "")
    return Answer(card=card, basis="measured", verdict="no", reason=reason, evidence=said, runs=ids)


def _as_measured(card: Card, ran: Sequence[Observation], context: int) -> Answer:
    allocated = sorted(one.peak_allocated_bytes or 0 for one in ran)
    peak = round(median(allocated))
    reserved = max(peak, round(median(one.peak_reserved_bytes or 0 for one in ran)))
    by_stage = {stage: round(median(o.stages[stage] for o in ran if stage in o.stages)) for stage in _common(ran)}
    # Where no stage was told apart, or the medians of several runs do not meet, the peak is the last one's.
    peak_stage = max(reversed(list(by_stage)), key=lambda stage: by_stage[stage]) if by_stage else "vae_decoder"
    stages = {stage: min(by_stage.get(stage, peak), peak) for stage in STAGES} | {peak_stage: peak}
    # The outermost of many are left out: one of them may be of something else.
    outer = min(len(allocated) // 4, 1 + len(allocated) // 10)
    return Answer(
        card=card,
        basis="measured",
        verdict="unknown",
        need_bytes=reserved + context,
        minimum_bytes=reserved + context,
        peak_allocated_bytes=peak,
        minimum_allocated_bytes=allocated[outer],
        peak_reserved_bytes=reserved,
        context_bytes=context,
        interval_bytes=(allocated[outer], allocated[len(allocated) - 1 - outer]),
        peak_stage=peak_stage,
        stages=stages,
    )


def _common(ran: Sequence[Observation]) -> list[str]:
    return [stage for stage in STAGES if any(stage in one.stages for one in ran)]
