"""Test the History page in a real browser, because only a browser can click the canvas of a table."""

import re
from urllib.parse import urljoin

import pytest
from playwright.sync_api import expect

from cache.history.store import Store
from pages.shared.history.files import json_lines_of
from planner.request import GenerationRequest
from tests.browser import settle
from tests.conftest import make_environment, make_measured
from tests.e2e.test_app import width_of

A10 = make_environment(card="NVIDIA A10")


@pytest.fixture
def runs(history):
    """Store two runs, and return them newest first."""
    for run in history.measurements():
        history.delete_measurement(run.measurement_id)
    history.save_measurement(GenerationRequest(), make_environment(), make_measured())
    history.save_measurement(GenerationRequest(width=768, steps=20), A10, make_measured(num_alloc_retries=2))
    return [run.measurement_id for run in history.measurements()]


def tick(page, row: int) -> None:
    """Tick a row of the table of runs; 0 is the first row below the header."""
    table = page.get_by_test_id("stDataFrame").first
    table.locator("canvas").first.wait_for()
    settle(page)
    table.click(position={"x": 16, "y": 53 + 35 * row})


def test_a_link_keeps_a_comparison(open_page, runs):
    page = open_page("/History")
    expect(page.get_by_text("2 of 2 runs")).to_be_visible()
    tick(page, 0)
    expect(page.get_by_role("button", name="Rerun")).to_be_visible()
    tick(page, 1)
    expect(page.get_by_text("2 runs compared")).to_be_visible()
    expect(page).to_have_url(re.compile(f"run={runs[0]}&run={runs[1]}$"))
    chart = page.get_by_test_id("stVegaLiteChart").first
    expect(chart).to_have_attribute("aria-label", re.compile("UNet: A 2.89 GiB, B 2.89 GiB"))
    page.go_back()
    expect(page.get_by_text("2 runs compared")).to_have_count(0)
    expect(page.get_by_text("Completed")).to_be_visible()
    linked = open_page(f"/History?run={runs[0]}&run={runs[1]}")
    expect(linked.get_by_text("2 runs compared")).to_be_visible()
    tick(linked, 0)
    expect(linked).to_have_url(re.compile(f"run={runs[1]}$"))


def test_a_reload_keeps_a_filter(open_page, runs):
    page = open_page("/History")
    page.get_by_role("combobox", name="GPU").click()
    page.get_by_role("option", name="NVIDIA A10").click()
    expect(page.get_by_text("1 of 2 runs. 1 hidden by GPU.")).to_be_visible()
    expect(page).to_have_url(re.compile(r"filter-card=NVIDIA(\+|%20)A10"))
    page.reload()
    expect(page.get_by_text("1 of 2 runs. 1 hidden by GPU.")).to_be_visible()
    page.get_by_role("button", name="Clear filters").click()
    expect(page.get_by_text("2 of 2 runs.")).to_be_visible()
    expect(page).not_to_have_url(re.compile("filter"))


def test_a_phone_folds_filters_behind_what_they_are(open_page, runs):
    page = open_page("/History", width=390)
    expect(page.get_by_role("combobox", name="GPU")).to_be_hidden()
    page.get_by_text("Filters: none").click()
    page.get_by_role("combobox", name="GPU").click()
    page.get_by_role("option", name="NVIDIA A10").click()
    expect(page.get_by_text("Filters: GPU NVIDIA A10")).to_be_visible()
    # More filters can be set: the label has changed, and the controls are still open.
    expect(page.get_by_role("combobox", name="Outcome")).to_be_visible()
    page.reload()
    expect(page.get_by_text("Filters: GPU NVIDIA A10")).to_be_visible()
    expect(page.get_by_text("1 of 2 runs.")).to_be_visible()


def test_deleting_asks_with_the_safe_button_first(open_page, history, runs):
    page = open_page(f"/History?run={runs[0]}")
    page.get_by_role("button", name="Delete", exact=True).click()
    asked = page.get_by_role("dialog")
    buttons = asked.get_by_role("button").filter(has_text="the run")
    expect(buttons).to_have_text([re.compile("Keep the run"), re.compile("Delete the run of")])
    asked.get_by_role("button", name="Keep the run").click()
    expect(asked).to_have_count(0)
    assert len(history.measurements()) == 2
    page.get_by_role("button", name="Delete", exact=True).click()
    asked.get_by_role("button", name="Delete the run of").click()
    expect(page.get_by_text("1 of 1 run.")).to_be_visible()
    assert [run.measurement_id for run in history.measurements()] == [runs[1]]


@pytest.mark.parametrize("width", [1280, 390])
def test_charts_log_no_warnings(open_page, history, runs, width):
    history.save_measurement(GenerationRequest(), make_environment(), make_measured())
    page = open_page("/History", width=width)
    # A comparison and the repeated request; on Accuracy the stages of a run beside what reference runs have.
    for path, charts in ((f"/History?run={runs[0]}&run={runs[1]}", 2), ("/Accuracy", 8)):
        logged = []
        page.on("console", lambda message, logged=logged: logged.append(message.text))
        page.goto(urljoin(page.url, path))
        drawn = page.locator("[data-testid=stVegaLiteChart] :is(canvas, svg.marks)")
        expect(drawn).to_have_count(charts, timeout=60_000)
        settle(page)
        assert [text for text in logged if text.startswith("WARN")] == []


def test_rerun_opens_verify_with_the_request_over_another_plan(open_page, runs):
    page = open_page(f"/History?width=1024&batch=4&run={runs[0]}")
    page.get_by_role("button", name="Rerun").click()
    expect(page.get_by_role("heading", name="Verify")).to_be_visible()
    expect(width_of(page)).to_have_value("768")
    expect(page.get_by_role("checkbox", name="Measure again")).to_be_checked()
    expect(page.get_by_text("python -m planner verify --width 768 --steps 20").first).to_be_visible()
    expect(page).to_have_url(re.compile("width=768"))
    expect(page).not_to_have_url(re.compile("batch=4|run="))


def test_downloaded_runs_can_be_imported_elsewhere(open_page, history, runs, tmp_path):
    page = open_page("/History")
    page.get_by_role("button", name="Download", exact=True).click()
    for label in ("CSV", "JSON lines"):
        with page.expect_download() as download:
            page.get_by_test_id("stDownloadButton").get_by_role("button", name=label).click()
        download.value.save_as(tmp_path / label)
    assert (tmp_path / "CSV").read_text().count("\n") == 3
    assert (tmp_path / "JSON lines").read_bytes() == json_lines_of(history.measurements())

    for run in runs:
        history.delete_measurement(run)
    page = open_page("/History")
    expect(page.get_by_text("No run was measured yet")).to_be_visible()
    page.get_by_role("button", name="Import").click()
    lines = {"name": "runs.jsonl", "mimeType": "application/jsonl", "buffer": (tmp_path / "JSON lines").read_bytes()}
    page.get_by_test_id("stFileUploader").locator("input").set_input_files(lines)
    expect(page.get_by_text("Imported 2 runs, 0 were already known.")).to_be_visible()
    expect(page.get_by_text("2 of 2 runs.")).to_be_visible()
    assert [run.origin for run in Store(history.path).measurements()] == ["imported", "imported"]


def test_the_keyboard_reaches_filters_and_table(open_page, runs):
    page = open_page("/History")
    page.get_by_test_id("stDataFrame").locator("canvas").first.wait_for()
    settle(page)
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText") or ""
        )
    told = " ".join(reached)
    assert all(name in told for name in ("GPU", "Outcome", "More filters", "Reference runs", "Import", "Download"))
