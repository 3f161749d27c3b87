import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.calibration.calibrate import NOMINAL, Calibration, held_out
from planner.calibration.posterior import (
    LOG_EVEN,
    LOG_PRIOR,
    NO_CONSTANT,
    SHAPE,
    grid_peaks,
    log_likelihood,
    normalized,
    quantiles,
)
from planner.calibration.runs import NEWEST, NEWEST_OF_REQUEST, newest
from planner.calibration.similarity import traits_of
from planner.calibration.workspace_curve import FRACTIONS, KNOTS, PREFERRED, Curve, curve_of
from planner.cards.lookup import family_of
from planner.programs.assemble import events_of
from planner.programs.files import shipped
from planner.replay.dry_run import dry_run
from planner.replay.kernels import KernelPolicy
from planner.replay.peaks import peaks_of
from planner.request import GenerationRequest
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


def test_the_prior_prefers_the_raw_dry_run():
    assert np.exp(LOG_PRIOR).sum() == pytest.approx(1)
    prior = normalized(LOG_PRIOR).sum(axis=2)
    assert prior.argmax() == np.ravel_multi_index((PREFERRED, NO_CONSTANT), prior.shape)
    for values in curve(LARGE).stages.values():
        assert quantiles(grid_peaks(values), prior, (0.5,)) == [values[PREFERRED]]
    # The prior of the interval prefers no fraction.
    spread = np.exp(LOG_EVEN).sum(axis=(1, 2))
    assert spread.sum() == pytest.approx(1)
    assert np.cumsum(spread)[PREFERRED] == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("measured", [1.0, 1e9, 1e15])
def test_no_likelihood_falls_without_bound(measured):
    """The bound keeps one run, however far off, from moving the answer."""
    found = log_likelihood(curve(LARGE).stages["vae_decoder"], measured)
    assert found.shape == LOG_PRIOR.shape == SHAPE
    assert found.min() > -8


def test_a_quantile_is_a_value_that_the_weights_reach():
    values, weights = np.array([[3.0, 1.0], [2.0, 4.0]]), np.array([[0.2, 0.1], [0.3, 0.4]])
    assert quantiles(values, weights, (0.05, 0.1, 0.5, 0.6, 0.61, 1.0)) == [1, 1, 3, 3, 4, 4]


# Calibration


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.6, 1.0])
def test_simulated_histories_are_recovered(fraction):
    """One run in twenty is absurd, the others are off by 1 %: five tell a large target within 1 % in eight of ten."""
    errors, held = [], []
    truth = peak_at(LARGE, fraction)
    for seed in range(30):
        found = answer(history(5, seed, fraction=fraction))
        errors.append(abs(found.allocated_bytes / truth - 1))
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
            errors.append(abs(said.allocated_bytes / truth - 1))
            held.append(said.allocated[0] <= truth <= said.allocated[1])
    assert sum(error < 0.01 for error in errors) >= within * len(errors)
    assert sorted(errors)[int(0.9 * len(errors))] < 0.022 and max(errors) < 0.08
    assert sum(held) >= NOMINAL * len(held)


def test_a_large_run_counts_where_small_ones_agree_with_it():
    sizes = [(1024, 1024), (768, 512), (320, 1024), (256, 384)]
    runs = [run_of(GenerationRequest(width=w, height=h), w + h, fraction=0.6, factor=1.002) for w, h in sizes]
    runs.append(run_of(GenerationRequest(task="txt2img", width=320, height=1024), 9, fraction=0.6, factor=0.995))
    assert answer(runs).allocated_bytes == pytest.approx(peak_at(LARGE, 0.6), rel=0.02)


def test_three_runs_are_corrected_once():
    """A fraction learned from three runs corrects the reserved peak by itself: nothing may correct it again."""
    asked = GenerationRequest(task="txt2img", width=1024, height=1024)
    runs = [run_of(asked, 1, fraction=0.6), run_of(asked, 2, fraction=0.6)]
    runs.append(run_of(GenerationRequest(width=640, height=448), 3, fraction=0.6))
    for request in (asked, LARGE):
        found, truth = answer(runs, request), at(curve(request).reserved, 0.6)
        assert found.reserved_bytes == pytest.approx(truth, rel=0.03)
        assert found.reserved[0] <= truth <= found.reserved[1]


