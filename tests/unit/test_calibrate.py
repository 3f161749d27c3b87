import statistics
from dataclasses import replace

import numpy as np
import pytest

from planner.calibrate import Calibration, held_out
from planner.cells import cell_of
from planner.curves import FRACTIONS, KNOTS, PREFERRED, Curve, curve_of
from planner.dryrun import KernelPolicy, dry_run
from planner.flatten import events_of
from planner.gpus import family_of
from planner.intervals import MIN_WEIGHT, NOMINAL, half_width
from planner.needs import peaks_of, same_work
from planner.posterior import CONSTANTS, LOG_PRIOR, RAW_SHARE, constant_of, estimates_of, log_likelihood, weights_of
from planner.program import shipped
from planner.request import GenerationRequest
from planner.runs import NEWEST, NEWEST_OF_REQUEST, newest
from planner.units import MIB
from tests.unit.measured import (
    ORDINARY,
    REQUESTS,
    TARGETS,
    TURING,
    VERSIONS,
    absurd_run,
    at,
    curve,
    evidence_of,
    history,
    peak_at,
    run_of,
    target,
)

LARGE = GenerationRequest(width=1536, height=1536)


def calibration(observations) -> Calibration:
    found = evidence_of(observations).calibration(TURING)
    assert found is not None
    return found


def answer(observations, request=LARGE, **changes):
    return calibration(observations).answer(curve(request), target(request, **changes))


# Curves


@pytest.mark.parametrize("capability", [(6, 1), (7, 5), (9, 0)])
@pytest.mark.parametrize(
    "request_",
    [GenerationRequest(), GenerationRequest(batch=3), GenerationRequest(width=2048, height=1024, channels_last=True)],
    ids=["one", "several", "channels_last"],
)
def test_a_curve_meets_the_dry_runs_at_its_ends(request_, capability):
    """Between them it never falls: more workspace is never less memory."""
    policy, events = KernelPolicy.of(capability), events_of(shipped(), request_)
    of = curve_of(shipped(), request_, policy)
    for index, run in (
        (0, dry_run(events, policy.without_workspace())),
        (PREFERRED, dry_run(events, policy)),
        (-1, dry_run(events, replace(policy, workspace_fraction=2.0))),
    ):
        assert of.reserved[index] == run.peak_reserved_bytes
        for stage, values in of.stages.items():
            assert values[index] == pytest.approx(run.stages[stage].allocated_bytes, rel=0.002)
    for knot in (0.3, 0.8, 0.9):
        run = dry_run(events, replace(policy, workspace_fraction=knot))
        assert at(of.reserved, knot) == pytest.approx(run.peak_reserved_bytes, abs=1)
    for stage, values in of.stages.items():
        assert values[PREFERRED] == dry_run(events, policy).stages[stage].allocated_bytes
        assert (np.diff(values) >= 0).all()
    assert FRACTIONS[PREFERRED] == 1 and all(np.isclose(FRACTIONS, knot).any() for knot in KNOTS)


def test_a_curve_is_the_same_after_it_was_kept():
    of = curve(LARGE)
    again = Curve.from_dict(of.to_dict())
    assert list(again.stages) == list(of.stages)
    assert all((again.stages[stage] == np.rint(of.stages[stage])).all() for stage in of.stages)
    with pytest.raises(ValueError, match="fractions"):
        Curve.from_dict({"unet": [1, 2], "reserved": [1, 2]})


# The prior and the likelihood


def test_without_runs_the_answer_is_the_raw_dry_run():
    assert np.exp(LOG_PRIOR).sum() == pytest.approx(1)
    weights = weights_of(LOG_PRIOR)
    assert weights[PREFERRED, list(CONSTANTS).index(0)] > RAW_SHARE
    for values in curve(LARGE).stages.values():
        assert estimates_of(values, weights)[0].median == values[PREFERRED]


@pytest.mark.parametrize("kind", ["full", "limited", "out-of-memory", "at-most"])
def test_no_run_says_more_than_so_much(kind):
    """However absurd, a run's likelihood is bounded below: that is what keeps one from moving the answer."""
    values = curve(LARGE).stages["vae_decoder"]
    for measured in (1.0, 1e9, 1e15):
        told = log_likelihood(values, measured, kind)
        assert told.shape == LOG_PRIOR.shape
        assert told.min() > -8


