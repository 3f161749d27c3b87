"""Test both ways to start the app: they serve the HTTP answers and the pages from the start."""

import json
import urllib.error
import urllib.request

import pytest
from playwright.sync_api import expect

from tests.browser import MAKE_RUN, STREAMLIT_RUN, server


@pytest.fixture(scope="module", params=[MAKE_RUN, STREAMLIT_RUN], ids=["make run", "streamlit run"])
def app(request, history):
    with server(history.path, request.param) as address:
        yield address


def get(address: str, method: str = "GET") -> tuple[int, str, bytes]:
    """Return status, type and body of the answer, for any status."""
    asked = urllib.request.Request(address, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.headers.get_content_type(), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get_content_type(), error.read()


def check_answers(app: str) -> None:
    status, kind, body = get(f"{app}/api/fit?gpu=T4")
    assert (status, kind) == (200, "application/json")
    assert [row["name"] for row in json.loads(body)["gpus"]] == ["T4"]
    status, kind, body = get(f"{app}/api/fit?gpu=T5")
    assert (status, kind) == (400, "application/json")
    assert json.loads(body)["error"].startswith("unknown GPU 'T5'")


# First of all: no page was opened on this server yet.
def test_http_answers_before_and_after_a_page_is_opened(app, open_page):
    check_answers(app)
    expect(open_page("/").get_by_role("heading", name="Plan", exact=True)).to_be_visible()
    check_answers(app)


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/fit/", "/api/fits", "/api/fit/T4", "/api/v1/fit?gpu=T4"])
def test_unknown_addresses_are_not_found(app, path):
    status, kind, body = get(f"{app}{path}")
    assert (status, kind) == (404, "application/json")
    assert (
        json.loads(body)["error"]
        == f"{path.partition('?')[0]} is no address of this app - the HTTP answers are at /api/fit"
    )
    assert get(f"{app}/api/fit", "POST")[0] == 405


@pytest.mark.parametrize(
    ("path", "name"), [("/", "Plan"), ("/?gpu=T4", "Plan"), ("/Verify", "Verify"), ("/history", "History")]
)
def test_pages_are_served_beside_the_answers(open_page, path, name):
    expect(open_page(path).get_by_role("heading", name=name, exact=True)).to_be_visible()
