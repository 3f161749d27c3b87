"""Download runs as files, and import the runs of another planner."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import streamlit as st
from pandas import DataFrame

from cache.exchange.lines import lines_in, lines_of, read_runs
from cache.records import Measurement
from pages.shared.frame import session
from pages.shared.frame.escape import sentence
from pages.shared.frame.uploads import upload_caption
from pages.shared.guard.rights import demand
from pages.shared.history.runs import BASES, Runs, spreadsheet_safe, task_of
from planner.errors import PlannerError
from planner.request import FIELDS

_KEY, _RESULT = "import", "imported"
_STAGE_BYTES = ("text_encoder", "vae_encoder", "unet", "vae_decoder", "safety_checker")
# Task and size have columns of their own: half a pipeline has no task, and the size is the one that the pipeline uses.
_REQUEST = tuple(field.name for field in FIELDS if field.name not in ("task", "width", "height"))
_ENVIRONMENT = ("driver", "cuda", "cudnn", "torch", "diffusers", "transformers", "accelerate", "python", "dtype")
_ENVIRONMENT += ("attention", "allocator_settings", "weights")
_MEASURED = ("weights_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "peak_device_bytes", "context_bytes")
_MEASURED += ("num_alloc_retries", "load_seconds", "total_seconds", "seconds_per_step")


def csv_row(run: Measurement) -> dict[str, object]:
    """Return the run as a row of a spreadsheet: sizes in whole bytes, times in seconds."""
    request, environment, measured = run.request, run.environment, run.measured
    stages = {stage.stage: stage.peak_allocated_bytes for stage in measured.stages}
    predicted = {prediction.basis: prediction.peak_allocated_bytes for prediction in run.predictions}
    row: dict[str, object] = {
        "id": run.measurement_id,
        "measured_at_utc": run.created_at,
        "origin": run.origin,
        "source": run.source,
        "card": environment.card,
        "card_total_bytes": environment.total_bytes,
        "card_emulated_bytes": environment.emulated_bytes,
        "task": task_of(run),
        "width": request.effective_width,
        "height": request.effective_height,
    }
    row |= {name: getattr(request, name) for name in _REQUEST}
    row |= {"outcome": measured.outcome, "ended_in": measured.ended_in, "reason": measured.reason}
    row |= {name: getattr(measured, name) for name in _MEASURED}
    row |= {f"{stage}_peak_allocated_bytes": stages.get(stage) for stage in _STAGE_BYTES}
    for basis in ("calibrated", *BASES):
        row[f"{basis.replace('-', '_')}_peak_allocated_bytes"] = predicted.get(basis)
    row |= {name: getattr(environment, name) for name in _ENVIRONMENT}
    return {name: spreadsheet_safe(value) if isinstance(value, str) else value for name, value in row.items()}


def csv_of(runs: Iterable[Measurement]) -> bytes:
    """Write the runs as CSV, with a line of headings."""
    rows, text = [csv_row(run) for run in runs], io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue().encode()


def json_lines_of(runs: Iterable[Measurement]) -> bytes:
    """Write the runs as JSON lines, without reference runs, which every planner has."""
    return "".join(f"{line}\n" for line in lines_of(run for run in runs if run.origin != "reference")).encode()


def downloads(runs: Runs, shown: DataFrame) -> None:
    """Draw buttons that download the shown runs as CSV or JSON lines; a click makes the file."""
    places: Sequence[int] = shown.index.tolist()

    def made_by(make: Callable[[Iterable[Measurement]], bytes]) -> Any:
        return lambda: make([runs.measurements[place] for place in places])

    with st.popover("Download", icon=":material/download:", key="downloads", disabled=not places):
        st.caption(
            f"{len(places):,} run{'s' if places[1:] else ''} as shown, one a line, sizes in bytes. JSON lines can be "
            "imported; they leave out reference runs."
        )
        for label, name, mime, make in (
            ("CSV", "csv", "text/csv", csv_of),
            ("JSON lines", "jsonl", "application/jsonl", json_lines_of),
        ):
            st.download_button(
                label, made_by(make), f"will-it-fit-runs.{name}", mime, key=f"download-{name}", on_click="ignore"
            )


def _take_in() -> None:
    """Import the uploaded file; Streamlit calls this once for each file."""
    uploaded, (store, problem) = st.session_state[_KEY], session.store()
    if uploaded is None:
        return
    try:
        demand()
        if store is None:
            raise PlannerError(f"the history cannot be used: {problem}")
        done = store.import_measurements(read_runs(lines_in(uploaded)))
        runs, were = f"{done.added:,} run{'' if done.added == 1 else 's'}", "was" if done.known == 1 else "were"
        text = f"Imported {runs}, {done.known:,} {were} already known."
        st.session_state[_RESULT] = (uploaded.file_id, True, text)
    except PlannerError as error:
        st.session_state[_RESULT] = (uploaded.file_id, False, f"{sentence(str(error))} Nothing was imported.")


def import_control() -> None:
    """Draw the choice of a file to import, and the result of the import."""
    with st.popover("Import", icon=":material/upload_file:", key="imports"):
        uploaded = st.file_uploader(
            "Runs of another planner, as JSON lines",
            "jsonl",
            key=_KEY,
            on_change=_take_in,
            help="The file that Download or `python -m planner history export` writes. Known runs are skipped.",
        )
        upload_caption("JSON lines", "; `python -m planner history import` takes larger ones")
        file_id, good, text = st.session_state.get(_RESULT, (None, True, ""))
        if uploaded is not None and uploaded.file_id == file_id:
            if good:
                st.success(text, icon=":material/check_circle:")
            else:
                st.error(text, icon=":material/error:")