def test_out_of_memory_is_a_lower_bound_and_a_full_run_is_not():
    values = curve(LARGE).stages["vae_decoder"]
    more, less = values[PREFERRED] + 300 * MIB, 0.8 * values[PREFERRED]
    [raised] = estimates_of(values, weights_of(LOG_PRIOR + 6 * log_likelihood(values, more, "out-of-memory")))
    [same] = estimates_of(values, weights_of(LOG_PRIOR + 6 * log_likelihood(values, less, "out-of-memory")))
    assert raised.median > values[PREFERRED] + 200 * MIB
    assert same.median == values[PREFERRED]
    [lowered] = estimates_of(values, weights_of(LOG_PRIOR + 6 * log_likelihood(values, less, "full")))
    assert lowered.median == pytest.approx(less, rel=0.01)


def test_a_run_that_met_its_cards_end_bounds_what_stands_without_workspace():
    """It ran within 400 MiB less than what the replay says must stand: so the constant is that much lower."""
    values = curve(LARGE).stages["vae_decoder"]
    told = 6 * log_likelihood(values, values[0] - 400 * MIB, "limited")
    assert constant_of(weights_of(LOG_PRIOR + told)) < -200 * MIB
    # Within what it would have taken it says nothing new.
    told = 6 * log_likelihood(values, 0.9 * values[PREFERRED], "limited")
    assert constant_of(weights_of(LOG_PRIOR + told)) == 0


# Calibration


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.6, 1.0])
def test_simulated_histories_are_recovered(fraction):
    """One run in twenty is absurd, the others are off by 1 %: five tell a large target within 1 % in eight of ten."""
    errors, held = [], []
    truth = peak_at(LARGE, fraction)
    for seed in range(30):
        found = answer(history(5, seed, fraction=fraction))
        errors.append(abs(found.corrected.allocated.median / truth - 1))
        held.append(found.allocated[0] <= truth <= found.allocated[1])
    assert statistics.median(errors) < 0.006
    assert sum(error < 0.01 for error in errors) >= 0.8 * len(errors)
    assert sum(held) >= NOMINAL * len(held)


@pytest.mark.parametrize(("absurd", "within"), [(0.0, 0.75), (0.05, 0.72)])
def test_five_runs_of_any_sizes_tell_most_targets_within_a_hundredth(absurd, within):
    """Small images say little of the workspace: runs off by 1 % cannot say more, whatever is made of them."""
    errors, held = [], []
    for seed in range(40):
        found = calibration(history(5, seed, fraction=0.6, absurd=absurd, requests=ORDINARY))
        for request in TARGETS:
            said, truth = found.answer(curve(request), target(request)), peak_at(request, 0.6)
            errors.append(abs(said.corrected.allocated.median / truth - 1))
            held.append(said.allocated[0] <= truth <= said.allocated[1])
    assert sum(error < 0.01 for error in errors) >= within * len(errors)
    assert sorted(errors)[int(0.9 * len(errors))] < 0.022 and max(errors) < 0.08
    assert sum(held) >= NOMINAL * len(held)


def test_one_large_run_is_heard_where_small_ones_back_it():
    sizes = [(1024, 1024), (768, 512), (320, 1024), (256, 384)]
    runs = [run_of(GenerationRequest(width=w, height=h), w + h, fraction=0.6, factor=1.002) for w, h in sizes]
    runs.append(run_of(GenerationRequest(task="txt2img", width=320, height=1024), 9, fraction=0.6, factor=0.995))
    assert answer(runs).corrected.allocated.median == pytest.approx(peak_at(LARGE, 0.6), rel=0.02)


def test_three_runs_are_corrected_once():
    """Left out, a run has two to tell of it. Its residual is from what those say, or it is corrected twice."""
    asked = GenerationRequest(task="txt2img", width=1024, height=1024)
    runs = [run_of(asked, 1, fraction=0.6), run_of(asked, 2, fraction=0.6)]
    runs.append(run_of(GenerationRequest(width=640, height=448), 3, fraction=0.6))
    for request in (asked, LARGE):
        found, truth = answer(runs, request), at(curve(request).reserved, 0.6)
        assert found.corrected.reserved.median == pytest.approx(truth, rel=0.03)
        assert found.reserved[0] <= truth <= found.reserved[1]


