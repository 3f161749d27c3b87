"""Answer whether a request fits a GPU, by one basis or the most trusted one."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from planner.answer import BASES, AfterCall, Answer, not_measured, verdict_within
from planner.cards.lookup import Card, family_of
from planner.components import SD_V15, STAGES, ModelFacts
from planner.errors import InvalidArgument, NoKernelRule, NoProgram
from planner.formula import estimate
from planner.request import GenerationRequest

if TYPE_CHECKING:
    from planner.calibration.evidence import Evidence
    from planner.programs.library import Library
    from planner.replay.dry_run import DryRun
    from planner.replay.kernels import KernelPolicy


def _from_formula(request: GenerationRequest, card: Card, facts: ModelFacts) -> Answer:
    breakdown = estimate(request, facts)
    allocated = breakdown.base_bytes + breakdown.activation_bytes
    total = breakdown.total_bytes
    return Answer(
        card=card,
        basis="formula",
        # The formula has one threshold: it knows no smaller workspace to fall back to, so it never says tight.
        verdict="fits" if total <= card.usable_bytes else "no",
        need_bytes=total,
        minimum_bytes=total,
        peak_allocated_bytes=allocated,
        minimum_allocated_bytes=allocated,
        peak_reserved_bytes=total,
        # The published 20 % covers kernels and framework, so the context is inside the total, not on top of it.
        context_bytes=0,
        interval_bytes=(allocated, allocated),
        peak_stage=breakdown.peak_stage,
        # Stages without a term in the formula hold the weights and nothing else.
        stages={stage: breakdown.base_bytes + breakdown.stages.get(stage, 0) for stage in STAGES},
    )


@lru_cache(maxsize=256)
def _preferred(library: Library, request: GenerationRequest, policy: KernelPolicy) -> DryRun:
    """Replay the request, given in its replay form, with preferred kernels in unlimited memory."""
    from planner.programs.assemble import events_of
    from planner.replay.allocator import CachingAllocator
    from planner.replay.dry_run import dry_run

    allocator = CachingAllocator(expandable=request.allocator == "expandable")
    return dry_run(events_of(library, request), policy, allocator=allocator)


def _from_dry_run(request: GenerationRequest, card: Card, library: Library) -> Answer:
    from planner.replay.assumptions import RUN_TO_RUN, stack
    from planner.replay.kernels import KernelPolicy
    from planner.replay.minimum import minimum_bytes, peaks_within
    from planner.replay.peaks import assumed, peaks_of, worst_peaks

    form, policy = request.replay_form(), KernelPolicy.of(card.compute_capability, request.dtype)
    preferred = _preferred(library, form, policy)
    notes = assumed(form, card, library)
    peak, worst_peak, worst_need = (preferred.peak_allocated_bytes,) * 2 + (preferred.peak_reserved_bytes,)
    if notes:
        # Where something is assumed, the request fits only if the worst that it could turn out to be fits too.
        worst = worst_peaks(library, form, policy)
        worst_peak, worst_need = max(peak, worst.allocated_bytes), max(worst_need, worst.reserved_bytes)
    worst_need += card.context_bytes
    minimum = minimum_bytes(form, card, library)
    # Without workspace the allocator cuts other blocks, and a few may hold more beyond their requests.
    smallest = peaks_of(library, form, policy.without_workspace(), flushes_first=True)
    minimum_peak = min(smallest.allocated_bytes, peak)
    low, high = (minimum_peak, worst_peak) if notes else (peak, peak)
    # Even where nothing is assumed, repeated runs differ.
    interval = min(low, round(peak * (1 - RUN_TO_RUN))), max(high, round(peak * (1 + RUN_TO_RUN)))
    verdict = verdict_within(worst_need_bytes=worst_need, minimum_bytes=minimum, card=card)
    capped = peaks_within(form, card, library) if verdict == "tight" else None
    return Answer(
        card=card,
        basis="dry-run",
        verdict=verdict,
        need_bytes=preferred.peak_reserved_bytes + card.context_bytes,
        minimum_bytes=minimum,
        peak_allocated_bytes=peak,
        minimum_allocated_bytes=minimum_peak,
        peak_reserved_bytes=preferred.peak_reserved_bytes,
        context_bytes=card.context_bytes,
        interval_bytes=interval,
        peak_stage=preferred.peak_stage,
        stages={
            stage: preferred.stages[stage].allocated_bytes if stage in preferred.stages else preferred.loaded_bytes
            for stage in STAGES
        },
        assumptions=notes,
        stack=stack(library.versions, request),
        worst_need_bytes=worst_need if notes else None,
        capped_allocated_bytes=capped.allocated_bytes if capped else None,
        capped_reserved_bytes=capped.reserved_bytes if capped else None,
        peak_pass=_peak_pass(library, form, policy, peak),
        after_call=_after_call(preferred, card) if form.offload == "none" else None,
    )


def _peak_pass(library: Library, request: GenerationRequest, policy: KernelPolicy, peak_bytes: int) -> int | None:
    """Find the pass of hires fix that allocates most, by the first pass alone; None for a single call."""
    first, *others = request.passes()
    if not others:
        return None
    return 1 if _preferred(library, first, policy).peak_allocated_bytes >= peak_bytes else 2


def _after_call(run: DryRun, card: Card) -> AfterCall | None:
    """Give what stays on the GPU after this run in unlimited memory; None if the GPU cannot hold its peak."""
    allocated, reserved = run.after_allocated_bytes, run.after_reserved_bytes
    least = run.after_empty_cache_reserved_bytes
    if allocated is None or reserved is None or least is None:
        return None
    if run.peak_reserved_bytes + card.context_bytes > card.usable_bytes:
        return None
    return AfterCall(allocated, reserved - allocated, reserved - least, card.context_bytes)


def fit(
    request: GenerationRequest,
    card: Card,
    basis: str = "best",
    facts: ModelFacts = SD_V15,
    library: Library | None = None,
    evidence: Evidence | None = None,
) -> Answer:
    """Answer the request on one GPU by this basis.

    ``best`` takes the most trusted basis that has an answer. The dry run plays the programs of `library`, or the
    shipped ones. `evidence` has the measured runs, None for none.

    Raises:
        InvalidArgument: `basis` is none of `BASES`.
    """
    if basis not in BASES:
        raise InvalidArgument("basis", f"must be one of {', '.join(BASES)}", basis)
    if basis == "formula":
        return _from_formula(request, card, facts)
    from planner.programs.files import shipped

    try:
        raw = _from_dry_run(request, card, library or shipped())
    except NoProgram as error:
        raw, lacking, has_rule = None, str(error), not isinstance(error, NoKernelRule)
    else:
        lacking, has_rule = "", True
    if basis in ("best", "measured"):
        measured = _from_runs(request, card, evidence, raw)
        if basis == "measured" or measured.verdict != "unknown":
            return measured
    if raw is None:
        if basis == "best" and has_rule:
            return replace(_from_formula(request, card, facts), reason=f"{lacking}; the formula answers instead")
        # Of kernels that nobody has a rule for, the formula would be no better an answer.
        of = "dry-run" if basis == "best" else basis
        return Answer(card=card, basis=of, verdict="unknown", reason=lacking)  # ty: ignore[invalid-argument-type]
    if basis == "dry-run":
        return raw
    return _calibrated(request, card, basis, library or shipped(), evidence, raw)


def _calibrated(
    request: GenerationRequest, card: Card, basis: str, library: Library, evidence: Evidence | None, raw: Answer
) -> Answer:
    """Correct the dry run by measured runs.

    For ``best``, that needs enough runs to be better than the dry run.
    """
    if evidence is None or not _has_runs(evidence, card):
        reason = f"{_no_run(card)}; the basis dry-run answers without one"
        nothing = Answer(card=card, basis="calibrated", verdict="unknown", reason=reason)
        return raw if basis == "best" else nothing
    # Making the curves of runs takes longer than anything else, and too few runs never improve on the raw dry run.
    if basis == "best" and not evidence.has_enough_for(request, card):
        return raw
    from planner.calibration.answers import calibrated

    answer, is_better = calibrated(request, card, library, evidence, raw)
    return answer if is_better or basis == "calibrated" else raw


def _has_runs(evidence: Evidence, card: Card) -> bool:
    return bool(evidence.of_family(family_of(card.compute_capability)))


def _no_run(card: Card) -> str:
    return f"no run on {family_of(card.compute_capability)} GPUs was measured yet"


def _from_runs(request: GenerationRequest, card: Card, evidence: Evidence | None, raw: Answer | None) -> Answer:
    if evidence is None or not _has_runs(evidence, card):
        reason = f"{_no_run(card)}; 'python -m planner verify' measures one"
        return Answer(card=card, basis="measured", verdict="unknown", reason=reason)
    if not any(evidence.of_request(request, card)):
        return Answer(card=card, basis="measured", verdict="unknown", reason=not_measured(card))
    from planner.calibration.answers import measured

    return measured(request, card, evidence, raw)
