"""Test that every uploader names the one limit of the server."""

import ast
import tomllib

import pytest
import streamlit as st

from cache.exchange.lines import MAX_FILE_BYTES
from pages.shared.frame.uploads import limit_mb
from tests.conftest import ROOT
from tests.ui.conftest import texts

PAGES = [
    ("streamlit_app.py", {}, 1),
    ("streamlit_app.py", {"tab": "Several images"}, 2),
    ("pages/1_Verify.py", {}, 1),
    ("pages/2_History.py", {}, 1),
]
CONFIG = tomllib.loads((ROOT / ".streamlit/config.toml").read_text())


def calls_in(path) -> list[ast.Call]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "st.file_uploader"]


def test_uploaders_have_no_limit_of_their_own():
    calls = [call for path in (ROOT / "pages").rglob("*.py") for call in calls_in(path)]
    # The image of a request is asked for on two pages.
    assert len(calls) == 3
    assert not [call.lineno for call in calls for word in call.keywords if word.arg == "max_upload_size"]
    assert limit_mb() == CONFIG["server"]["maxUploadSize"] == 100
    # What the page takes, the history reads.
    assert limit_mb() * 2**20 <= MAX_FILE_BYTES


@pytest.mark.parametrize("limit", [100, 7])
@pytest.mark.parametrize(("page", "params", "count"), PAGES)
def test_every_uploader_names_the_servers_limit(open_page, no_driver, page, params, count, limit):
    """Check the default limit and another one set for the server."""
    was = limit_mb()
    st.config.set_option("server.maxUploadSize", limit)
    try:
        at = open_page(page, **params)
    finally:
        st.config.set_option("server.maxUploadSize", was)
    uploaders = at.get("file_uploader")
    assert len(uploaders) == count
    assert {one.proto.max_upload_size_mb for one in uploaders} == {limit}
    assert texts(at.caption).count(f"of up to {limit} MB. Other files turn red") == count
