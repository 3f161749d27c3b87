"""Calls that pages share, each cached as long as it holds.

The history is imported when it is first asked for: sqlite-utils brings pandas along, half a second that a page spends
better after its first paint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from cache.attached import AttachedCard, cards, why_not_usable
from cache.versions import installed
from planner.components import MODEL_ID, SD_V15, ModelFacts
from planner.errors import InvalidArgument, NoGpu

if TYPE_CHECKING:
    from cache.jobs import Jobs
    from cache.records import Measurement
    from cache.store import Store


@st.cache_resource(show_spinner=False)
def _open_store() -> Store:
    from cache.store import Store

    return Store()


def store() -> tuple[Store | None, str | None]:
    """The history, or None and what is wrong with it. A failure is not remembered: the next run tries again."""
    from cache.history_file import HistoryError

    try:
        opened = _open_store()
        if not opened.path.exists():
            # Moved or deleted under us: begin a new one, as a restart would.
            _open_store.clear()
            opened = _open_store()
        return opened, None
    except HistoryError as error:
        return None, str(error)


@st.cache_resource(show_spinner=False, on_release=lambda jobs: jobs.close())
def _jobs(_store: Store) -> Jobs:
    from cache.jobs import Jobs

    return Jobs(_store)


def jobs() -> Jobs | None:
    """The one job queue of this server, or None while there is no history to keep runs in."""
    opened, _ = store()
    return _jobs(opened) if opened else None


@st.cache_data(ttl=2, show_spinner=False)
def attached() -> tuple[list[tuple[AttachedCard, NoGpu | None]], NoGpu | None]:
    """The cards in this machine, each with why it cannot be used (or None), and why there is none (or None)."""
    try:
        return [(card, why_not_usable(card)) for card in cards()], None
    except NoGpu as error:
        return [], error


def facts() -> ModelFacts:
    """Parameter counts made from the installed modules where a run made them, else the published ones."""
    opened, _ = store()
    return (opened.model_facts(MODEL_ID, installed()) if opened else None) or SD_V15


def measurement(measurement_id: str) -> Measurement | None:
    """One run, or None when it is not in the history."""
    opened, _ = store()
    try:
        return opened.measurement(measurement_id) if opened else None
    except InvalidArgument:
        return None


def measurements() -> list[Measurement]:
    """Every run in the history, newest first."""
    opened, _ = store()
    return opened.measurements() if opened else []
