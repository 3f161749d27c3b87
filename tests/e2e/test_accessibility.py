"""Test every page with axe-core, and what axe cannot see: names of headings and the place in the navigation."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser import device, settle
from tests.e2e.visits import PAGES, fill


@pytest.fixture(scope="module")
def runs(history):
    return fill(history)


@pytest.fixture(scope="module", params=["light", "dark"])
def page(request, browser, app):
    with browser.new_context(**device(1280), color_scheme=request.param) as context:
        page = context.new_page()
        page.set_default_timeout(30_000)
        yield page


def serious(page) -> list[str]:
    """Return what axe finds, but for what it calls minor: rule, place and message of each."""
    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {node['target']}: {node['failureSummary']}"
        for rule in found
        if rule["impact"] != "minor"
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(page, app, runs, name):
    page.goto(f"{app}{PAGES[name].format(**runs._asdict())}")
    page.wait_for_selector("h1, h2")
    settle(page)
    page.wait_for_timeout(1200)
    assert page.get_by_test_id("stException").count() == 0
    assert serious(page) == []


def test_axe_sees_a_faint_text(page, app):
    page.goto(f"{app}/")
    page.wait_for_selector("h2")
    settle(page)
    page.evaluate("document.querySelector('h1').style.color = '#777777'; document.body.style.background = '#888888'")
    page.evaluate("document.querySelector('h1').style.background = '#888888'")
    assert any(line.startswith("color-contrast") for line in serious(page))


def test_the_navigation_marks_the_current_page(open_page):
    page = open_page("/?width=2048")
    pages = page.get_by_role("navigation", name="Pages")
    current = pages.locator("[aria-current=page]")
    for name in ("Plan", "Verify", "History", "Accuracy", "Plan"):
        pages.get_by_role("link", name=name, exact=True).click()
        page.wait_for_selector(f"h1:has-text('{name}')")
        expect(current).to_have_count(1)
        expect(current).to_contain_text(name)


def test_a_verdicts_heading_names_its_gpu(open_page):
    page = open_page("/?width=2048&height=2048&gpu=T4&gpu=A100-40GB")
    for name, verdict in (("T4", "tight"), ("A100-40GB", "fits")):
        heading = page.get_by_role("heading", level=2).filter(has_text=name)
        expect(heading).to_have_count(1)
        expect(heading).to_contain_text(verdict)
