"""Test the embedded answer in a real browser: what a wiki or a dashboard shows of a plan."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser import device, settle


@pytest.fixture
def embedded(browser, app):
    """Open an address that has no controls to wait for."""
    with browser.new_context(**device(1280)) as context:
        page = context.new_page()

        def open_(path: str):
            page.goto(f"{app}{path}")
            return page

        yield open_


def test_the_embedded_answer_stands_alone(embedded):
    page = embedded("/?width=2048&height=2048&gpu=T4&gpu=A10&embed=true")
    expect(page.get_by_text("A10 is the only one of your GPUs that runs this comfortably")).to_be_visible(
        timeout=30_000
    )
    settle(page)
    expect(page.get_by_role("heading", name=re.compile("tight"))).to_be_visible()
    assert page.get_by_text("Guidance scale").count() == 0
    assert page.get_by_role("tab").count() == 0
    link = page.get_by_role("link", name="Open this plan")
    expect(link).to_have_attribute("href", re.compile(r"\?width=2048&height=2048&gpu=T4&gpu=A10$"))


def test_an_embedded_link_with_a_bad_value_says_so(embedded):
    page = embedded("/?width=wide&gpu=T4&embed=true")
    expect(page.get_by_text("width must be a whole number, got 'wide'")).to_be_visible(timeout=30_000)
    expect(page.get_by_text("T4 runs this")).to_be_visible()


def test_an_embedded_plan_that_cannot_be_answered_says_why(embedded):
    page = embedded("/?task=txt2img&images=500x512&gpu=T4&embed=true")
    expect(page.get_by_text("Width must be a multiple of 8, got 500")).to_be_visible(timeout=30_000)
    assert page.get_by_text("Traceback").count() == 0
