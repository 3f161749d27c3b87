"""The runs that ship against the planner: the check that the README's table is printed by."""

import dataclasses
from statistics import median

import pytest

from cache.reference import reference_runs
from planner.grading import GRADED_BASES, group_of, groups, size_class
from planner.request import GenerationRequest
from tests.accuracy import all_groups, graded_runs, group_table, main, problems, table
from tests.conftest import ROOT
from tests.unit.measured import evidence_of, history, run_of


@pytest.fixture(scope="module")
def graded():
    return graded_runs()


def errors(graded, peak: str, *, tiled: bool | None = None) -> list[float]:
    """The dry run's errors over the VAE runs."""
    found = [
        one
        for one in graded
        if one.observation.scope != "pipeline" and tiled in (None, one.observation.request.vae_tiling)
    ]
    if peak == "allocated":
        return [abs(one.error("dry-run")) for one in found]
    return [abs(one.reserved["dry-run"] / one.observation.peak_reserved_bytes - 1) for one in found]


def test_allocated_peaks_of_whole_images_are_within_a_thousandth(graded):
    found = errors(graded, "allocated", tiled=False)
    assert len(found) == 8 and max(found) < 0.001


def test_allocated_peaks_of_tiled_images_are_within_two_hundredths(graded):
    found = errors(graded, "allocated", tiled=True)
    assert len(found) == 5 and max(found) < 0.02


def test_reserved_peaks_are_within_a_hundredth(graded):
    found = errors(graded, "reserved")
    assert len(found) == 13
    assert median(found) < 0.003 and max(found) < 0.01


def test_a_whole_pipeline_on_cards_without_tensor_cores(graded):
    """One peak was published for a P100 and a GTX 1070: float32 conversions explain it within a thousandth."""
    whole = [one for one in graded if one.observation.scope == "pipeline"]
    resident = [one for one in whole if one.observation.request.offload == "none"]
    assert (len(whole), len(resident)) == (4, 2)
    assert all(abs(one.error("dry-run")) < 0.001 for one in resident)


def test_the_readme_shows_every_comparison(graded):
    readme = (ROOT / "README.md").read_text()
    assert table(graded) in readme and group_table(graded) in readme


def test_every_run_that_ships_is_graded(graded):
    assert {one.observation.run_id for one in graded} == {run.measurement_id for run in reference_runs()}


def test_nothing_is_wrong_with_them(graded, capsys):
    assert problems(graded) == []
    assert main() == 0
    assert capsys.readouterr().out == f"{table(graded)}\n\n{group_table(graded)}\n"


def test_calibration_makes_no_group_worse_and_intervals_hold_nine_of_ten(graded):
    for group in all_groups(graded):
        if group.count >= 3:
            assert group.error["calibrated"] <= group.error["dry-run"] < group.error["formula"], group
    assert group_of("all", graded).covered >= 0.9


def shifted(run, factor: float):
    measured = run.measured
    sizes = {
        name: round(getattr(measured, name) * factor)
        for name in ("peak_allocated_bytes", "peak_reserved_bytes")
        if getattr(measured, name)
    }
    return dataclasses.replace(run, measured=dataclasses.replace(measured, **sizes))


def test_a_planner_that_is_wrong_fails_the_check():
    """Had every measurement been a twentieth more, the dry run's bias would be found."""
    runs = tuple(shifted(run, 1.05) for run in reference_runs())
    found = problems(graded_runs(runs))
    assert any(problem.startswith("dry-run is off by -4.7") for problem in found)


def test_intervals_that_hold_too_little_fail_the_check():
    """Cards that agree on nothing: no interval from some of them holds the others."""
    runs = reference_runs()
    factors = [1.0, 1.0, 1.0, 1.0, 1.3, 0.8]
    off = tuple(shifted(run, factors[number % len(factors)]) for number, run in enumerate(runs))
    assert any("interval holds" in problem for problem in problems(graded_runs(off)))


def test_a_graded_run_has_what_each_basis_says_of_it():
    from planner.grading import grade

    reports = []
    runs = history(12, 1, fraction=0.6, absurd=0)
    found = grade(evidence_of([*runs, run_of(GenerationRequest(), 99, kind="out-of-memory")]), reports.append)
    assert [one.observation.run_id for one in found] == [run.run_id for run in runs]
    assert reports == sorted(reports) and reports[0] == 0
    for one in found:
        assert set(one.predicted) == set(GRADED_BASES)
        measured, raw, corrected = one.stages[one.peak_stage]
        assert measured == one.measured_bytes and raw == one.predicted["dry-run"]
        assert corrected == pytest.approx(one.predicted["calibrated"], rel=0.02)
        assert one.error("formula") < 0 < one.error("dry-run")
    everything = group_of("all", found)
    assert everything.error["calibrated"] < 0.02 < everything.error["dry-run"]
    assert sum(group.count for group in groups(found, lambda one: one.peak_stage)) == len(found)


def test_sizes_are_told_in_words():
    sizes = [(512, 1), (1024, 1), (2048, 1), (2048, 2), (512, 8)]
    words = [size_class(GenerationRequest(width=side, height=side, batch=batch)) for side, batch in sizes]
    assert words == ["up to 512×512", "up to 1024×1024", "up to 2048×2048", "larger", "up to 2048×2048"]
