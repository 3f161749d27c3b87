"""Test the History page, run by Streamlit without a browser."""

import csv
import io
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pandas as pd
import pytest
from pandas import DataFrame

from cache.exchange.lines import read_runs
from cache.history.reference import reference_runs
from cache.history.store import Store
from cache.records import Environment, Measured, Measurement, Prediction
from pages.shared.frame import session
from pages.shared.history.compare import MOST, in_order, telling
from pages.shared.history.files import csv_of, json_lines_of
from pages.shared.history.repeats import time_axis
from pages.shared.history.runs import Runs
from pages.shared.history.table import columns_of, fitting
from planner.cards.lookup import card_named
from planner.fit import fit
from planner.request import GenerationRequest
from planner.units import GIB
from tests.conftest import make_environment, make_measured
from tests.ui.conftest import answered, texts

VERIFY, HISTORY, PLAN = "pages/1_Verify.py", "pages/2_History.py", "streamlit_app.py"
FORMULA, DRY_RUN = (
    Prediction.of(fit(GenerationRequest(), card_named("T4"), basis)) for basis in ("formula", "dry-run")
)
A10 = make_environment(card="NVIDIA A10")


def imported(number: int, request: GenerationRequest, environment: Environment, **changes) -> Measurement:
    """Store a run with an id and a time of its own."""
    return Measurement(
        measurement_id=str(UUID(int=number, version=4)),
        created_at=(datetime(2026, 6, 1, tzinfo=UTC) + timedelta(minutes=number)).isoformat(timespec="microseconds"),
        request=request,
        environment=environment,
        measured=make_measured(**changes),
        predictions=(DRY_RUN, FORMULA),
        origin="imported",
    )


@pytest.fixture
def three_runs(own_history) -> list[str]:
    store = Store(own_history)
    both = (DRY_RUN, FORMULA)
    oom = Measured(outcome="out-of-memory", reason="CUDA out of memory", ended_in="vae_decoder")
    return [
        store.save_measurement(GenerationRequest(), make_environment(), make_measured(), predictions=both),
        store.save_measurement(GenerationRequest(task="txt2img"), A10, oom, predictions=both),
        store.save_measurement(GenerationRequest(width=768), A10, make_measured(num_alloc_retries=2)),
    ]


@pytest.fixture
def upload():
    """Upload a file of these lines, as if a user had chosen it."""

    def upload_(at, lines: bytes):
        return at.file_uploader(key="import").set_value(("runs.jsonl", lines, "application/jsonl")).run()

    return upload_


def widths(at) -> list[int]:
    return [width_of(size) for size in at.dataframe[0].value["Size"]]


def width_of(size: str) -> int:
    return int(size.partition("×")[0])


def compared(at) -> DataFrame:
    """Return the tables of a comparison as one, by the names of their lines."""
    return pd.concat(frame.value for frame in at.dataframe if "A" in frame.value).set_index("")


def charts(at) -> list[str]:
    """Return the descriptions of the charts."""
    return [chart.proto.alt for chart in at.get("vega_lite_chart")]


def badges(at) -> list[str]:
    return [m.value for m in at.markdown if "badge" in m.value]


def test_an_empty_history_says_what_to_do_next(open_page):
    at = open_page(HISTORY)
    assert "No run was measured yet" in texts(at.info)
    assert at.file_uploader(key="import") and not at.dataframe
    at.toggle(key="reference").set_value(True).run()
    assert not at.exception and len(at.dataframe[0].value) == len(reference_runs())


def test_every_run_is_listed_newest_first(open_page, three_runs):
    frame = open_page(HISTORY).dataframe[0].value
    assert list(frame["Size"]) == [" 768×512", " 512×512", " 512×512"]
    assert list(frame["Outcome"]) == ["ok", "out-of-memory", "ok"]
    assert "Origin" not in frame and "id" not in frame
    measured = make_measured().peak_allocated_bytes
    for name, prediction in (("Dry run off by", DRY_RUN), ("Formula off by", FORMULA)):
        assert frame[name].iloc[2] == pytest.approx((prediction.peak_allocated_bytes / measured - 1) * 100, abs=0.051)
        assert frame[name].isna().tolist() == [True, True, False]


