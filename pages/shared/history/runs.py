"""Keep the runs of the History page, as values and as a table, until a run is added or deleted.

This file imports pandas, so the page imports it after its first paint.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import streamlit as st
from pandas import DataFrame

from cache.history.reference import reference_runs
from cache.machine.versions import planned_for
from cache.records import Measurement
from pages.shared.frame import session
from pages.shared.history.errors import errors_of
from planner.units import gib_value

# Every table has columns of these bases; another basis has one if a run has a prediction of it.
BASES = ("dry-run", "formula")


def off_column(basis: str) -> str:
    """Return the heading of the column with the errors of this basis."""
    return f"{basis.replace('-', ' ').capitalize()} off by"


def task_of(run: Measurement) -> str:
    """Return the request's task, or the part of the pipeline that was run alone."""
    return run.request.task if run.scope == "pipeline" else run.scope


def spreadsheet_safe(text: str) -> str:
    """Prefix text that a spreadsheet would evaluate as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _size_text(run: Measurement) -> str:
    # Spaces in front make the table's order of texts that of the widths.
    return f"{run.request.effective_width:>4}×{run.request.effective_height}"


def _percent(error: float | None) -> float | None:
    # An error that rounds to zero must have no sign.
    return None if error is None else round(error * 100, 1) + 0.0


def _gib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else gib_value(size_bytes)


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs, newest first, with lookups by id and as a table."""

    measurements: tuple[Measurement, ...]

    @cached_property
    def _by_id(self) -> dict[str, Measurement]:
        return {run.measurement_id: run for run in self.measurements}

    def find(self, measurement_id: str) -> Measurement | None:
        """Return the run of this id, or of the only id that begins with it, or None."""
        if measurement_id in self._by_id:
            return self._by_id[measurement_id]
        found = [run for key, run in self._by_id.items() if key.startswith(measurement_id)] if measurement_id else []
        return found[0] if len(found) == 1 else None

    @cached_property
    def frame(self) -> DataFrame:
        """Runs as rows; columns in lower case are for filters and charts and are not shown.

        Sizes are in GiB and errors in per cent. Every visitor shares the frame, so never change it.
        """
        runs, versions = self.measurements, planned_for()
        errors = [errors_of(run) for run in runs]
        request_ids = {request: request.request_id for request in {run.request for run in runs}}
        columns = {
            "When, UTC": pd.to_datetime([run.created_at for run in runs], format="ISO8601", utc=True),
            "Outcome": [run.measured.outcome for run in runs],
            # Streamlit offers every table as a download.
            "GPU": [spreadsheet_safe(run.environment.card_name) for run in runs],
            "Task": [task_of(run) for run in runs],
            "Size": [_size_text(run) for run in runs],
            "Width": [run.request.effective_width for run in runs],
            "Height": [run.request.effective_height for run in runs],
            "Batch": [run.request.batch for run in runs],
            "Steps": pd.array([run.request.steps if run.scope == "pipeline" else None for run in runs], dtype="Int64"),
            "Options": [run.options for run in runs],
            # Without a dtype, pandas takes an empty column for objects, which are shown as None.
            "Allocated": pd.Series([_gib(run.measured.peak_allocated_bytes) for run in runs], dtype="float64"),
            "Reserved": pd.Series([_gib(run.measured.peak_reserved_bytes) for run in runs], dtype="float64"),
        }
        for basis in dict.fromkeys((*BASES, *sorted({basis for by_basis in errors for basis in by_basis}))):
            off = [_percent(by_basis.get(basis)) for by_basis in errors]
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


# One entry with the reference runs, and one without.
@st.cache_resource(show_spinner=False, max_entries=2)
def _runs(revision: object, with_references: bool, digest: str) -> Runs:
    return Runs(session.measurements() + (reference_runs() if with_references else ()))


def runs(with_references: bool) -> Runs:
    """Return the runs of the history, newest first, then reference runs if asked for."""
    library = session.library()[0]
    # The errors of reference runs follow from the memory programs.
    return _runs(session.measurements_revision(), with_references, library.digest if library else "")


def find(shown: Runs, measurement_id: str) -> Measurement | None:
    """Return the run of this id among `shown`, else among the reference runs, or None."""
    return shown.find(measurement_id) or Runs(reference_runs()).find(measurement_id)