@pytest.mark.parametrize("stale", [0.0, 0.5])
@pytest.mark.parametrize("count", [*range(3, 9), 12])
def test_what_is_reserved_is_corrected_once_at_any_weight(count, stale):
    """The simulated fraction alone explains what runs reserve: the point stays near its curve, and needs are covered.

    Stale runs count half, so weights between whole numbers are met too.
    """
    covered = []
    for seed in range(16):
        fraction, capability = (seed % 11) / 10, ((7, 5), (8, 6), (8, 0), (8, 9))[seed % 4]
        runs = history(count, seed, fraction=fraction, absurd=0, stale=stale, requests=ORDINARY, capability=capability)
        found = evidence_of(runs).calibration(capability)
        assert found is not None
        for request in TARGETS:
            of = curve(request, capability)
            said = found.answer(of, traits_of(request, capability, versions=VERSIONS))
            # Noise of 1 % in three runs may pass for a constant below zero.
            assert said.reserved_bytes >= 0.98 * of.reserved.min()
            assert said.reserved[0] <= said.reserved_bytes <= said.reserved[1]
            covered.append(said.reserved[1] >= at(of.reserved, fraction))
    assert sum(covered) >= NOMINAL * len(covered)


@pytest.mark.parametrize("fraction", [0.35, 0.6, 0.8, 0.95])
def test_needs_cover_what_the_replay_itself_reserves(fraction):
    """Between none and preferred it leaps by a third: workspaces no longer fit the blocks that tensors have left."""

    def reserved(request: GenerationRequest) -> int:
        policy = replace(KernelPolicy.of(TURING), workspace_fraction=fraction)
        return peaks_of(shipped(), request.replay_form(), policy).reserved_bytes

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
        errors.append(abs(found.allocated_bytes / peak_at(one.request, 0.6) - 1))
        held.append(found.allocated[0] <= one.peak_allocated_bytes <= found.allocated[1])
        assert found.allocated[1] - found.allocated[0] < 0.08 * one.peak_allocated_bytes
    assert max(errors) < 0.01
    assert sum(held) >= (NOMINAL - 0.1) * len(held)


@pytest.mark.parametrize("count", [3, 6, 12])
def test_one_absurd_run_moves_nothing(count):
    runs = [run_of(REQUESTS[number % 3], number, factor=1 + 0.001 * (number % 3 - 1)) for number in range(count)]
    before, after = answer(runs), answer([*runs, absurd_run(REQUESTS[0], count)])
    assert after.allocated_bytes == before.allocated_bytes
    assert after.reserved_bytes == before.reserved_bytes
    width_before, width_after = (one.allocated[1] - one.allocated[0] for one in (before, after))
    assert width_after < 2 * width_before + 0.01 * before.allocated_bytes


@pytest.mark.parametrize("size", [0.3, 0.5, 0.8, 1.25, 2.0, 3.0, 1000.0])
@pytest.mark.parametrize("fraction", [0.0, 0.6, 1.0])
def test_one_outlier_among_five_runs_moves_the_answer_by_less_than_a_hundredth(fraction, size):
    sound = [run_of(REQUESTS[number], number, fraction=fraction) for number in range(5)]
    outlier = run_of(REQUESTS[4], 4, fraction=fraction, factor=size)
    before, after = answer(sound), answer([*sound[:4], outlier])
    assert after.allocated_bytes == pytest.approx(before.allocated_bytes, rel=0.01)
    assert after.reserved_bytes == pytest.approx(before.reserved_bytes, rel=0.01)


@given(
    order=st.permutations(range(6)),
    fraction=st.sampled_from(KNOTS.tolist()),
    constant=st.sampled_from([-50 * MIB, 0, 90 * MIB]),
    capability=st.sampled_from([(6, 1), (7, 5), (8, 6)]),
)
@settings(max_examples=25, deadline=None)
def test_the_order_of_runs_does_not_matter_and_intervals_contain_the_point(order, fraction, constant, capability):
    runs = [
        run_of(REQUESTS[number], number, fraction=fraction, constant=constant, capability=capability)
        for number in range(6)
    ]
    of, asked = curve(LARGE, capability), traits_of(LARGE, capability, versions=VERSIONS)
    found = []
    for observations in (runs, [runs[number] for number in order]):
        of_family = evidence_of(observations).calibration(capability)
        assert of_family is not None
        found.append(of_family.answer(of, asked))
    one, other = found
    assert one.stages == pytest.approx(other.stages) and one.reserved_bytes == pytest.approx(other.reserved_bytes)
    assert one.allocated == pytest.approx(other.allocated) and one.reserved == pytest.approx(other.reserved)
    assert one.allocated[0] <= one.allocated_bytes <= one.allocated[1]
    assert one.reserved[0] <= one.reserved_bytes <= one.reserved[1]
    assert one.allocated_bytes <= one.reserved_bytes


def test_fewer_runs_than_three_move_nothing_and_the_interval_says_so():
    runs = [run_of(REQUESTS[0], number, fraction=0.3) for number in range(2)]
    found = answer(runs)
    raw = curve(LARGE).stages["vae_decoder"]
    assert not found.has_data and found.constant == 0
    assert found.allocated_bytes == raw[PREFERRED]
    assert found.allocated[0] <= raw[0] and found.allocated[1] >= raw[PREFERRED]
    assert answer([*runs, run_of(REQUESTS[1], 2, fraction=0.3)]).has_data


