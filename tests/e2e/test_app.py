"""Test the pages in a real browser, with the real worker."""

import json
import re
import subprocess
import sys
import urllib.request
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from planner.cards.lookup import card_named
from planner.fit import fit
from planner.formula import estimate
from planner.request import GenerationRequest
from planner.units import gib
from tests.browser import settle
from tests.conftest import ROOT, make_environment, make_measured
from tests.ui.conftest import headroom

REHEARSAL = "width=64&height=64&steps=2"


def width_of(page):
    return page.get_by_role("spinbutton", name="Width, px")


def go(page, name: str) -> None:
    page.get_by_test_id("stMain").get_by_role("link", name=name, exact=True).click()
    page.wait_for_selector(f"h1:has-text('{name}')")


def test_a_change_reaches_verdicts_and_address(open_page):
    page = open_page("/?tab=Why")
    expect(page.get_by_text(headroom(fit(GenerationRequest(), card_named("T4"))))).to_be_visible()
    expect(page.get_by_role("heading", name=re.compile("fits$"))).to_have_count(3)
    expect(page.get_by_test_id("stVegaLiteChart").first).to_be_visible()
    width_of(page).fill("2048")
    width_of(page).press("Enter")
    request = GenerationRequest(width=2048)
    expect(page.get_by_text(headroom(fit(request, card_named("T4"))))).to_be_visible()
    expect(page.get_by_text(f"total = {gib(estimate(request).total_bytes)}")).to_be_visible()
    expect(page).to_have_url(re.compile(r"\?tab=Why&width=2048$"))


def test_a_link_keeps_the_plan_on_every_page(open_page):
    page = open_page("/Verify?width=768&batch=2&task=txt2img")
    expect(width_of(page)).to_have_value("768")
    expect(page.get_by_text("--task txt2img --width 768 --batch 2").first).to_be_visible()
    for name in ("Plan", "History", "Verify", "Plan"):
        go(page, name)
        expect(page).to_have_url(re.compile("width=768"))
    expect(width_of(page)).to_have_value("768")
    expect(page.locator("p", has_text="txt2img 768×512, batch 2")).to_be_visible()


def test_the_back_button_restores_the_plan(open_page):
    page = open_page("/?width=128&height=128&steps=3")
    expect(page.get_by_role("tab", name="Export")).to_be_visible(timeout=20_000)
    go(page, "Verify")
    expect(page).to_have_url(re.compile("Verify.*steps=3"))
    go(page, "History")
    expect(page).to_have_url(re.compile("History.*steps=3"))
    for _ in range(4):
        page.go_back()
        page.wait_for_timeout(1500)
        if "Verify" in page.url:
            break
    expect(page.get_by_role("heading", name="Verify")).to_be_visible()
    expect(width_of(page)).to_have_value("128")


def test_the_app_requests_no_other_host(browser, app):
    context = browser.new_context()
    page, hosts = context.new_page(), set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    for path in ("/", "/Verify", "/History"):
        page.goto(f"{app}{path}")
        page.wait_for_selector("h1")
        page.wait_for_timeout(2000)
    context.close()
    assert hosts - {None, ""} == {"127.0.0.1"}


@pytest.mark.parametrize(("typed", "name"), [("/history", "History"), ("/verify", "Verify"), ("/plan", "Plan")])
def test_page_names_in_small_letters_work(open_page, typed, name):
    page = open_page(f"{typed}?width=768")
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
    expect(page).to_have_url(re.compile("width=768"))


def test_a_typed_plan_is_kept(open_page):
    page = open_page()
    width_of(page).fill("640")
    width_of(page).press("Enter")
    expect(page).to_have_url(re.compile("width=640"))
    go(page, "Verify")
    expect(width_of(page)).to_have_value("640")
    expect(page).to_have_url(re.compile("width=640"))


def test_a_link_with_a_bad_value_says_so(open_page):
    page = open_page("/?width=99999&steps=20")
    expect(page.get_by_text("width must be between 64 and 8192, got 99999")).to_be_visible()
    expect(page.get_by_role("spinbutton", name="Steps")).to_have_value("20")
    expect(width_of(page)).to_have_value("512")


def test_a_bad_size_is_said_in_place(open_page):
    page = open_page("/?task=txt2img")
    width_of(page).fill("500")
    width_of(page).press("Enter")
    expect(page.get_by_text("Width must be a multiple of 8, got 500 (nearest: 496 or 504).")).to_be_visible()
    expect(page.get_by_text("Traceback")).to_have_count(0)


