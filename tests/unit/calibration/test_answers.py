"""Answers that rest on measured runs, through `fit`."""

from dataclasses import replace

import pytest

from planner.answer import Answer
from planner.calibration.runs import model_of
from planner.cards.lookup import Card, card_named
from planner.components import STAGES
from planner.fit import fit
from planner.programs.files import shipped
from planner.programs.library import Library
from planner.report.text import threshold_notes
from planner.request import GenerationRequest
from planner.units import GIB, MIB
from tests.unit.measured import REQUESTS, VERSIONS, absurd_run, evidence_of, history, peak_at, run_of

T4 = card_named("T4")
LARGE = GenerationRequest(width=1536, height=1536)


def ask(observations, basis="best", request=LARGE, card: Card = T4) -> Answer:
    return fit(request, card, basis, evidence=evidence_of(observations))


def good_runs(count: int = 6, **changes):
    return [run_of(REQUESTS[number % len(REQUESTS)], number, **changes) for number in range(count)]


# Calibrated


@pytest.mark.parametrize("seed", range(4))
def test_the_laws_between_the_sizes(seed):
    answer = ask(history(10, seed, fraction=0.5))
    assert answer.basis == "calibrated"
    assert answer.minimum_bytes <= answer.need_bytes <= answer.worst_need_bytes
    assert answer.minimum_allocated_bytes <= answer.peak_allocated_bytes <= answer.peak_reserved_bytes
    assert answer.need_bytes == answer.peak_reserved_bytes + answer.context_bytes
    low, high = answer.interval_bytes
    assert low <= answer.peak_allocated_bytes <= high
    assert set(answer.stages) == set(STAGES)
    assert answer.stages[answer.peak_stage] == max(answer.stages.values()) == answer.peak_allocated_bytes
    sizes = [answer.need_bytes, answer.minimum_bytes, low, high, *answer.stages.values()]
    assert all(type(size) is int for size in sizes)


def test_calibrated_is_the_best_where_there_are_enough_runs_and_only_there():
    assert ask(good_runs(2)).basis == "dry-run"
    assert ask(good_runs(3)).basis == "calibrated"
    assert ask(good_runs(3), request=GenerationRequest(batch=2)).basis == "dry-run"
    assert ask(good_runs(3), card=card_named("A10")).basis == "dry-run"


def test_what_was_measured_moves_the_answer_and_says_on_what_it_rests():
    raw = fit(LARGE, T4, "dry-run")
    answer = ask(good_runs(fraction=0.5))
    assert answer.peak_allocated_bytes == pytest.approx(peak_at(LARGE, 0.5), rel=0.01)
    assert answer.peak_allocated_bytes < 0.9 * raw.peak_allocated_bytes
    assert "T4: calibrated on 6 runs of Turing GPUs, together worth 6.0 runs just like this one" in answer.evidence
    assert answer.runs == tuple(f"run-{number}" for number in range(6))
    assert answer.reason is None and answer.assumptions == ()


def test_stale_runs_are_named_in_the_answer():
    answer = ask([*good_runs(6, versions="torch 2.12.0"), run_of(LARGE, 7), run_of(REQUESTS[0], 8)], "calibrated")
    assert "6 of them, with other versions, count half" in answer.evidence


def test_calibration_starts_from_the_raw_dry_run_however_often():
    """Runs that agree with it leave every size where the dry run has it."""
    raw, answer = fit(LARGE, T4, "dry-run"), ask(good_runs())
    assert (answer.peak_allocated_bytes, answer.peak_reserved_bytes) == (
        raw.peak_allocated_bytes,
        raw.peak_reserved_bytes,
    )


def test_a_card_inside_the_interval_is_tight():
    runs = history(12, 3, fraction=0.6, absurd=0)
    answer = ask(runs)
    between = (answer.need_bytes + answer.worst_need_bytes) // 2
    card = replace(T4, usable_bytes=between, usable_high_bytes=between)
    inside = ask(runs, card=card)
    assert (inside.verdict, inside.headroom_bytes > 0) == ("tight", True)
    card = replace(T4, usable_bytes=answer.worst_need_bytes, usable_high_bytes=answer.worst_need_bytes)
    assert ask(runs, card=card).verdict == "fits"
    tiny = replace(T4, usable_bytes=3 * GIB, usable_high_bytes=3 * GIB)
    assert ask(runs, card=tiny).verdict == "no"


def test_the_context_is_learned_and_one_absurd_row_does_not_move_it():
    answer = ask(good_runs(5))
    assert answer.context_bytes == 150 * MIB
    usual, absurd = run_of(REQUESTS[0], 9), run_of(REQUESTS[0], 9, context_bytes=9 * GIB)
    with_usual, with_absurd = ask([*good_runs(5), usual]), ask([*good_runs(5), absurd])
    assert with_absurd.context_bytes == 150 * MIB
    assert with_absurd.worst_need_bytes == pytest.approx(with_usual.worst_need_bytes, abs=MIB)
    assert ask(good_runs(5, context_bytes=None)).context_bytes == T4.context_bytes