def test_runs_that_agree_with_the_dry_run_leave_it_as_it_is():
    runs = [run_of(request, number, factor=1.0003) for number, request in enumerate(REQUESTS)]
    found = answer(runs)
    assert found.allocated_bytes == curve(LARGE).stages["vae_decoder"][PREFERRED]
    assert found.allocated[1] - found.allocated[0] < 0.01 * found.allocated[1]


def test_what_was_learned_at_small_sizes_holds_at_large_ones():
    """It is a fraction of workspace that is learned, not a factor: twice as wide, the correction is what it must be."""
    runs = [run_of(GenerationRequest(width=width, height=512), width, fraction=0.5) for width in range(512, 832, 64)]
    found = answer(runs, GenerationRequest(width=2048, height=2048))
    truth = peak_at(GenerationRequest(width=2048, height=2048), 0.5)
    assert found.allocated_bytes == pytest.approx(truth, rel=0.01)


def test_stages_are_learned_apart():
    """A card whose UNet takes 300 MiB more says nothing of its decoder."""
    runs = []
    for number in range(6):
        one = run_of(REQUESTS[number], number)
        stages = one.stages | {"unet": one.stages["unet"] + 300 * MIB}
        runs.append(run_of(REQUESTS[number], number, stages=stages, peak_allocated_bytes=max(stages.values())))
    said = answer(runs).stages
    raw = curve(LARGE).stages
    assert said["unet"] == pytest.approx(raw["unet"][PREFERRED] + 300 * MIB, rel=0.01)
    assert said["vae_decoder"] == raw["vae_decoder"][PREFERRED]


def test_runs_of_other_kernels_or_families_say_nothing():
    runs = [run_of(request, number, fraction=0.5) for number, request in enumerate(REQUESTS)]
    for request in (GenerationRequest(batch=2), GenerationRequest(channels_last=True)):
        assert not any(target(request).weight(run.observation.traits) for run in calibration(runs).runs)
        found = answer(runs, request)
        raw = {stage: values[PREFERRED] for stage, values in curve(request).stages.items()}
        assert (found.stages, found.runs, found.has_data) == (raw, (), False)
    assert evidence_of(runs).calibration((8, 0)) is None
    found = answer(runs, attention="math")
    assert (found.runs, found.has_data) == ((), False)


@pytest.mark.parametrize("change", [{"cudnn": 8}, {"versions": "torch 2.12.0"}])
def test_runs_that_differ_a_little_count_half(change):
    traits = run_of(LARGE, **change).traits
    asked = target(LARGE, cudnn=9)
    assert asked.weight(traits) == 0.5
    assert asked.is_stale(traits) == ("versions" in change)
    tiled = run_of(GenerationRequest(width=1536, height=1536, vae_tiling=True), **change).traits
    assert asked.weight(tiled) == 0.25
    assert target(LARGE).weight(run_of(LARGE).traits) == 1


def test_stale_runs_are_named():
    runs = [run_of(request, number, versions="torch 2.12.0") for number, request in enumerate(REQUESTS)]
    found = answer([*runs, run_of(LARGE, 99)])
    assert found.stale == tuple(run.run_id for run in runs)
    assert set(found.runs) == {*found.stale, "run-99"}


def test_the_newest_runs_of_a_kind_are_kept():
    sizes = [GenerationRequest(width=512 + 8 * number, height=512) for number in range(NEWEST + 5)]
    runs = [run_of(LARGE, number) for number in range(NEWEST_OF_REQUEST + 5)]
    assert [run.run_id for run in newest(runs)] == [run.run_id for run in runs[:NEWEST_OF_REQUEST]]
    # Neither the prompt nor more steps make it another request: neither moves an allocation.
    others = [replace(run, request=replace(LARGE, steps=30 + number)) for number, run in enumerate(runs)]
    assert [run.run_id for run in newest(others)] == [run.run_id for run in runs[:NEWEST_OF_REQUEST]]
    runs = [replace(run_of(LARGE, number), request=size) for number, size in enumerate(sizes)]
    assert [run.run_id for run in newest(runs)] == [run.run_id for run in runs[:NEWEST]]
    # Runs that met the end of their memory do not push out those that calibrate.
    bounds = [replace(run, run_id=f"oom-{run.run_id}", kind="out-of-memory") for run in runs]
    found = calibration([*bounds, *runs])
    assert [run.observation.run_id for run in found.runs] == [run.run_id for run in runs[:NEWEST]]


