"""The runs of the History page, as values and as one table: made once, and kept until a run comes or goes.

Pandas is imported by the first table, after the page's first paint.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import streamlit as st
from pandas import DataFrame

from cache.history.reference import reference_runs
from cache.machine.versions import planned_for
from cache.predictions import peak_error
from cache.records import Measurement
from pages.shared.frame import session
from planner.units import gib_value

# Every table has these columns; another basis has one where a run has a prediction of it.
BASES = ("dry-run", "formula")


def off_column(basis: str) -> str:
    """The column that says how far this basis was off."""
    return f"{basis.replace('-', ' ').capitalize()} off by"


def task_of(run: Measurement) -> str:
    """What was run: the request's task, or the one part of the pipeline that was run alone."""
    return run.request.task if run.scope == "pipeline" else run.scope


def spreadsheet_safe(text: str) -> str:
    """Text of others that a spreadsheet would take for a formula, told to be text."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _percent(error: float | None) -> float | None:
    # As shown, so that what rounds to nothing has no sign.
    return None if error is None else round(error * 100, 1) + 0.0


def _gib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else gib_value(size_bytes)


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs, newest first, and what is looked up of them."""

    measurements: tuple[Measurement, ...]

    @cached_property
    def _by_id(self) -> dict[str, Measurement]:
        return {run.measurement_id: run for run in self.measurements}

    def find(self, measurement_id: str) -> Measurement | None:
        """The run of this id, or of the only id that begins so, or None."""
        if measurement_id in self._by_id:
            return self._by_id[measurement_id]
        found = [run for key, run in self._by_id.items() if key.startswith(measurement_id)] if measurement_id else []
        return found[0] if len(found) == 1 else None

    @cached_property
    def frame(self) -> DataFrame:
        """A row for each run: the table's columns by their headings, and in lower case what filters and charts need.

        It is shared by every visitor: take from it, never change it.
        """
        runs, versions = self.measurements, planned_for()
        errors = [{told.basis: peak_error(run, told) for told in run.predictions} for run in runs]
        request_ids = {request: request.request_id for request in {run.request for run in runs}}
        columns = {
            # Nobody said when a published run was measured.
            "When, UTC": pd.to_datetime(
                [None if run.origin == "reference" else run.created_at for run in runs], format="ISO8601", utc=True
            ),
            "Outcome": [run.measured.outcome for run in runs],
            # Every table can be downloaded as it is.
            "Card": [spreadsheet_safe(run.environment.card_name) for run in runs],
            "Task": [task_of(run) for run in runs],
            "Width": [run.request.effective_width for run in runs],
            "Height": [run.request.effective_height for run in runs],
            "Batch": [run.request.batch for run in runs],
            "Steps": pd.array([run.request.steps if run.scope == "pipeline" else None for run in runs], dtype="Int64"),
            "Options": [run.options for run in runs],
            # An all-empty column is no number to pandas, and would be shown as None.
            "Allocated": pd.Series([_gib(run.measured.peak_allocated_bytes) for run in runs], dtype="float64"),
            "Reserved": pd.Series([_gib(run.measured.peak_reserved_bytes) for run in runs], dtype="float64"),
        }
        for basis in dict.fromkeys((*BASES, *sorted({basis for told in errors for basis in told}))):
            off = [_percent(told.get(basis)) for told in errors]
            columns[off_column(basis)] = pd.Series(off, dtype="float64")
        columns |= {
            "Weights": [spreadsheet_safe(run.environment.weights.partition(":")[0]) for run in runs],
            "Versions": ["stale" if run.is_stale(versions) else "" for run in runs],
            "Origin": [run.origin for run in runs],
            "id": [run.measurement_id for run in runs],
            "request": [request_ids[run.request] for run in runs],
            "scope": [run.scope for run in runs],
        }
        frame = pd.DataFrame(columns)
        frame["pixels"] = frame["Width"] * frame["Height"]
        return frame


# One with the reference runs and one without.
@st.cache_resource(show_spinner=False, max_entries=2)
def _runs(revision: object, with_references: bool) -> Runs:
    return Runs(session.measurements() + (reference_runs() if with_references else ()))


def runs(with_references: bool) -> Runs:
    """Every run in the history, newest first, and after them the published ones if they are asked for."""
    return _runs(session.measurements_revision(), with_references)


def find(shown: Runs, measurement_id: str) -> Measurement | None:
    """The run of this id among those shown or, since a link may name one, among the published ones."""
    return shown.find(measurement_id) or Runs(reference_runs()).find(measurement_id)
