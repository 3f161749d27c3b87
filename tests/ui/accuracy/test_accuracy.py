"""Test the Accuracy page, and Plan's answers from measured runs."""

import json
import random
import re

import pytest

from cache.history.store import Store
from cache.machine.versions import installed
from pages.shared.frame import session
from planner.cards.lookup import card_named
from planner.fit import fit
from planner.request import GenerationRequest
from planner.units import GIB, gib
from tests.conftest import make_environment
from tests.ui.conftest import texts
from tests.unit.measured import REQUESTS, measured_of, run_of

ACCURACY = "pages/3_Accuracy.py"


def keep(store: Store, request: GenerationRequest, factor: float = 1.0, fraction: float = 0.7, **changes) -> str:
    """Store a run on a T4 whose convolutions use this fraction of their workspace."""
    run = run_of(request, fraction=fraction, factor=factor)
    return store.save_measurement(request, make_environment(**installed() | changes), measured_of(run))


@pytest.fixture
def measured_t4(store) -> Store:
    rng = random.Random(0)
    for number in range(12):
        keep(store, REQUESTS[number % 4], factor=1 + rng.gauss(0, 0.003))
    return store


def metrics(at, kind: int = 0) -> dict[str, str]:
    """Return the headline metrics, of whole pipelines or, with 1, of halves of the VAE."""
    starts = [index for index, metric in enumerate(at.metric) if metric.label == "Runs"]
    return {metric.label: metric.value for metric in at.metric[starts[kind] : starts[kind] + 5]}


def table(at, column: str, number: int = 0):
    return [frame.value for frame in at.dataframe if column in frame.value.columns][number]


def answers(at) -> list[str]:
    """Return the sentence of each GPU, as a person reads it."""
    found = [line for line in at.markdown if line.value.startswith("## ")]
    return [texts([line]).removeprefix("## ").replace("\N{NO-BREAK SPACE}", " ") for line in found]


def test_whole_pipelines_and_halves_are_separate(open_page):
    at = open_page(ACCURACY)
    assert not at.exception
    whole, halves = metrics(at), metrics(at, 1)
    # Seven more have the reserved peak alone, and no median is taken over both.
    assert whole["Runs"] == "17" and halves["Runs"] == "13"
    assert whole["Dry run off by"] == "0.04 %" and whole["Formula off by"] == "42 %"
    assert halves["Dry run off by"] == "0.00 %" and halves["Formula off by"] == "98 %"
    assert [header.value for header in at.header][:2] == ["Whole pipelines", "Halves of the VAE, run alone"]
    shown = texts(at.caption)
    assert "17 runs of whole pipelines, median 0.04 %, worst −17.4 % (img2img 1800×1200)" in shown
    assert "7 more with the reserved peak alone, median 2.34 %" in shown
    alts = [chart.proto.alt for chart in at.get("vega_lite_chart")]
    assert [re.search(r"peaks of (\d+) runs", alt)[1] for alt in alts[:4:3]] == ["24", "13"]
    assert "Nothing is measured on compute capability 7.0 Volta, 9.0 Hopper" in shown


def test_the_plans_gpus_are_chosen_by_default(open_page):
    at = open_page(ACCURACY)
    t4, a10, a100 = answers(at)
    assert t4 == "T4: 5 runs of whole pipelines, median 0.04 %, worst −17.4 % (img2img 1800×1200)"
    assert a10.startswith("A10: 3 runs of whole pipelines with the reserved peak alone")
    assert a100.startswith("A100-40GB: 3 runs of whole pipelines") and "; 4 more with the reserved peak alone" in a100
    runs = table(at, "Source")
    assert list(runs["GPU"]) == ["T4"] * 5 + ["A10"] * 3 + ["A100-40GB"] * 7
    assert runs["Source"].str.contains("huggingface/open-muse|dheepakshakthi|LambdaLabsML").all()
    assert runs["Open"].str.fullmatch(r"History\?run=[0-9a-f-]{36}&reference=true").all()
    assert "by the dry run it fills 14.56 GiB" in runs["With"][2]
    assert set(runs["Peak"][5:8]) == {"reserved"}


def test_a_gpu_without_runs_has_its_nearest_evidence(open_page):
    at = open_page(ACCURACY, gpu="a10g")
    assert answers(at) == [
        "A10G: not measured; nearest evidence: A10 (3 runs with the reserved peak alone, median 2.34 %, worst +3.35 %)"
    ]
    assert set(table(at, "Source")["GPU"]) == {"A10"}
    at.multiselect(key="accuracy-gpus").set_value(["H100-80GB", "RTX 4090"]).run()
    assert not at.exception
    h100, ada = answers(at)
    assert h100.startswith("H100-80GB: not measured, nor is any GPU of compute capability 9.x; assumed: kernels")
    assert ada.startswith("RTX 4090: 3 runs of whole pipelines")
    assert at.query_params["gpu"] == ["H100-80GB", "RTX 4090"]
    # Its halves of the VAE have a table of their own.
    assert len(table(at, "Source")) == 3 and len(table(at, "Source", 1)) == 13