@pytest.mark.parametrize("stale", [0.0, 0.5])
@pytest.mark.parametrize("count", [*range(3, 9), 12])
def test_what_is_reserved_is_corrected_once_at_any_weight(count, stale):
    """What runs reserve here is all of the fraction: no answer is below the least of its curve, and needs are covered.

    Stale runs count half, so that what is enough for the answer may not be for a run that is left out.
    """
    covered = []
    for seed in range(16):
        fraction, capability = (seed % 11) / 10, ((7, 5), (8, 6), (8, 0), (8, 9))[seed % 4]
        runs = history(count, seed, fraction=fraction, absurd=0, stale=stale, requests=ORDINARY, capability=capability)
        found = evidence_of(runs).calibration(capability)
        assert found is not None
        for request in TARGETS:
            of = curve(request, capability)
            said = found.answer(of, cell_of(request, capability, versions=VERSIONS))
            constant = min(said.corrected.constant, 0)
            assert said.corrected.reserved.median >= 0.999 * (of.reserved.min() + constant)
            assert said.reserved[1] >= said.corrected.reserved.median
            covered.append(said.reserved[1] >= at(of.reserved, fraction))
    assert sum(covered) >= NOMINAL * len(covered)


@pytest.mark.parametrize("fraction", [0.35, 0.6, 0.8, 0.95])
def test_needs_cover_what_the_replay_itself_reserves(fraction):
    """Between none and preferred it leaps by a third: workspaces no longer fit the blocks that tensors have left."""

    def reserved(request: GenerationRequest) -> int:
        policy = replace(KernelPolicy.of(TURING), workspace_fraction=fraction)
        return peaks_of(shipped(), same_work(request), policy).reserved_bytes

    covered = []
    for seed in range(6):
        runs = history(5, seed, fraction=fraction, noise=0.003, absurd=0, requests=ORDINARY)
        found = calibration([replace(run, peak_reserved_bytes=reserved(run.request)) for run in runs])
        for request in TARGETS:
            covered.append(found.answer(curve(request), target(request)).reserved[1] >= reserved(request))
    assert sum(covered) >= NOMINAL * len(covered)


def test_more_runs_are_better_and_their_interval_holds_new_runs():
    errors, held = [], []
    for seed in range(20):
        *runs, one = history(31, 100 + seed, fraction=0.6, absurd=0)
        found = answer(runs, one.request)
        errors.append(abs(found.corrected.allocated.median / peak_at(one.request, 0.6) - 1))
        held.append(found.allocated[0] <= one.peak_allocated_bytes <= found.allocated[1])
        assert found.allocated[1] - found.allocated[0] < 0.08 * one.peak_allocated_bytes
    assert max(errors) < 0.01
    assert sum(held) >= (NOMINAL - 0.1) * len(held)


@pytest.mark.parametrize("count", [3, 6, 12])
def test_one_absurd_run_moves_nothing(count):
    runs = [run_of(REQUESTS[number % 3], number, factor=1 + 0.001 * (number % 3 - 1)) for number in range(count)]
    before, after = answer(runs), answer([*runs, absurd_run(REQUESTS[0], count)])
    assert after.corrected.allocated.median == before.corrected.allocated.median
    assert after.corrected.reserved.median == before.corrected.reserved.median
    width_before, width_after = (one.allocated[1] - one.allocated[0] for one in (before, after))
    assert width_after < 2 * width_before + 0.01 * before.corrected.allocated.median


def test_fewer_runs_than_three_move_nothing_and_the_interval_says_so():
    runs = [run_of(REQUESTS[0], number, fraction=0.3) for number in range(2)]
    found = answer(runs)
    raw = curve(LARGE).stages["vae_decoder"]
    assert not found.has_data and found.is_physical
    assert found.corrected.allocated.median == raw[PREFERRED]
    assert found.allocated[0] <= raw[0] and found.allocated[1] >= raw[PREFERRED]
    assert answer([*runs, run_of(REQUESTS[1], 2, fraction=0.3)]).has_data


def test_runs_that_agree_with_the_dry_run_leave_it_as_it_is():
    runs = [run_of(request, number, factor=1.0003) for number, request in enumerate(REQUESTS)]
    found = answer(runs)
    assert found.corrected.allocated.median == curve(LARGE).stages["vae_decoder"][PREFERRED]
    assert found.allocated[1] - found.allocated[0] < 0.01 * found.allocated[1]


def test_what_was_learned_at_small_sizes_holds_at_large_ones():
    """It is a fraction of workspace that is learned, not a factor: twice as wide, the correction is what it must be."""
    runs = [run_of(GenerationRequest(width=width, height=512), width, fraction=0.5) for width in range(512, 832, 64)]
    found = answer(runs, GenerationRequest(width=2048, height=2048))
    truth = peak_at(GenerationRequest(width=2048, height=2048), 0.5)
    assert found.corrected.allocated.median == pytest.approx(truth, rel=0.01)