def test_a_rehearsal_from_start_to_deletion(open_page, history):
    page = open_page(f"/Verify?{REHEARSAL}")
    expect(page.get_by_text("No GPU to measure here")).to_be_visible()

    page.get_by_role("button", name="Verify").click()
    expect(page.get_by_text("Loading: libraries")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancelled while loading")).to_be_visible()

    page.get_by_role("button", name="Verify").click()
    seen = set()
    for phase in ("Loading", "UNet|VAE|Safety|Warm-up|Reading"):
        expect(page.get_by_test_id("stProgress")).to_contain_text(re.compile(phase), timeout=60_000)
        seen.add(phase)
        if len(seen) == 1:
            page.reload()
    expect(page.get_by_text("Completed")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Compared with the dry run and the formula")).to_be_visible()
    expect(page.get_by_text("The model stays loaded")).to_be_visible(timeout=10_000)

    page.get_by_role("button", name="Verify").click()
    expect(page.get_by_text("This result is from the history")).to_be_visible()

    page.get_by_role("button", name="Free memory").click()
    expect(page.get_by_text("The model stays loaded")).to_have_count(0)

    assert [run.measured.outcome for run in history.measurements()] == ["ok", "cancelled"]
    go(page, "History")
    expect(page.get_by_text("2 of 2 runs")).to_be_visible()
    table = page.get_by_test_id("stDataFrame")
    table.locator("canvas").first.wait_for()
    settle(page)
    # The rows are drawn on a canvas: the first one's checkbox lies below the header.
    table.click(position={"x": 16, "y": 53})
    expect(page.get_by_text("Completed")).to_be_visible()
    expect(page).to_have_url(re.compile("run="))

    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Keep the run").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert len(history.measurements()) == 2
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete the run of").click()
    expect(page.get_by_text("1 of 1 run.")).to_be_visible()
    assert [run.measured.outcome for run in history.measurements()] == ["cancelled"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/Verify", "/History"])
def test_nothing_is_cut_off_on_a_phone(open_page, history, path, scheme):
    if not history.measurements():
        history.save_measurement(GenerationRequest(), make_environment(), make_measured())
    run = history.measurements()[0].measurement_id
    page = open_page(f"{path}?width=2048&batch=8&run={run}", width=390, scheme=scheme)
    expect(page.get_by_test_id("stMain").get_by_role("link", name="History")).to_be_visible()
    page.wait_for_timeout(1500)
    # The input behind a slider's thumb is invisible.
    inside = page.evaluate(
        """[...document.querySelectorAll('[data-testid=stMain] :is(h1, p, label, button, code, canvas, input)')]
           .filter(e => e.type !== 'range')
           .filter(e => e.getClientRects().length && !e.closest('[data-testid=stDataFrame]'))
           .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert inside == []


def test_the_keyboard_reaches_the_controls(open_page):
    page = open_page("/?steps=20")
    expect(page.get_by_role("tab", name="Export")).to_be_visible(timeout=20_000)
    # Steps are under Advanced, which is open because the link sets them.
    expect(page.get_by_role("spinbutton", name="Steps")).to_be_visible()
    settle(page)
    reached = set()
    for _ in range(70):
        page.keyboard.press("Tab")
        label = page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText")
        reached.add((label or "").strip())
    assert {"Width, px", "Height, px", "Batch", "Steps", "Make it fit"} <= reached


def test_charts_have_descriptions(open_page):
    page = open_page("/?tab=Why")
    charts = page.get_by_test_id("stVegaLiteChart")
    expect(charts).to_have_count(3)
    need = gib(fit(GenerationRequest(), card_named("T4")).need_bytes)
    for chart, words in zip(
        charts.all(),
        (f"T4: needs {need} of 14.56 GiB, fits", "Memory over the dry run on T4", "memory in use at the peak"),
        strict=True,
    ):
        expect(chart).to_have_attribute("aria-label", re.compile(re.escape(words)))


def test_a_plans_link_works_over_http(app):
    with urllib.request.urlopen(f"{app}/api/fit?width=2048&height=2048&gpu=T4", timeout=30) as response:
        answer = json.load(response)
        assert response.headers["Planner-Exit-Code"] == "11"
    assert answer == json.loads(
        subprocess.run(
            [sys.executable, "-m", "planner", "fit", "--width", "2048", "--height", "2048", "--gpu", "T4", "--json"],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
        ).stdout
    )