def test_runs_with_other_options_have_other_names(open_page, own_history, three_runs):
    assert "Options" not in open_page(HISTORY).dataframe[0].value
    store = Store(own_history)
    for request in (GenerationRequest(guidance_scale=1, vae_tiling=True), GenerationRequest(channels_last=True)):
        store.save_measurement(request, make_environment(), make_measured())
    frame = open_page(HISTORY, reference="true").dataframe[0].value
    own = frame[frame["Origin"] == "own"]
    assert list(own["Options"]) == ["channels last", "unguided, vae tiling", "", "", ""]
    halves = frame[frame["Task"].str.startswith("vae.")]
    assert set(halves["Options"]) == {"", "vae tiling"}


def test_compared_runs_are_named_by_their_differences():
    plain, tiled = (imported(1, GenerationRequest(vae_tiling=tiled), A10) for tiled in (False, True))
    assert telling([plain, tiled]) == ["no options, 2026-06-01 00:01", "vae tiling, 2026-06-01 00:01"]
    again = replace(plain, measurement_id=str(UUID(int=2**100, version=4)))
    told = telling([plain, again])
    assert told == ["2026-06-01 00:01, run 00000000", "2026-06-01 00:01, run 00000010"]
    assert telling([plain, imported(2, GenerationRequest(steps=1), A10)])[1] == "1 step, 2026-06-01 00:02"


def test_filters_say_what_they_hide_and_can_be_cleared(open_page, three_runs):
    at = open_page(HISTORY)
    assert "3 of 3 runs." in texts(at.caption)
    at.multiselect(key="filter-card").set_value(["NVIDIA A10"]).run()
    assert widths(at) == [768, 512]
    at.multiselect(key="filter-outcome").set_value(["ok"]).run()
    assert widths(at) == [768]
    assert "1 of 3 runs. 2 hidden by GPU and outcome." in texts(at.caption)
    at.multiselect(key="filter-task").set_value(["txt2img"]).run()
    assert not at.dataframe and "0 of 3 runs. 3 hidden by GPU, task and outcome." in texts(at.caption)
    at.button(key="clear-filters").click().run()
    assert widths(at) == [768, 512, 512]


@pytest.mark.parametrize(
    ("params", "shown"),
    [
        ({"filter-card": ["NVIDIA A10"], "filter-task": ["img2img"]}, [768]),
        ({"filter-size": ["768×768", "8192×8192"]}, []),
        ({"filter-size": ["64×64", "512×512"]}, [512, 512]),
        ({"filter-outcome": ["out-of-memory", "failed"]}, [512]),
        ({"filter-off": "20"}, []),
        ({"filter-off": "20", "filter-basis": "formula"}, [512]),
        ({"filter-versions": "stale"}, [640]),
        ({"filter-versions": "current"}, [768, 512, 512]),
        ({"filter-origin": "imported"}, [640]),
        ({"filter-card": "A card that is not here"}, []),
    ],
)
def test_a_link_reproduces_filters(open_page, three_runs, own_history, params, shown):
    old = imported(1, GenerationRequest(width=640), make_environment(torch="2.11.0"))
    Store(own_history).import_measurements([replace(old, predictions=())])
    at = open_page(HISTORY, **params)
    assert not at.exception
    assert [width_of(size) for frame in at.dataframe for size in frame.value["Size"]] == shown


def test_sizes_are_compared_by_their_pixels(open_page, three_runs):
    at = open_page(HISTORY, **{"filter-size": ["64×64", "512×512"]})
    assert widths(at) == [512, 512]
    assert "1 hidden by size." in texts(at.caption)


def test_reference_runs_are_marked(open_page, three_runs):
    at = open_page(HISTORY)
    assert len(at.dataframe[0].value) == 3
    at.toggle(key="reference").set_value(True).run()
    frame = at.dataframe[0].value
    assert len(frame) == 3 + len(reference_runs())
    assert set(frame["Origin"]) == {"own", "reference"}
    assert {"vae.encode", "vae.decode"} <= set(frame["Task"])
    assert len(open_page(HISTORY, reference="true").dataframe[0].value) == len(frame)


def test_a_link_opens_a_reference_run_with_its_source(open_page, three_runs):
    half = next(run for run in reference_runs() if run.scope == "vae.decode")
    at = open_page(HISTORY, run=half.measurement_id)
    assert half.source in texts(at.caption)
    assert "Only the VAE's decoder was run. Its peaks do not include the weights" in texts(at.info)
    assert any("reference" in badge for badge in badges(at))
    assert {"Peak allocated", "Peak reserved"} <= {metric.label for metric in at.metric}
    assert not {"delete", "rerun"} & {button.key for button in at.button}
    assert "1 run selected, not in the table above." in texts(at.caption)


