"""Test the comparison with other estimators on the Accuracy page."""

import pytest

from cache.machine.versions import installed
from pages.shared.accuracy.estimators import side_of
from planner.accuracy.estimator_table import NAMES
from planner.accuracy.estimators import ESTIMATORS
from planner.request import GenerationRequest
from tests.conftest import make_environment
from tests.ui.conftest import texts
from tests.unit.measured import REQUESTS, measured_of, run_of

ACCURACY = "pages/3_Accuracy.py"


def table(at):
    return next(frame.value for frame in at.dataframe if "Too low" in frame.value.columns)


def alt_of_picture(at) -> str:
    [alt] = [chart.proto.alt for chart in at.get("vega_lite_chart") if "Median error of each" in chart.proto.alt]
    return alt


def test_reference_runs_are_compared_by_default(open_page):
    at = open_page(ACCURACY)
    assert not at.exception
    shown = table(at)
    assert list(shown["Estimator"]) == list(NAMES.values())
    assert {"Batch 1", "Batch 2-4", "Batch 5+", "Median", "Worst"} < set(shown.columns)
    assert f"The formulas of {len(ESTIMATORS)} other tools" in texts(at.caption)
    alt = alt_of_picture(at)
    assert all(name in alt for name in NAMES.values())
    assert "the adding of weights to the larger phase is ours" in texts(at.markdown).casefold()


@pytest.mark.parametrize(
    ("chosen", "lines"),
    [("VAE decode alone, reserved", 7), ("VAE decode alone, allocated", 7), ("VAE encode alone, allocated", 5)],
)
def test_halves_of_the_vae_can_be_chosen(open_page, chosen, lines):
    at = open_page(ACCURACY, estimators=chosen)
    assert not at.exception
    shown = table(at)
    assert len(shown) == lines
    assert {"Whole image", "Tiled"} < set(shown.columns)
    assert f"by the peak {chosen.partition(', ')[2]}" in texts(at.markdown)


def test_own_runs_alone_have_one_section(open_page, store):
    for number in range(3):
        run = run_of(REQUESTS[number], fraction=1.0)
        store.save_measurement(run.request, make_environment(**installed()), measured_of(run))
    offloaded = GenerationRequest(offload="model")
    store.save_measurement(offloaded, make_environment(**installed()), measured_of(run_of(offloaded)))
    at = open_page(ACCURACY, published="false")
    assert not at.exception
    assert "3 runs on T4, by the peak allocated." in texts(at.markdown)
    assert "Left out: 1 with model offload, which no estimator counts." in texts(at.markdown)
    first = table(at).iloc[0]
    assert (first["Estimator"], first["Too low"], first["Median"]) == ("Will It Fit, dry run", "0 of 3", 0.0)


def test_only_the_newest_runs_are_drawn(open_page, monkeypatch):
    monkeypatch.setattr("pages.shared.accuracy.estimators._MOST_DRAWN", 3)
    at = open_page(ACCURACY)
    assert not at.exception
    assert "each ring is one run, of which the newest 3 are drawn" in texts(at.caption)
    assert not table(at)["Too low"].str.endswith("of 3").any()


def test_without_a_run_there_is_no_section(open_page):
    at = open_page(ACCURACY, published="false")
    assert not at.exception
    assert "Other estimators" not in texts(at.subheader)


def test_the_spread_of_repeated_runs_has_no_side():
    sides = [side_of(error) for error in (-0.0025, 0.0025, -0.003, 0.003)]
    assert sides == ["not too low", "not too low", "too low", "not too low"]