def test_one_absurd_run_moves_no_verdict():
    runs = good_runs(5)
    before, after = ask(runs), ask([*runs, absurd_run(REQUESTS[0], 9)])
    assert (after.verdict, after.need_bytes) == (before.verdict, before.need_bytes)
    assert after.worst_need_bytes < 1.01 * before.worst_need_bytes


def test_asked_for_by_name_calibration_says_what_it_lacks():
    nothing = ask([], "calibrated")
    assert (nothing.verdict, nothing.need_bytes) == ("unknown", None)
    assert "no run on Turing GPUs was measured yet" in nothing.reason
    other = ask(good_runs(), "calibrated", card=card_named("A10"))
    assert "no run on Ampere GPUs was measured" in other.reason
    few = ask(good_runs(2), "calibrated")
    assert "what was measured is worth 2.0 runs just like this one, and 3 are needed" in few.reason
    assert few.peak_allocated_bytes == fit(LARGE, T4, "dry-run").peak_allocated_bytes


def test_without_a_program_nothing_is_calibrated():
    nothing = Library({}, {}, (), {name: rows[:0] for name, rows in shipped().weights.items()})
    answer = fit(LARGE, T4, "calibrated", library=nothing, evidence=evidence_of(good_runs()))
    assert (answer.basis, answer.verdict) == ("calibrated", "unknown")
    assert "no memory program" in answer.reason
    # What was measured speaks all the same.
    asked = run_of(LARGE, 1)
    assert fit(LARGE, T4, library=nothing, evidence=evidence_of([asked])).basis == "measured"


# Measured


def test_a_run_of_this_very_request_is_the_best_there_is():
    answer = ask([run_of(LARGE, 1, factor=0.97)])
    run = run_of(LARGE, 1, factor=0.97)
    assert (answer.basis, answer.verdict) == ("measured", "fits")
    assert answer.peak_allocated_bytes == run.peak_allocated_bytes
    assert answer.need_bytes == run.peak_reserved_bytes + answer.context_bytes
    assert answer.interval_bytes == (run.peak_allocated_bytes,) * 2
    assert answer.stages[answer.peak_stage] == answer.peak_allocated_bytes
    assert "measured on 1 run of this request on such a GPU, the last 2026-11-02" in answer.evidence


@pytest.mark.parametrize(
    "same",
    [{"prompt_tokens": 5}, {"steps": 20}, {"guidance_scale": 3.0}, {"width": 1540}],
    ids=lambda one: next(iter(one)),
)
def test_what_moves_no_allocation_makes_no_other_request(same):
    assert ask([run_of(LARGE, 1)], request=replace(LARGE, **same)).basis == "measured"


@pytest.mark.parametrize("other", [{"width": 1544}, {"batch": 2}, {"guidance_scale": 1.0}, {"steps": 2}])
def test_what_moves_one_does(other):
    assert replace(LARGE, **other).allocation_form() != LARGE.allocation_form()
    assert ask([run_of(LARGE, 1)], "measured", request=replace(LARGE, **other)).verdict == "unknown"


def test_repeated_runs_give_their_median_and_their_range():
    runs = [run_of(LARGE, number, factor=factor) for number, factor in enumerate((0.99, 1.0, 1.1))]
    answer = ask(runs)
    assert answer.peak_allocated_bytes == run_of(LARGE).peak_allocated_bytes
    assert answer.interval_bytes == (runs[0].peak_allocated_bytes, runs[2].peak_allocated_bytes)


def test_a_stale_run_does_not_answer_and_is_named():
    answer = ask([run_of(LARGE, 1, versions="torch 2.12.0")], "measured")
    assert answer.verdict == "unknown"
    assert "only with other versions, the last with torch 2.12.0" in answer.reason
    assert ask([run_of(LARGE, 1, versions="torch 2.12.0")]).basis == "dry-run"


def test_out_of_memory_is_a_no_unless_others_held_the_card():
    failed = run_of(LARGE, 1, kind="out-of-memory", ended_in="vae_decoder", stages={})
    answer = ask([failed])
    assert (answer.basis, answer.verdict, answer.need_bytes) == ("measured", "no", None)
    assert "out of memory in: VAE decoder" in answer.reason
    assert ask([replace(failed, is_alone=False)], "measured").verdict == "unknown"
    assert ask([failed, run_of(LARGE, 2)]).verdict == "tight"


def test_the_end_of_an_emulated_capacity_is_no_answer_for_the_whole_card():
    """As the history gives such runs: without the card to themselves."""
    at = {"emulated_bytes": 8 * GIB, "is_alone": False}
    failed = run_of(LARGE, 1, kind="out-of-memory", stages={}, **at)
    retried = run_of(LARGE, 2, kind="limited", num_alloc_retries=2, **at)
    assert ask([failed, retried], "measured").verdict == "unknown"
    full = run_of(LARGE, 3, **at)
    answer = ask([full, failed, retried])
    assert (answer.basis, answer.verdict, answer.runs) == ("measured", "fits", ("run-3",))
    assert "measured on 1 run of this request on such a GPU, the last 2026-11-04, 1 of them at an emulated" in (
        answer.evidence
    )
    assert "emulated" not in ask([run_of(LARGE, 3)]).evidence


