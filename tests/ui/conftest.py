import re
import sys

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Element

from cache.jobs.queue import Jobs
from planner.answer import Answer
from planner.report.summary import deciding_need
from planner.units import signed_gib
from tests.conftest import ROOT

PAGES = ["streamlit_app.py", *sorted(f"pages/{path.name}" for path in (ROOT / "pages").glob("*.py"))]


@pytest.fixture(autouse=True)
def checked_charts(monkeypatch):
    """Check every chart that a test draws against Vega-Lite's schema, which the app skips."""
    monkeypatch.setattr("pages.shared.frame.charts.VALIDATE", True)


@pytest.fixture(autouse=True)
def fresh_caches():
    """Clear Streamlit's caches, which AppTest would share between tests."""
    st.cache_data.clear()
    st.cache_resource.clear()
    yield
    st.cache_data.clear()
    st.cache_resource.clear()


@pytest.fixture
def scripted(monkeypatch):
    """Replace workers by ones that follow a script instead of loading a model."""

    def follow(script: str, *more: str) -> None:
        command = [sys.executable, "-m", "tests.worker.scripted", script, *more]
        monkeypatch.setitem(Jobs.__init__.__kwdefaults__, "worker_command", lambda kind: command)

    return follow


@pytest.fixture
def open_page():
    """Open a page by its link, as a new visitor would."""

    def open_(page: str = "streamlit_app.py", **params) -> AppTest:
        at = AppTest.from_file(str(ROOT / PAGES[0]), default_timeout=30)
        if page != PAGES[0]:
            at.switch_page(page)
        for name, value in params.items():
            at.query_params[name] = value
        return at.run()

    return open_


def headroom(answer: Answer) -> str:
    """Return the headroom that Plan shows for an answer: at the upper end of its need, if that is a range."""
    need = deciding_need(answer)
    assert need is not None
    return signed_gib(answer.card.usable_bytes - need)


def following(elements, name: str):
    """Return the control of this name, whose key has a number that counts changes by other controls."""
    return next(one for one in elements if re.fullmatch(rf"{name}-\d+", one.key or ""))


def answered(at: AppTest) -> str:
    """Return the answer on top of Plan, as a person reads it: the sentence on the GPUs, and the request."""
    boxes = ("success", "warning", "error", "info")
    shown = [one for one in at.main if isinstance(one, Element) and one.type in boxes]
    return texts([next(one for one in shown if one.value.startswith("**"))])


def texts(elements) -> str:
    """Return what a person reads: without Markdown's escapes, with plain spaces."""
    joined = "\n".join(str(element.value) for element in elements).replace("\N{NO-BREAK SPACE}", " ")
    return re.sub(r"\\([^A-Za-z0-9\s])", r"\1", joined)