def test_a_link_opens_one_run(open_page, three_runs):
    at = open_page(HISTORY, run=three_runs[1])
    assert "**Out of memory in the VAE decoder** on NVIDIA A10" in texts(at.markdown)
    assert "Predicted before the run: dry run fits, need 3.66 GiB; formula fits, need 2.40 GiB." in texts(at.caption)
    assert "CUDA out of memory" in texts(at.error)
    at = open_page(HISTORY, run=three_runs[2][:13])
    assert any("tight" in badge for badge in badges(at))
    assert "The run in this link is not in the history." in texts(open_page(HISTORY, run="nope").warning)


def test_a_link_opens_a_comparison(open_page, three_runs):
    at = open_page(HISTORY, run=[three_runs[0], three_runs[2]])
    assert not at.exception
    assert "**2 runs compared**" in texts(at.markdown)
    assert "**A** Tesla T4, 512×512," in texts(at.markdown) and "**B** NVIDIA A10, 768×512," in texts(at.markdown)
    assert "A is the older run. B against A is what changed since." in texts(at.caption)
    frame = compared(at)
    assert frame.loc["Width, px", ["A", "B"]].tolist() == ["512", "768"]
    assert frame.loc["Dry run off by", "B"] == "–" and frame.loc["Dry run off by", "A"].startswith("−2.31")
    assert frame.loc["Retries", ["A", "B"]].tolist() == ["0", "2"]
    assert "Height, px" not in frame.index and "Peak allocated" not in frame.index
    at.toggle(key="compare-all").set_value(True).run()
    every = compared(at)
    assert every.loc["Height, px", ["A", "B"]].tolist() == ["512", "512"]
    assert every.loc["Peak allocated", ["A", "B", "B against A"]].tolist() == ["3.260", "3.260", "equal"]
    assert not any((frame.value == "").any(axis=None) for frame in at.dataframe if "A" in frame.value)
    headings = [text for text in (m.value.strip("*") for m in at.markdown) if ", " in text and len(text) < 20]
    assert headings[:2] == ["Memory, GiB", "Time, seconds"]
    alt = charts(at)[0]
    assert "UNet: A 2.89 GiB, B 2.89 GiB" in alt and "Whole run: A 3.26 GiB" in alt


def test_clearing_the_selection_ends_a_comparison(open_page, three_runs):
    at = open_page(HISTORY, run=three_runs[:2])
    at.button(key="choose-none").click().run()
    assert "run" not in at.query_params
    assert "compared" not in texts(at.markdown)


def test_a_filter_keeps_the_selection(open_page, three_runs):
    at = open_page(HISTORY, run=three_runs[:2])
    at.multiselect(key="filter-card").set_value(["NVIDIA A10"]).run()
    assert "2 runs selected, 1 not in the table above." in texts(at.caption)
    assert "**2 runs compared**" in texts(at.markdown)


def test_a_comparison_has_a_largest_number_of_runs(open_page, own_history):
    runs = [imported(number, GenerationRequest(), A10) for number in range(MOST + 2)]
    Store(own_history).import_measurements(runs)
    at = open_page(HISTORY, run=[run.measurement_id for run in runs])
    assert not at.exception
    assert f"The first {MOST} of the selected runs; 2 more are selected." in texts(at.caption)


def test_a_comparison_begins_with_the_older_run(open_page, own_history, three_runs):
    older, newer = (imported(number, GenerationRequest(), A10) for number in (1, 2))
    assert in_order([newer, older]) == in_order([older, newer]) == [older, newer]
    slower = replace(newer, measured=replace(newer.measured, seconds_per_step=0.25, peak_allocated_bytes=3 * GIB))
    Store(own_history).import_measurements([older, slower])
    at = open_page(HISTORY, run=[newer.measurement_id, older.measurement_id])
    told = compared(at)
    assert told.loc["A step", ["A", "B", "B against A"]].tolist() == ["0.20", "0.25", "+25.0\N{NO-BREAK SPACE}%"]
    assert told.loc["Peak allocated", ["A", "B", "B against A"]].tolist() == ["3.260", "3.000", "−0.260"]