def test_retries_are_tight():
    answer = ask([run_of(LARGE, 1, kind="limited", num_alloc_retries=2)])
    assert (answer.verdict, answer.basis) == ("tight", "measured")
    assert "with 2 allocator retries" in answer.evidence
    assert ask([run_of(LARGE, 1, kind="limited", num_alloc_retries=2), run_of(LARGE, 2)]).verdict == "fits"


def test_on_a_card_with_less_memory_than_the_runs_took_the_dry_run_says_whether_it_runs_at_all():
    raw = fit(LARGE, T4, "dry-run")
    took = run_of(LARGE, 1, factor=1.05)
    for usable, verdict in ((raw.need_bytes, "tight"), (raw.minimum_bytes + MIB, "tight"), (4 * GIB, "no")):
        answer = ask([took], card=replace(T4, usable_bytes=usable, usable_high_bytes=usable))
        assert (answer.basis, answer.verdict) == ("measured", verdict)
        assert "whether it also runs in less was not measured" in answer.reason
        assert threshold_notes([answer]) == []
    retried = ask([run_of(LARGE, 1, kind="limited", num_alloc_retries=2)])
    assert retried.verdict == "tight" and threshold_notes([retried]) == []


def test_one_absurd_row_answers_for_nothing():
    """Peaks of one byte, half of what must stand, or twice what could: none can be of this request."""
    for size in (1, 10 * MIB, 10**15):
        row = run_of(LARGE, 1, peak_allocated_bytes=size, peak_reserved_bytes=size, stages={})
        answer = ask([row], "measured")
        assert answer.verdict == "unknown" and "cannot be of it" in answer.reason
        assert ask([row]) == fit(LARGE, T4)
    # What it reserved cannot be, though what it allocated can.
    answer = ask([run_of(LARGE, 1, peak_reserved_bytes=2**50)], "measured")
    assert answer.verdict == "unknown" and "cannot be of it" in answer.reason
    # It reserved less than it allocated: a slip of the pen.
    assert ask([run_of(LARGE, 1, peak_reserved_bytes=511)], "measured").verdict == "unknown"


def test_one_out_of_memory_among_many_good_runs_is_no_rule_and_needs_a_card_that_could_be_too_small():
    request = GenerationRequest(width=2048, height=2048)
    tight = card_named("T4")
    failed = run_of(request, 99, kind="out-of-memory", stages={})
    assert ask([failed], request=request, card=tight).verdict == "no"
    good = [run_of(request, number) for number in range(10)]
    roomy = replace(T4, usable_bytes=17 * GIB, usable_high_bytes=17 * GIB)
    assert ask([*good, failed], request=request, card=roomy).verdict == "fits"
    assert ask([*good[:2], failed], request=request, card=roomy).verdict == "tight"
    huge = replace(T4, usable_bytes=79 * GIB, usable_high_bytes=79 * GIB)
    assert ask([failed], request=request, card=huge).basis == "dry-run"


def test_outermost_runs_of_many_do_not_make_the_interval():
    runs = [run_of(LARGE, number, factor=1 + 0.001 * (number % 3)) for number in range(9)]
    low, high = ask([*runs, run_of(LARGE, 20, factor=1.4)]).interval_bytes
    assert high < 1.01 * low


@pytest.mark.parametrize("other", [{"attention": "math"}, {"cudnn": 8}])
def test_a_run_of_other_kernels_does_not_answer(other):
    runs = [run_of(REQUESTS[0], 1), run_of(LARGE, 2, **other)]
    assert ask(runs, "measured").verdict == "unknown"


def test_the_cudnn_of_todays_runs_is_asked_for():
    old = [run_of(request, n, fraction=0.0, cudnn=8) for n, request in enumerate(REQUESTS)]
    new = [run_of(request, 50 + n) for n, request in enumerate(REQUESTS)]
    assert evidence_of([*new, *old]).target(LARGE, T4).cudnn == 9
    both, alone = ask([*new, *old]), ask(new)
    assert both.peak_allocated_bytes == alone.peak_allocated_bytes


def test_a_context_is_not_set_by_one_of_three_runs():
    usual, absurd = run_of(REQUESTS[3], 9), run_of(REQUESTS[3], 9, context_bytes=9 * GIB)
    assert ask([*good_runs(2), absurd]).worst_need_bytes < ask([*good_runs(2), usual]).worst_need_bytes + GIB


def test_a_run_is_of_a_card_by_any_of_its_names():
    assert model_of("Tesla T4") == model_of("NVIDIA T4") == "T4"
    assert model_of("GTX 1070") == "GTX 1070"
    attached = replace(T4, name="Tesla T4 (attached)", model="T4")
    assert ask([run_of(LARGE, 1)], card=attached).basis == "measured"
    assert ask([run_of(LARGE, 1, card="Tesla T40")]).basis == "dry-run"


def test_evidence_without_runs_changes_nothing():
    assert ask([]) == fit(LARGE, T4)
    assert evidence_of([]).versions == VERSIONS
