"""The Accuracy page, and the Plan page's answers from measured runs."""

import random

import pytest

from cache.store import Store
from cache.versions import installed
from pages.shared import calls
from planner.fit import fit
from planner.gpus import card_named
from planner.request import GenerationRequest
from planner.units import GIB, gib
from tests.conftest import make_environment
from tests.ui.conftest import texts
from tests.unit.measured import REQUESTS, measured_of, run_of

ACCURACY = "pages/3_Accuracy.py"


def keep(store: Store, request: GenerationRequest, factor: float = 1.0, fraction: float = 0.7, **changes) -> str:
    """A run on a T4 whose convolutions take this fraction of their workspace."""
    run = run_of(request, fraction=fraction, factor=factor)
    return store.save_measurement(request, make_environment(**installed() | changes), measured_of(run))


@pytest.fixture
def measured_t4(store) -> Store:
    rng = random.Random(0)
    for number in range(12):
        keep(store, REQUESTS[number % 4], factor=1 + rng.gauss(0, 0.003))
    return store


def metrics(at) -> dict[str, str]:
    return {metric.label: metric.value for metric in at.metric}


def table(at, column: str):
    return next(frame.value for frame in at.dataframe if column in frame.value.columns)


def test_the_published_runs_are_there_from_the_start(open_page):
    at = open_page(ACCURACY)
    assert not at.exception
    shown = metrics(at)
    assert shown["Runs"] == "17" and shown["Inside interval"] == "100%"
    assert shown["Dry run off by"] == "0.00%" and shown["Formula off by"] == "96%"
    assert "Of these runs 17 were published by others" in texts(at.caption)
    assert "At worst the calibrated peak was off by -11.53%: txt2img 512×512, model offload" in texts(at.caption)
    assert "None of these runs has its stages" in texts(at.caption)
    assert table(at, "Runs")["Card"].iloc[0] == "RTX 4090"


def test_switched_off_there_is_nothing_and_it_says_what_to_do(open_page):
    at = open_page(ACCURACY, published="false")
    assert not at.metric
    assert "No run on a GPU is in the history yet" in texts(at.info)
    assert "Count published runs" in texts(at.info)


def test_runs_at_an_emulated_capacity_are_a_card_of_their_own_in_name(open_page, measured_t4):
    for number in range(3):
        keep(measured_t4, REQUESTS[number], emulated_bytes=8 * GIB)
    at = open_page(ACCURACY, published="false")
    assert not at.exception
    assert metrics(at)["Runs"] == "15"
    cards = table(at, "Runs").set_index("Card")["Runs"]
    assert dict(cards) == {"T4": 12, "T4, 8 GiB emulated": 3}
    named = [run for run in at.selectbox(key="one-run").options if "on T4, 8 GiB emulated" in run]
    assert len(named) == 3


def test_own_runs_are_graded_by_the_others(open_page, measured_t4):
    at = open_page(ACCURACY, published="false")
    assert not at.exception
    shown = metrics(at)
    assert shown["Runs"] == "12"
    off = {name: float(shown[f"{name} off by"].rstrip("%")) for name in ("Calibrated", "Dry run", "Formula")}
    assert off["Calibrated"] < 0.5 < off["Dry run"] < off["Formula"]
    worst = table(at, "Open")
    assert len(worst) == 10
    assert worst["Open"][0].startswith("History?run=") and "reference" not in worst["Open"][0]
    alts = [chart.proto.alt for chart in at.get("vega_lite_chart")]
    assert len(alts) == 4
    assert "Predicted against measured peaks of 12 runs" in alts[0]
    assert "Measured, dry run and calibrated peak of each stage" in alts[2]


@pytest.mark.parametrize("by", ["Card", "Stage", "Size", "Options", "What ran", "Versions"])
def test_errors_are_told_by_group(open_page, by):
    at = open_page(ACCURACY, by=by)
    assert not at.exception
    shown = table(at, "Bias")
    assert shown.columns[0] == by
    assert shown["Runs"].sum() == 17


def test_another_run_can_be_looked_at_stage_by_stage(open_page, measured_t4):
    at = open_page(ACCURACY, published="false")
    picked = at.selectbox(key="one-run")
    at = picked.set_value(picked.options[3] if hasattr(picked, "options") else 3).run()
    assert not at.exception
    assert "Measured " in texts(at.caption)


def test_a_new_run_is_graded_and_nothing_is_graded_twice(open_page, measured_t4, monkeypatch):
    open_page(ACCURACY, published="false")
    with monkeypatch.context() as patched:
        patched.setattr("planner.grading.held_out", None)
        assert not open_page(ACCURACY, published="false").exception
    keep(measured_t4, REQUESTS[4])
    assert metrics(open_page(ACCURACY, published="false"))["Runs"] == "13"


# Plan


def test_plan_answers_by_the_most_trusted_basis_and_says_on_what_it_rests(open_page, measured_t4):
    asked = {"width": "512", "height": "512", "gpu": ["T4"]}
    shown = texts(open_page(**asked).caption)
    assert "basis: measured" in shown and "dry-run: fits" in shown
    at = open_page(width="1216", height="1216", gpu=["T4"])
    assert "basis: calibrated" in texts(at.caption)
    assert "T4: calibrated on 12 runs of Turing cards" in texts(at.markdown)
    request = GenerationRequest(width=1216, height=1216)
    evidence = calls.evidence(with_published=True).evidence
    answer = fit(request, card_named("T4"), evidence=evidence)
    assert f"90% of runs: up to {gib(answer.worst_need_bytes)}" in texts(at.caption)
    assert f"needs {gib(answer.need_bytes)} of 14.56 GiB usable" in texts(at.caption)
    assert "The line beyond a bar reaches to the upper end" in texts(at.caption)


@pytest.mark.parametrize("basis", ["measured", "calibrated"])
def test_a_basis_without_runs_says_what_it_lacks(open_page, basis):
    at = open_page(basis=basis, gpu=["T4"])
    assert not at.exception
    shown = texts(at.caption)
    assert f"basis: {basis}" in shown
    assert "measured" in shown and not at.metric


def test_published_runs_count_unless_switched_off(open_page):
    link = {"basis": "calibrated", "gpu": ["RTX 4090"]}
    assert "calibrated on 13 runs of Ada cards" in texts(open_page(**link).markdown)
    at = open_page(**link, published="false")
    assert "No run on Ada GPUs was measured yet" in texts(at.caption)
    at.switch_page("pages/3_Accuracy.py").run()
    assert at.toggle(key="published").value is False


def test_stale_runs_are_named_on_plan(open_page, store):
    for number in range(8):
        keep(store, REQUESTS[number], torch="2.12.0")
    at = open_page(width="1216", height="1216", gpu=["T4"])
    assert "8 of them, with other versions, count half" in texts(at.markdown)