def test_a_described_gpu_is_named_by_its_capability(open_page):
    at = open_page(ACCURACY, gpu="compute capability 8.6")
    assert answers(at)[0].startswith("compute capability 8.6: not measured; nearest evidence: A10 (3 runs")
    assert not at.warning


@pytest.mark.parametrize("name", ["RTX 2071", "compute capability 99.9"])
def test_an_unknown_gpu_in_a_link_warns(open_page, name):
    at = open_page(ACCURACY, gpu=name)
    assert not at.exception and not answers(at)
    assert "Part of this link was ignored" in texts(at.warning)


def test_each_verdict_links_to_the_evidence_for_its_gpu(open_page):
    at = open_page(width="1024", gpu=["T4", "RTX 4060"], tab="Why")
    links = {link.proto.label: link.proto for link in at.get("page_link")}
    assert links["How wrong on a T4?"].query_string == "how_wrong=T4"
    assert links["How wrong on an RTX 4060?"].query_string == "how_wrong=RTX+4060"
    at = open_page(gpu=["T4"], workers="2", tab="Why")
    assert "How wrong on a T4?" in [link.proto.label for link in at.get("page_link")]


def test_a_verdicts_link_sets_the_address(open_page):
    at = open_page(ACCURACY, how_wrong="A10G", by="Size")
    assert [answer.partition(":")[0] for answer in answers(at)] == ["A10G"]
    assert at.query_params["gpu"] == "A10G" and "Size" in at.query_params["by"]
    assert "how_wrong" not in at.query_params


def test_the_plans_described_gpu_is_linked_and_answered(open_page):
    at = open_page(gpu=["T4"], gpu_memory="24GiB", compute_capability="8.9", tab="Why")
    labels = [link.proto.label for link in at.get("page_link")]
    assert "How wrong on compute capability 8.9?" in labels
    at.switch_page(ACCURACY).run()
    assert [answer.partition(":")[0] for answer in answers(at)] == ["T4", "compute capability 8.9"]


def test_any_run_can_be_shown_with_its_errors(open_page):
    at = open_page(ACCURACY)
    picked = at.selectbox(key="one-run")
    name = next(option for option in picked.options if "1800×1200" in option)
    at = picked.set_value(name).run()
    assert not at.exception
    assert "Measured 9.06 GiB allocated, with torch 2.8.0; calibrated 7.49 GiB (−17.4 %)" in texts(at.caption)
    assert "This run has no peaks of its stages" in texts(at.caption)


def test_without_runs_the_page_says_what_to_do(open_page):
    at = open_page(ACCURACY, published="false")
    assert not at.metric
    assert "The history has no run on a GPU yet" in texts(at.info)
    assert "Count reference runs" in texts(at.info)


def test_emulated_runs_have_a_gpu_name_of_their_own(open_page, measured_t4):
    for number in range(3):
        keep(measured_t4, REQUESTS[number], emulated_bytes=8 * GIB)
    at = open_page(ACCURACY, published="false")
    assert not at.exception
    assert metrics(at)["Runs"] == "15"
    cards = table(at, "Runs").set_index("GPU")["Runs"]
    assert dict(cards) == {"T4": 12, "T4, 8 GiB emulated": 3}
    named = [run for run in at.selectbox(key="one-run").options if "on T4, 8 GiB emulated" in run]
    assert len(named) == 3


def test_own_runs_are_graded_by_the_others(open_page, measured_t4):
    at = open_page(ACCURACY, published="false")
    assert not at.exception
    shown = metrics(at)
    assert shown["Runs"] == "12"
    off = {name: float(shown[f"{name} off by"].rstrip(" %")) for name in ("Calibrated", "Dry run", "Formula")}
    assert off["Calibrated"] < 0.5 < off["Dry run"] < off["Formula"]
    worst = table(at, "Origin")
    assert len(worst) == 10
    assert answers(at)[0].startswith("T4: 12 runs of whole pipelines, median 0.")
    assert set(table(at, "Source")["Source"]) == {"history"}
    assert worst["Open"][0].startswith("History?run=") and "reference" not in worst["Open"][0]
    alts = [chart.proto.alt for chart in at.get("vega_lite_chart")]
    assert len(alts) == 5
    assert "Predicted against measured peaks of 12 runs" in alts[0]
    assert "Measured, dry run and calibrated peak of each stage" in alts[3]