def test_stages_are_learned_apart():
    """A card whose UNet takes 300 MiB more says nothing of its decoder."""
    runs = []
    for number in range(6):
        one = run_of(REQUESTS[number], number)
        stages = one.stages | {"unet": one.stages["unet"] + 300 * MIB}
        runs.append(run_of(REQUESTS[number], number, stages=stages, peak_allocated_bytes=max(stages.values())))
    said = answer(runs).corrected.stages
    raw = curve(LARGE).stages
    assert said["unet"].median == pytest.approx(raw["unet"][PREFERRED] + 300 * MIB, rel=0.01)
    assert said["vae_decoder"].median == raw["vae_decoder"][PREFERRED]


def test_runs_of_other_kernels_or_families_say_nothing():
    runs = [run_of(request, number, fraction=0.5) for number, request in enumerate(REQUESTS)]
    for request in (GenerationRequest(batch=2), GenerationRequest(channels_last=True)):
        assert not any(target(request).weight(run.cell) for run in calibration(runs).runs)
    assert evidence_of(runs).calibration((8, 0)) is None
    assert not any(target(LARGE, attention="math").weight(run.cell) for run in calibration(runs).runs)


@pytest.mark.parametrize("change", [{"cudnn": 8}, {"versions": "torch 2.12.0"}])
def test_runs_that_differ_a_little_count_half(change):
    cell = run_of(LARGE, **change).cell
    asked = target(LARGE, cudnn=9)
    assert asked.weight(cell) == 0.5
    assert asked.is_stale(cell) == ("versions" in change)
    tiled = run_of(GenerationRequest(width=1536, height=1536, vae_tiling=True), **change).cell
    assert asked.weight(tiled) == 0.25
    assert target(LARGE).weight(run_of(LARGE).cell) == 1


def test_stale_runs_are_named():
    runs = [run_of(request, number, versions="torch 2.12.0") for number, request in enumerate(REQUESTS)]
    found = answer([*runs, run_of(LARGE, 99)])
    assert found.stale == tuple(run.run_id for run in runs)
    assert set(found.runs) == {*found.stale, "run-99"}


def test_the_newest_runs_of_a_kind_are_kept():
    sizes = [GenerationRequest(width=512 + 8 * number, height=512) for number in range(NEWEST + 5)]
    runs = [run_of(LARGE, number) for number in range(NEWEST_OF_REQUEST + 5)]
    assert [run.run_id for run in newest(runs)] == [run.run_id for run in runs[:NEWEST_OF_REQUEST]]
    runs = [replace(run_of(LARGE, number), request=size) for number, size in enumerate(sizes)]
    assert [run.run_id for run in newest(runs)] == [run.run_id for run in runs[:NEWEST]]
    # Runs that met the end of their card do not push out those that say all.
    bounds = [replace(run, run_id=f"oom-{run.run_id}", kind="out-of-memory") for run in runs]
    assert len([run for run in newest([*bounds, *runs]) if run.kind == "full"]) == NEWEST


def test_a_run_is_not_graded_on_itself():
    """Nine runs say one thing, the tenth another: of the tenth the nine's answer is said."""
    runs = [run_of(LARGE, number) for number in range(9)] + [run_of(LARGE, 9, fraction=0.0)]
    said = held_out(evidence_of(runs).with_curves(runs))
    assert set(said) == {run.run_id for run in runs}
    raw = curve(LARGE).stages["vae_decoder"]
    assert {one.corrected.allocated.median for one in said.values()} == {raw[PREFERRED]}
    assert "run-9" not in said["run-9"].runs and "run-3" in said["run-9"].runs


def test_families_are_architectures():
    assert [family_of(c) for c in ((6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0))] == [
        "Pascal", "Volta", "Turing", "Ampere", "Ampere", "Ada", "Hopper",
    ]  # fmt: skip
    assert family_of((12, 0)) == family_of((10, 0)) == "Blackwell"


# Intervals


def test_few_residuals_have_no_interval_and_many_have_their_rank():
    assert half_width(np.array([0.1, 0.1]), np.ones(2)) is None
    sizes = np.arange(1, 20) / 1000
    assert half_width(sizes, np.ones(19)) == pytest.approx(0.018)
    assert half_width(-sizes[::-1], np.ones(19)) == pytest.approx(0.018)
    assert half_width(sizes, np.full(19, 0.1)) is None
    assert MIN_WEIGHT == 3