def test_a_run_is_not_graded_on_itself():
    """Nine runs say one thing, the tenth another: of the tenth the nine's answer is said."""
    runs = [run_of(LARGE, number) for number in range(9)] + [run_of(LARGE, 9, fraction=0.0)]
    said = held_out(evidence_of(runs).with_curves(runs))
    assert set(said) == {run.run_id for run in runs}
    raw = curve(LARGE).stages["vae_decoder"]
    assert {one.allocated_bytes for one in said.values()} == {raw[PREFERRED]}
    assert "run-9" not in said["run-9"].runs and "run-3" in said["run-9"].runs


def test_of_many_runs_only_the_newest_calibrate_and_all_are_graded():
    """Older runs are answered by the newest, which do not contain them."""
    sizes = [GenerationRequest(width=512, height=512 + 8 * number) for number in range(NEWEST + 10)]
    runs = [run_of(request, number, fraction=0.5) for number, request in enumerate(sizes)]
    reports: list[float] = []
    said = held_out(evidence_of(runs).with_curves(runs), reports.append)
    assert set(said) == {run.run_id for run in runs}
    newest_ids = {run.run_id for run in runs[:NEWEST]}
    for run_id, one in said.items():
        assert run_id not in one.runs and set(one.runs) <= newest_ids
    assert reports == sorted(reports) and reports[-1] < 1


def test_families_are_architectures():
    assert [family_of(c) for c in ((6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0))] == [
        "Pascal", "Volta", "Turing", "Ampere", "Ampere", "Ada", "Hopper",
    ]  # fmt: skip
    assert family_of((12, 0)) == family_of((10, 0)) == "Blackwell"


def test_a_curve_between_its_points_is_a_line():
    values = curve(LARGE).stages["vae_decoder"]
    assert at(values, 0.5) == values[20]


# Histories that are one-sided or damaged


def test_runs_that_tell_nothing_of_the_workspace_leave_it_open():
    """At 64x64 a convolution's workspace is nothing beside the weights: at 2048x2048 all that it could be stays."""
    tiny = [GenerationRequest(width=64, height=64 + 8 * k, channels_last=True) for k in range(8)]
    asked = GenerationRequest(width=2048, height=2048, channels_last=True)
    found = answer([run_of(request, number) for number, request in enumerate(tiny)], asked)
    values = curve(asked).stages["vae_decoder"]
    assert found.allocated[1] > 0.95 * values[-1] > values[PREFERRED]


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_one_run_that_alone_tells_of_the_workspace_does_not_decide(factor):
    """Tiles are small: twenty tiled runs tell little of the workspace, and one large run must not decide alone."""
    tiled = [
        run_of(GenerationRequest(width=1024 + 8 * k, height=1024, vae_tiling=True), k, factor=1 + 0.0005 * (k % 3 - 1))
        for k in range(20)
    ]
    before = answer(tiled)
    after = answer([*tiled, run_of(GenerationRequest(width=1024, height=1024), 99, factor=factor)])
    assert after.allocated_bytes == before.allocated_bytes


def test_an_absurd_reserved_peak_widens_nothing_without_end():
    runs = [run_of(request, number, peak_reserved_bytes=None) for number, request in enumerate(REQUESTS)]
    before = answer(runs)
    after = answer([*runs, run_of(REQUESTS[0], 99, peak_reserved_bytes=2**50)])
    assert after.reserved == pytest.approx(before.reserved, rel=0.001)


def test_a_run_that_lacks_the_stage_that_peaks_tells_of_the_whole():
    runs = []
    for number, request in enumerate(REQUESTS):
        one = run_of(request, number, fraction=0.5)
        runs.append(replace(one, stages={k: v for k, v in one.stages.items() if k != "vae_decoder"}))
    found = answer(runs)
    assert found.has_data
    assert found.allocated_bytes == pytest.approx(peak_at(LARGE, 0.5), rel=0.01)


@pytest.mark.parametrize("kind", ["limited", "out-of-memory"])
def test_runs_that_met_the_end_of_their_memory_calibrate_nothing(kind):
    """They only bound their peak; alone, such bounds made intervals that contained 21 to 75 % of the truths."""
    runs = [run_of(request, number, fraction=0.5) for number, request in enumerate(REQUESTS)]
    bounds = [
        run_of(LARGE, 50 + number, kind=kind, stages={}, peak_allocated_bytes=5 * 2**30, peak_reserved_bytes=None)
        for number in range(8)
    ]
    assert answer([*bounds, *runs]) == answer(runs)
    assert evidence_of(bounds).calibration(TURING) is None


def test_what_runs_reserve_beyond_the_replay_is_corrected():
    runs = [
        replace(run_of(r, n), peak_reserved_bytes=round(1.1 * curve(r).reserved[PREFERRED]))
        for n, r in enumerate(REQUESTS)
    ]
    found = answer(runs)
    assert found.reserved_bytes == pytest.approx(1.1 * curve(LARGE).reserved[PREFERRED], rel=0.01)
    assert found.allocated_bytes == curve(LARGE).stages["vae_decoder"][PREFERRED]
