"""Test the routes beside the pages; tests/e2e/test_served.py requests them from a server."""

import streamlit as st

from pages.shared.server import app as served


def paths() -> list[str]:
    return [route.path for route in served._routes()]


def test_routes_behind_a_base_path():
    plain = paths()
    assert plain[0] == "/api/fit" and {"/api", "/api/{rest:path}", "/plan", "/history"} < set(plain)
    st.config.set_option("server.baseUrlPath", "/tools/plan/")
    try:
        under = paths()
    finally:
        st.config.set_option("server.baseUrlPath", "")
    answers = [path for path in plain if path.startswith("/api") or path in ("/healthz", "/metrics")]
    assert under == [*answers, *(f"/tools/plan{path}" for path in plain)]