def marks_of(spec) -> list[dict]:
    """Return every mark of a chart."""
    return [layer["mark"] for layer in spec.get("layer", [spec])]


def test_marks_of_charts_keep_their_contrast(open_page, measured_t4):
    specs = [json.loads(chart.proto.spec) for chart in open_page(ACCURACY).get("vega_lite_chart")]
    marks = [mark for spec in specs for mark in marks_of(spec)]
    assert len(marks) > 20
    assert [mark for mark in marks if mark.get("opacity", 1) < 1] == []
    # The formula is neither in the chart of peaks nor in that of errors, whose axes it would stretch.
    peaks, errors, formula = ({*bases_of(spec)} for spec in specs[:3])
    assert peaks == errors == {"Dry run", "Calibrated"} and formula == {"Formula"}


def bases_of(spec) -> set[str]:
    return {row["basis"] for layer in spec["layer"] for row in layer["data"]["values"] if "basis" in row}


@pytest.mark.parametrize("by", ["GPU", "Stage", "Size", "Options", "What ran", "Versions"])
def test_errors_by_group(open_page, by):
    at = open_page(ACCURACY, by=by)
    assert not at.exception
    whole, halves = table(at, "Bias"), table(at, "Bias", 1)
    assert whole.columns[0] == halves.columns[0] == by
    assert whole["Runs"].sum() == 24 and halves["Runs"].sum() == 13
    assert whole["Runs"][whole[by].str.endswith(", reserved")].sum() == 7


def test_another_run_can_be_shown_by_stage(open_page, measured_t4):
    at = open_page(ACCURACY, published="false")
    picked = at.selectbox(key="one-run")
    at = picked.set_value(picked.options[3] if hasattr(picked, "options") else 3).run()
    assert not at.exception
    assert "Measured " in texts(at.caption)


def test_only_new_runs_are_graded(open_page, measured_t4, monkeypatch):
    open_page(ACCURACY, published="false")
    with monkeypatch.context() as patched:
        patched.setattr("planner.accuracy.grading.held_out", None)
        assert not open_page(ACCURACY, published="false").exception
    keep(measured_t4, REQUESTS[4])
    assert metrics(open_page(ACCURACY, published="false"))["Runs"] == "13"


# Plan


def test_plan_names_the_runs_behind_an_answer(open_page, measured_t4):
    asked = {"width": "512", "height": "512", "gpu": ["T4"]}
    shown = texts(open_page(**asked).caption)
    assert "basis: measured" in shown and "dry-run: fits" in shown
    at = open_page(width="1216", height="1216", gpu=["T4"], tab="Why")
    assert "basis: calibrated" in texts(at.caption)
    # With the three published ones of such a GPU.
    assert "T4: calibrated on 15 runs of Turing GPUs" in texts(at.markdown)
    request = GenerationRequest(width=1216, height=1216)
    evidence = session.evidence(with_published=True).evidence
    answer = fit(request, card_named("T4"), evidence=evidence)
    assert f"90 % of runs need at most {gib(answer.worst_need_bytes)}" in texts(at.caption)
    ends = f"{gib(answer.need_bytes)}, up to {gib(answer.worst_need_bytes)}"
    assert f"needs {ends} of 14.56 GiB usable" in texts(at.caption)
    assert "The line beyond a bar reaches to the upper end" in texts(at.caption)


@pytest.mark.parametrize("basis", ["measured", "calibrated"])
def test_a_basis_without_runs_says_what_it_lacks(open_page, basis):
    at = open_page(basis=basis, gpu=["H100-80GB"])
    assert not at.exception
    shown = texts(at.caption)
    assert f"basis: {basis}" in shown
    assert "measured" in shown and not at.metric


def test_reference_runs_can_be_switched_off(open_page):
    link = {"basis": "calibrated", "gpu": ["RTX 4090"], "tab": "Why"}
    assert "calibrated on 13 runs of Ada GPUs" in texts(open_page(**link).markdown)
    at = open_page(**link, published="false")
    assert "No run on Ada GPUs was measured yet" in texts(at.caption)
    at.switch_page("pages/3_Accuracy.py").run()
    assert at.toggle(key="published").value is False


def test_stale_runs_are_named_on_plan(open_page, store):
    for number in range(8):
        keep(store, REQUESTS[number], torch="2.12.0")
    at = open_page(width="1216", height="1216", gpu=["T4"], tab="Why")
    assert "11 of them, with other versions, count half" in texts(at.markdown)