@pytest.mark.parametrize("count", [3, 5, 8, 12, 30])
def test_intervals_hold_what_they_say(count):
    rng = np.random.default_rng(count)
    held = 0
    for _ in range(2000):
        seen, new = rng.normal(0, 0.01, count), rng.normal(0, 0.01)
        held += abs(new) <= half_width(seen, np.ones(count))
    assert held / 2000 > NOMINAL - 0.02


def test_absurd_residuals_do_not_widen_an_interval_and_common_ones_do():
    good = np.linspace(-0.01, 0.01, 9)
    calm = half_width(good, np.ones(9))
    assert half_width(np.append(good, 1.1), np.ones(10)) < 1.5 * calm
    assert half_width(np.append(good, [0.3] * 4), np.ones(13)) == pytest.approx(0.3)
    # Half as much again is never an error of kernels, however often it is met.
    assert half_width(np.append(good, [1.1] * 4), np.ones(13)) < 0.02
    assert half_width(np.full(9, 1.1), np.ones(9)) is None


def test_a_curve_between_its_points_is_a_line():
    values = curve(LARGE).stages["vae_decoder"]
    assert at(values, 0.5) == values[20]


# Found by attack


def test_runs_that_tell_nothing_of_the_workspace_leave_it_open():
    """At 64x64 a convolution's workspace is nothing beside the weights: at 2048x2048 all that it could be stays."""
    tiny = [GenerationRequest(width=64, height=64 + 8 * k, channels_last=True) for k in range(8)]
    asked = GenerationRequest(width=2048, height=2048, channels_last=True)
    found = answer([run_of(request, number) for number, request in enumerate(tiny)], asked)
    values = curve(asked).stages["vae_decoder"]
    assert found.allocated[1] > 0.95 * values[-1] > values[PREFERRED]


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_one_run_that_alone_tells_of_the_workspace_does_not_decide(factor):
    """Tiles are small: fifty tiled runs say little of it, and the one large run must not say all."""
    tiled = [
        run_of(GenerationRequest(width=1024 + 8 * k, height=1024, vae_tiling=True), k, factor=1 + 0.0005 * (k % 3 - 1))
        for k in range(20)
    ]
    before = answer(tiled)
    after = answer([*tiled, run_of(GenerationRequest(width=1024, height=1024), 99, factor=factor)])
    assert after.corrected.allocated.median == before.corrected.allocated.median


def test_an_absurd_reserved_peak_widens_nothing_without_end():
    runs = [run_of(request, number, peak_reserved_bytes=None) for number, request in enumerate(REQUESTS)]
    before = answer(runs)
    after = answer([*runs, run_of(REQUESTS[0], 99, peak_reserved_bytes=2**50)])
    assert after.reserved == before.reserved


def test_a_run_that_lacks_the_stage_that_peaks_tells_of_the_whole():
    runs = []
    for number, request in enumerate(REQUESTS):
        one = run_of(request, number, fraction=0.5)
        runs.append(replace(one, stages={k: v for k, v in one.stages.items() if k != "vae_decoder"}))
    found = answer(runs)
    assert found.has_data
    assert found.corrected.allocated.median == pytest.approx(peak_at(LARGE, 0.5), rel=0.01)


def test_runs_out_of_memory_alone_are_heard_where_they_contradict_the_dry_run():
    values = curve(LARGE).stages["vae_decoder"]
    contradict = [
        run_of(LARGE, n, kind="out-of-memory", stages={}, peak_allocated_bytes=round(values[-1]) + 400 * MIB)
        for n in range(8)
    ]
    agree = [run_of(LARGE, n, kind="out-of-memory", stages={}, peak_allocated_bytes=5 * 2**30) for n in range(8)]
    assert answer(contradict).has_data
    assert answer(contradict).corrected.allocated.median > values[PREFERRED] + 200 * MIB
    assert not answer(agree).has_data


def test_what_runs_reserve_beyond_the_replay_is_corrected():
    runs = [
        replace(run_of(r, n), peak_reserved_bytes=round(1.1 * curve(r).reserved[PREFERRED]))
        for n, r in enumerate(REQUESTS)
    ]
    found = answer(runs)
    assert found.corrected.reserved.median == pytest.approx(1.1 * curve(LARGE).reserved[PREFERRED], rel=0.01)
    assert found.corrected.allocated.median == curve(LARGE).stages["vae_decoder"][PREFERRED]