def test_columns_without_differences_are_said_once(open_page, own_history):
    store = Store(own_history)
    for width in (512, 640):
        store.save_measurement(GenerationRequest(width=width, steps=20), A10, make_measured())
    at = open_page(HISTORY)
    assert "The same in every row: img2img, batch 1, 20 steps, synthetic weights." in texts(at.caption)
    # Neither has a prediction, and both have the installed versions.
    assert list(at.dataframe[0].value) == ["When, UTC", "Outcome", "GPU", "Size", "Allocated", "Reserved"]
    stale = make_environment(torch="2.11.0")
    store.save_measurement(GenerationRequest(width=768, batch=2), stale, make_measured())
    assert {"Batch", "Steps", "Versions"} <= set(open_page(HISTORY).dataframe[0].value)


def test_a_wide_window_shows_whole_columns_and_a_phone_the_result_first(open_page):
    frame = Runs(reference_runs()).frame
    columns, _ = columns_of(frame, phone=False)
    kept = fitting(frame, columns)
    assert kept[:3] == ["When, UTC", "Outcome", "GPU"]
    assert {"Size", "Allocated", "Dry run off by"} <= set(kept) < set(columns)
    first, _ = columns_of(frame, phone=True)
    assert first[:4] == ["Outcome", "GPU", "Size", "Allocated"]


def test_reference_runs_have_the_errors_of_accuracy_and_a_date(open_page, three_runs):
    frame = open_page(HISTORY, reference="true").dataframe[0].value
    shown = frame[frame["Origin"] == "reference"]
    graded = {one.observation.run_id: one for one in session.graded(True, lambda done: None)}
    runs = reference_runs()
    for name, basis in (("Dry run off by", "dry-run"), ("Formula off by", "formula")):
        expected = [100 * graded[run.measurement_id].error(basis) for run in runs]
        assert list(shown[name]) == pytest.approx(expected, abs=0.051)
    assert [f"{at:%Y-%m-%d}" for at in shown["When, UTC"]] == [run.created_at[:10] for run in runs]
    reserved = next(run for run in runs if run.measured.peak_allocated_bytes is None)
    at = open_page(HISTORY, run=reserved.measurement_id)
    assert "The dry run's reserved peak is" in texts(at.caption)
    assert f"recorded {reserved.created_at[:10]}" in texts(at.caption).replace("\\", "")


@pytest.mark.parametrize(
    ("length", "labels"),
    [
        (timedelta(0), "%H:%M:%S.%L"),
        (timedelta(minutes=1), "%H:%M:%S"),
        (timedelta(hours=3), "%H:%M"),
        (timedelta(hours=30), "%b %d, %H:%M"),
        (timedelta(days=30), "%Y-%m-%d"),
    ],
)
def test_labels_of_the_time_axis_all_differ(length, labels):
    began = datetime(2026, 6, 1, 6, 53, tzinfo=UTC)
    (low, high), found = time_axis([began, began + length])
    assert found == labels
    assert low < began and began + length < high
    quarters = [low + part * (high - low) / 4 for part in range(5)]
    told = [f"{at:{found.replace('.%L', '.%f')}}" for at in quarters]
    assert len(set(told)) == 5


def test_rerun_replaces_the_plan_on_verify(open_page, three_runs, no_driver):
    at = open_page(PLAN, width="1024", batch="4", gpu=["T4"])
    at.switch_page(HISTORY)
    at.query_params["run"] = three_runs[2]
    at.run()
    at.button(key="rerun").click().run()
    assert not at.exception and at.title[0].value == "Verify"
    assert (at.number_input(key="width").value, at.number_input(key="batch").value) == (768, 1)
    assert at.checkbox(key="force").value
    at.switch_page(PLAN).run()
    assert at.number_input(key="width").value == 768
    assert at.multiselect(key="gpu").value == ["T4"]


@pytest.mark.parametrize("emulated", [8 * GIB, 15_634_661_375, None])
def test_rerun_keeps_an_emulated_capacity(open_page, own_history, nvml, cuda_build, emulated):
    environment = make_environment(emulated_bytes=emulated)
    run_id = Store(own_history).save_measurement(GenerationRequest(width=768), environment, make_measured())
    at = open_page(HISTORY, run=run_id)
    at.button(key="rerun").click().run()
    assert not at.exception and not at.error and at.title[0].value == "Verify"
    flag = {None: "", 8 * GIB: " --capacity 8GiB"}.get(emulated, " --capacity 15634661375B")
    assert texts(at.code) == f"python -m planner verify --width 768{flag}"
    assert not at.button(key="verify").disabled


