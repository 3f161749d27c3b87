import os

import pytest
from playwright.sync_api import expect

from cache.history.store import Store
from tests.browser import CHROMIUM, chromium, device, server

# A loaded machine needs more time than the default.
expect.set_options(timeout=20_000)


def pytest_collection_modifyitems(items):
    if CHROMIUM:
        return
    if os.environ.get("CI"):
        raise pytest.UsageError("no chromium on this machine: continuous integration installs it, see .ci/run")
    for item in items:
        item.add_marker(pytest.mark.skip(reason="no chromium on this machine: apt-get install chromium"))


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> Store:
    """Create one history for the tests of a module."""
    return Store(tmp_path_factory.mktemp("history") / "planner.db")


@pytest.fixture(scope="module")
def app(history):
    with server(history.path) as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def open_page(browser, app):
    """Open an address of the app in a new browser context."""
    contexts = []

    def open_(path: str = "/", *, width: int = 1280, scheme: str = "light"):
        context = browser.new_context(**device(width), color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.goto(f"{app}{path}")
        page.wait_for_selector("h1")
        return page

    yield open_
    for context in contexts:
        context.close()
