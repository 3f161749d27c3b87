"""Calls that pages share, each cached as long as it holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import streamlit as st

from cache import programs
from cache.exchange.lines import line_of
from cache.history.location import HistoryError
from cache.history.observations import Gathered, gather
from cache.history.reader import revision
from cache.history.store import Store
from cache.jobs.queue import Jobs
from cache.machine.attached import AttachedCard, cards, why_not_usable
from cache.machine.versions import planned_for
from cache.programs import Found
from cache.records import Measurement
from pages.shared.frame.escape import sentence
from planner.accuracy.grading import Graded, grade
from planner.components import MODEL_ID, SD_V15, ModelFacts
from planner.errors import InvalidArgument, NoGpu, PlannerError
from planner.programs.library import Library

_Answer = TypeVar("_Answer")

# While programs are being compiled, this often they are looked for again.
LOOK_AGAIN_S = 5
# A compile takes its lock once Python and torch are there.
STARTING_S = 20.0


@st.cache_resource(show_spinner=False)
def _open_store() -> Store:
    return Store()


def store() -> tuple[Store | None, str | None]:
    """The history, or None and what is wrong with it. A failure is not remembered: the next run tries again."""
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
    def on_unkept(run: Measurement, reason: str) -> None:
        # The page that asked for it may be closed: whoever runs the server finds it in its log, and can import it.
        print(f"a run could not be kept ({reason}); 'python -m planner history import' takes in its line:")
        print(line_of(run), flush=True)

    return Jobs(_store, on_unkept=on_unkept)


def jobs() -> Jobs | None:
    """The one job queue of this server, or None while there is no history to keep runs in."""
    return queue()[0]


def queue() -> tuple[Jobs | None, str | None]:
    """The one job queue of this server, or None and why nothing can be queued."""
    opened, problem = store()
    try:
        return (_jobs(opened), None) if opened else (None, problem)
    except PlannerError as error:
        return None, str(error)


def _asked(ask: Callable[[Store], _Answer], otherwise: _Answer) -> _Answer:
    """What the history answers; where it cannot any more, that is said in place."""
    opened, _ = store()
    if opened is None:
        return otherwise
    try:
        return ask(opened)
    except HistoryError as error:
        # Opened anew it is set aside if it is damaged, or says what is wrong with it on every page.
        _open_store.clear()
        st.error(sentence(str(error)), icon=":material/error:")
        return otherwise


# A resource: data is copied for each page, and decorating for that warns while no server runs yet.
@st.cache_resource(ttl=2, show_spinner=False)
def attached() -> tuple[list[tuple[AttachedCard, NoGpu | None]], NoGpu | None]:
    """The cards in this machine, each with why it cannot be used (or None), and why there is none (or None)."""
    try:
        return [(card, why_not_usable(card)) for card in cards()], None
    except NoGpu as error:
        return [], error


def facts() -> ModelFacts:
    """Parameter counts made from the installed modules where a run made them, else the published ones."""
    return _asked(lambda opened: opened.model_facts(MODEL_ID, planned_for()), None) or SD_V15


class _Programs:
    """The memory programs of this server: kept once they are the right ones, looked for again until then.

    What is computed from a library is kept by its identity, so every session is given the same object.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: Found | None = None
        self._looked_at = 0.0
        self._repaired = False
        self._begun: float | None = None

    def find(self) -> Found:
        """What there is now; the first time that it is not what it should be, a compile is started."""
        with self._lock:
            now = time.monotonic()
            if self._found is None or (self._found.notice and now - self._looked_at >= LOOK_AGAIN_S):
                self._found, self._looked_at = programs.find(), now
                if self._found.notice and not self._repaired:
                    self._repaired = True
                    self._begun = now if programs.repair_in_background() else None
            return self._found

    def is_compiling(self) -> bool:
        """Whether a compile is under way, or was begun so short a time ago that it cannot be seen yet."""
        just_begun = self._begun is not None and time.monotonic() - self._begun < STARTING_S
        return just_begun or programs.is_compiling()


@st.cache_resource(show_spinner=False)
def _programs() -> _Programs:
    return _Programs()


def library() -> tuple[Library | None, str | None]:
    """The memory programs to plan with, None where there are none, and what the user must know of them, or None."""
    return _programs().find()


def is_compiling() -> bool:
    """Whether the memory programs that are lacking are being compiled."""
    return _programs().is_compiling()


@st.cache_resource(show_spinner=False, max_entries=4)
def _evidence(_library: Library | None, digest: str, revision: tuple[str, int, str], with_published: bool) -> Gathered:
    return gather(_library, with_reference=with_published)


def evidence(with_published: bool) -> Gathered:
    """The measured runs that may speak, with the published ones if asked; the same object until a run comes or goes."""
    found = library()[0]
    try:
        now = revision()
        if now is None:
            # Opening it brings it into order, and remembers what was done.
            store()
            now = revision()
    except HistoryError:
        now = None
    return _evidence(found, found.digest if found else "", now or ("", 0, ""), with_published)


class _Grades:
    """The graded runs of this server, kept until a run comes or goes: thousands of requests take a while to replay."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[bool, tuple[Gathered, list[Graded]]] = {}

    def of(self, gathered: Gathered, with_published: bool, report: Callable[[float], None]) -> list[Graded]:
        """The grades of this evidence; `report` is told how much is done, 0 to 1, while they are made."""
        with self._lock:
            kept = self._kept.get(with_published)
            if kept is None or kept[0] is not gathered:
                kept = self._kept[with_published] = gathered, grade(gathered.evidence, report)
            return kept[1]


@st.cache_resource(show_spinner=False)
def _grades() -> _Grades:
    return _Grades()


def graded(with_published: bool, report: Callable[[float], None]) -> list[Graded]:
    """Every full run on a GPU with what each basis says of it, newest first; `report` follows the work, 0 to 1."""
    return _grades().of(evidence(with_published), with_published, report)


def measurement(measurement_id: str) -> Measurement | None:
    """One run, or None when it is not in the history."""
    try:
        return _asked(lambda opened: opened.measurement(measurement_id), None)
    except InvalidArgument:
        return None


def job_row(job_id: str) -> dict[str, Any] | None:
    """What the history knows of a job, or None."""
    return _asked(lambda opened: opened.job(job_id), None)


@st.cache_resource(show_spinner=False, max_entries=1)
def _measurements(_store: Store, path: str, revision: tuple[int, str]) -> tuple[Measurement, ...]:
    return tuple(_store.measurements())


def measurements_revision() -> tuple[str, tuple[int, str]] | None:
    """Something that differs once other runs are in the history, or it is another history; None without one."""
    return _asked(lambda opened: (str(opened.path), opened.revision()), None)


def measurements() -> tuple[Measurement, ...]:
    """Every run in the history, newest first; the database is read again only once a run was kept or deleted."""
    return _asked(lambda opened: _measurements(opened, str(opened.path), opened.revision()), ())