def test_rerun_on_a_whole_gpu_clears_the_capacity(open_page, three_runs, nvml, cuda_build):
    at = open_page(VERIFY)
    at.text_input(key="capacity").set_value("8GiB").run()
    at.switch_page(HISTORY)
    at.query_params["run"] = three_runs[0]
    at.run()
    at.button(key="rerun").click().run()
    assert at.title[0].value == "Verify"
    assert at.text_input(key="capacity").value == ""


def test_an_emulated_run_is_marked(open_page, own_history):
    store, whole = Store(own_history), make_environment(card="NVIDIA H100 80GB HBM3", total_bytes=85_000_000_000)
    emulated = replace(whole, emulated_bytes=16 * GIB)
    runs = [store.save_measurement(GenerationRequest(), one, make_measured()) for one in (whole, emulated, emulated)]
    name = "NVIDIA H100 80GB HBM3, 16 GiB emulated"
    at = open_page(HISTORY, run=runs[:2])
    assert not at.exception
    assert list(at.dataframe[0].value["GPU"]) == [name, name, "NVIDIA H100 80GB HBM3"]
    assert at.multiselect(key="filter-card").options == ["NVIDIA H100 80GB HBM3", name]
    # They are told apart by it, and what differs says it in bytes.
    assert f"**B** {name}" in texts(at.markdown)
    assert list(compared(at).loc["Emulated capacity", ["A", "B"]]) == ["–", "16.000"]
    # Repeats are on one kind of card: the two, not the three.
    assert at.selectbox(key="repeated").options == [f"{GenerationRequest().describe()}: 2 runs"]
    at = open_page(HISTORY, run=runs[1])
    assert f"**Completed** on {name}" in texts(at.markdown)
    assert "- emulated capacity: 16.00 GiB" in "\n".join(texts(one.markdown) for one in at.expander)
    at.button(key="delete").click().run()
    assert f"on {name}, " in texts(at.markdown) and "This cannot be undone." in texts(at.markdown)
    row = next(csv.DictReader(io.StringIO(csv_of(store.measurements()).decode())))
    assert (row["card"], row["card_emulated_bytes"]) == ("NVIDIA H100 80GB HBM3", "17179869184")


def test_a_run_of_the_default_request_replaces_another_plan(open_page, three_runs):
    at = open_page(PLAN, width="1024", task="txt2img", offload="model")
    at.switch_page(HISTORY)
    at.query_params["run"] = three_runs[0]
    at.run()
    at.button(key="plan-it").click().run()
    assert at.title[0].value == "Plan"
    assert "img2img 512×512, batch 1, guided (UNet batch 2), 50 steps." in answered(at)


def test_deleting_asks_first(open_page, three_runs, own_history):
    # That the question is answered is tried in a browser: a dialog reruns alone, which AppTest cannot do.
    at = open_page(HISTORY, run=three_runs[0])
    at.button(key="delete").click().run()
    keep, delete = at.button(key="keep"), at.button(key="confirm-delete")
    assert (keep.label, keep.proto.type) == ("Keep the run", "primary")
    assert delete.label.startswith("Delete the run of 20") and delete.proto.type == "secondary"
    assert [one.key for one in at.button if one.key in ("keep", "confirm-delete")] == ["keep", "confirm-delete"]
    assert "This cannot be undone" in texts(at.markdown)
    assert len(Store(own_history).measurements()) == 3


def test_an_import_is_read_once_and_counted(open_page, upload, own_history):
    runs = [imported(number, GenerationRequest(width=640), A10) for number in range(2)]
    lines = json_lines_of(runs)
    at = upload(open_page(HISTORY), lines)
    assert not at.exception
    assert texts(at.success) == "Imported 2 runs, 0 were already known."
    assert len(at.dataframe[0].value) == 2
    assert "synthetic weights, imported." in texts(at.caption)
    Store(own_history).delete_measurement(runs[0].measurement_id)
    at.run()
    assert len(at.dataframe[0].value) == 1
    assert texts(upload(at, lines).success) == "Imported 1 run, 1 was already known."
    at = open_page(HISTORY, run=runs[0].measurement_id)
    assert any("imported" in badge for badge in badges(at)) and at.button(key="delete")


@pytest.mark.parametrize("broken", [b"{}\n", b"\xff\xfe", b'{"a": "[link](https://example.org)"}\n', b"x" * 100_000])
def test_a_broken_file_is_refused_completely(open_page, upload, own_history, broken):
    good = json_lines_of([imported(1, GenerationRequest(), A10)])
    at = upload(open_page(HISTORY), good + broken)
    assert not at.exception
    assert "Line 2" in texts(at.error) and "Nothing was imported." in texts(at.error)
    assert "](https" not in at.error[0].value
    assert Store(own_history).measurements() == []


