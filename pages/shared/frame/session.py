"""Cached calls that pages share."""

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

# The seconds between two looks for programs that are being compiled.
LOOK_AGAIN_S = 5
# The seconds until a compile has imported torch and taken its lock.
STARTING_S = 20.0


@st.cache_resource(show_spinner=False)
def _open_store() -> Store:
    return Store()


def store() -> tuple[Store | None, str | None]:
    """Return the history, or None and its error; the next run of a page tries again."""
    try:
        opened = _open_store()
        if not opened.path.exists():
            # Somebody moved or deleted the file: begin a new one, as a restart would.
            _open_store.clear()
            opened = _open_store()
        return opened, None
    except HistoryError as error:
        return None, str(error)


@st.cache_resource(show_spinner=False, on_release=lambda jobs: jobs.close())
def _jobs(_store: Store) -> Jobs:
    def on_unkept(run: Measurement, reason: str) -> None:
        # The page may be closed already, so the run goes to the server's log, from where it can be imported.
        print(f"a run could not be kept ({reason}); 'python -m planner history import' takes in its line:")
        print(line_of(run), flush=True)

    return Jobs(_store, on_unkept=on_unkept)


def jobs() -> Jobs | None:
    """Return the job queue of this server, None while there is no history to keep runs in."""
    return queue()[0]


def queue() -> tuple[Jobs | None, str | None]:
    """Return the job queue of this server, or None and why nothing can be queued."""
    opened, problem = store()
    try:
        return (_jobs(opened), None) if opened else (None, problem)
    except PlannerError as error:
        return None, str(error)


def _from_history(read: Callable[[Store], _Answer], otherwise: _Answer) -> _Answer:
    """Read from the history; if it fails, show the error and return `otherwise`."""
    opened, _ = store()
    if opened is None:
        return otherwise
    try:
        return read(opened)
    except HistoryError as error:
        # Opening it again sets a damaged file aside, or shows its error on every page.
        _open_store.clear()
        st.error(sentence(str(error)), icon=":material/error:")
        return otherwise


# Not `cache_data`, which copies for each page and warns while no server runs yet.
@st.cache_resource(ttl=2, show_spinner=False)
def attached() -> tuple[list[tuple[AttachedCard, NoGpu | None]], NoGpu | None]:
    """Return this machine's GPUs, each with its problem or None, and why there are none or None."""
    try:
        return [(card, why_not_usable(card)) for card in cards()], None
    except NoGpu as error:
        return [], error


def why_no_gpu(problem: NoGpu) -> str:
    """Return why there is no GPU, without the driver library's own words, which ``doctor`` prints."""
    return problem.reason.partition(" (")[0]


def facts() -> ModelFacts:
    """Return parameter counts, of the installed modules if a run has counted them."""
    return _from_history(lambda opened: opened.model_facts(MODEL_ID, planned_for()), None) or SD_V15


class _Programs:
    """The memory programs of this server, looked for again until they match the installed versions.

    Caches use the identity of a library as their key, so every session is given the same object.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: Found | None = None
        self._looked_at = 0.0
        self._repaired = False
        self._begun: float | None = None

    def find(self) -> Found:
        """Find the programs; the first time that they do not match, start a compile."""
        with self._lock:
            now = time.monotonic()
            if self._found is None or (self._found.notice and now - self._looked_at >= LOOK_AGAIN_S):
                self._found, self._looked_at = programs.find(), now
                if self._found.notice and not self._repaired:
                    self._repaired = True
                    self._begun = now if programs.repair_in_background() else None
            return self._found

    def is_compiling(self) -> bool:
        """Return whether a compile is running or is just starting."""
        just_begun = self._begun is not None and time.monotonic() - self._begun < STARTING_S
        return just_begun or programs.is_compiling()


@st.cache_resource(show_spinner=False)
def _programs() -> _Programs:
    return _Programs()


def library() -> tuple[Library | None, str | None]:
    """Return the memory programs or None, and a notice for the user or None."""
    return _programs().find()


def is_compiling() -> bool:
    """Return whether memory programs for the installed versions are being compiled."""
    return _programs().is_compiling()


@st.cache_resource(show_spinner=False, max_entries=4)
def _evidence(_library: Library | None, digest: str, revision: tuple[str, int, str], with_published: bool) -> Gathered:
    return gather(_library, with_reference=with_published)


def evidence(with_published: bool) -> Gathered:
    """Return the measured runs for answers, with the reference runs if `with_published`.

    It is the same object until a run is added or deleted.
    """
    found = library()[0]
    try:
        now = revision()
        if now is None:
            # Opening the history migrates or repairs it.
            store()
            now = revision()
    except HistoryError:
        now = None
    return _evidence(found, found.digest if found else "", now or ("", 0, ""), with_published)


class _Grades:
    """The graded runs of this server, kept until a run is added or deleted, since grading thousands takes seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[bool, tuple[Gathered, list[Graded]]] = {}

    def of(self, gathered: Gathered, with_published: bool, report: Callable[[float], None]) -> list[Graded]:
        """Return the grades of this evidence; `report` is called with the share done, 0 to 1."""
        with self._lock:
            kept = self._kept.get(with_published)
            if kept is None or kept[0] is not gathered:
                kept = self._kept[with_published] = gathered, grade(gathered.evidence, report)
            return kept[1]


@st.cache_resource(show_spinner=False)
def _grades() -> _Grades:
    return _Grades()


def graded(with_published: bool, report: Callable[[float], None]) -> list[Graded]:
    """Return every run on a GPU with the prediction of each basis, newest first.

    `report` is called with the share that is done, 0 to 1.
    """
    return _grades().of(evidence(with_published), with_published, report)


def measurement(measurement_id: str) -> Measurement | None:
    """Return the run of this id, None if it is not in the history."""
    try:
        return _from_history(lambda opened: opened.measurement(measurement_id), None)
    except InvalidArgument:
        return None


def job_row(job_id: str) -> dict[str, Any] | None:
    """Return the history's row of a job, or None."""
    return _from_history(lambda opened: opened.job(job_id), None)


@st.cache_resource(show_spinner=False, max_entries=1)
def _measurements(_store: Store, path: str, revision: tuple[int, str]) -> tuple[Measurement, ...]:
    return tuple(_store.measurements())


def measurements_revision() -> tuple[str, tuple[int, str]] | None:
    """Return a value that changes with the history or its runs; None without a history."""
    return _from_history(lambda opened: (str(opened.path), opened.revision()), None)


def measurements() -> tuple[Measurement, ...]:
    """Return every run in the history, newest first; read it only if it has changed."""
    return _from_history(lambda opened: _measurements(opened, str(opened.path), opened.revision()), ())