def test_an_imported_text_is_shown_as_text(open_page, own_history):
    card = "=1+1 ![x](https://example.org/x.png) `code`"
    run = imported(1, GenerationRequest(), make_environment(card=card, driver="`x` ![y](https://example.org)"))
    Store(own_history).import_measurements([run])
    at = open_page(HISTORY, run=run.measurement_id)
    assert not at.exception
    assert "on =1+1 ![x](https://example.org/x.png)" in texts(at.markdown)
    assert not any("![" in re.sub(r"`[^`]*`|\\.", "", markdown.value) for markdown in at.markdown)
    assert "- driver: `'x' ![y](https://example.org)`" in [line for m in at.markdown for line in m.value.splitlines()]
    assert at.dataframe[0].value["GPU"].iloc[0].startswith("'=1+1")


def test_downloads_keep_bytes_and_escape_formulas():
    halves = [run for run in reference_runs() if run.scope != "pipeline"]
    runs = [imported(1, GenerationRequest(), A10), *halves[:2]]
    runs.append(imported(2, GenerationRequest(), make_environment(card="=HYPERLINK(1)"), reason="-1, @sum\n+2"))
    rows = list(csv.DictReader(io.StringIO(csv_of(runs).decode())))
    assert [row["peak_allocated_bytes"] for row in rows] == [str(run.measured.peak_allocated_bytes) for run in runs]
    assert rows[0]["vae_decoder_peak_allocated_bytes"] == "3500000000"
    assert rows[0]["dry_run_peak_allocated_bytes"] == str(DRY_RUN.peak_allocated_bytes)
    assert rows[3]["card"] == "'=HYPERLINK(1)" and rows[3]["reason"] == "'-1, @sum\n+2"
    assert rows[1]["task"] == runs[1].scope and rows[1]["source"] == runs[1].source
    again = read_runs(json_lines_of(runs).splitlines())
    assert [run.measurement_id for run in again] == [runs[0].measurement_id, runs[3].measurement_id]
    assert again[0] == runs[0]
    assert csv_of([]) == b""


def test_a_repeated_request_is_drawn_over_time(open_page, own_history, three_runs):
    assert not open_page(HISTORY).selectbox
    often, seldom = GenerationRequest(width=256), GenerationRequest(width=320)
    newer = make_environment(card="NVIDIA A10", torch="2.14.0")
    runs = [imported(number, often, A10 if number < 2 else newer) for number in range(3)]
    runs += [imported(number, seldom, A10) for number in (10, 11)]
    runs += [imported(20, GenerationRequest(width=384), A10), imported(21, GenerationRequest(width=384), newer)]
    runs.append(imported(30, seldom, make_environment()))
    Store(own_history).import_measurements(runs)
    at = open_page(HISTORY)
    options = at.selectbox(key="repeated").options
    assert [option.rpartition(": ")[2] for option in options] == ["3 runs", "2 runs", "2 runs"]
    assert options[0].startswith("img2img 256×512")
    alt = charts(at)[0]
    assert "NVIDIA A10, 3 runs: between 3.26 GiB and 3.26 GiB" in alt
    at = open_page(HISTORY, **{"filter-card": "Tesla T4"})
    assert not at.selectbox


def test_ten_thousand_runs_are_read_once(open_page, own_history, monkeypatch):
    store = Store(own_history)
    requests = [GenerationRequest(width=256 + 8 * number) for number in range(50)]
    store.import_measurements(imported(number, requests[number % 50], A10) for number in range(10_000))
    reads, read = [], Store.measurements

    def counting(self, *arguments):
        reads.append(arguments)
        return read(self, *arguments)

    monkeypatch.setattr(Store, "measurements", counting)
    at = open_page(HISTORY)
    assert not at.exception and len(at.dataframe[0].value) == 10_000
    assert "10,000 of 10,000 runs." in texts(at.caption)
    at.multiselect(key="filter-card").set_value(["NVIDIA A10"]).run()
    run = str(UUID(int=1, version=4))
    assert not open_page(HISTORY, run=run).exception
    assert reads == [()]
    store.delete_measurement(run)
    reads.clear()
    assert len(at.run().dataframe[0].value) == 9_999
    assert reads == [()]
