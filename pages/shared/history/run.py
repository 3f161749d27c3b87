"""Draw one measured run: outcome, peaks, and how far off each prediction was."""

from collections.abc import Sequence
from typing import Literal

import streamlit as st

from cache.outcomes import verdict_of
from cache.predictions import compare
from cache.records import ANSWERS, Measurement, Prediction
from pages.shared.frame.charts import comparison_chart
from pages.shared.frame.escape import code, plain, typeset
from pages.shared.history.errors import reference_predictions
from pages.shared.plan.verdicts import verdict_badge
from planner.components import STAGE_NAMES
from planner.units import gib

OUTCOME_WORDS = {
    "ok": "Completed",
    "out-of-memory": "Out of memory",
    "cancelled": "Cancelled",
    "failed": "Failed",
}
_SCOPE_WORDS = {"vae.encode": "the VAE's encoder", "vae.decode": "the VAE's decoder"}
_ORIGINS: dict[str, tuple[str, Literal["blue", "violet"], str]] = {
    "imported": (":material/upload_file:", "blue", "Imported from a file; measured by another planner."),
    "reference": (":material/menu_book:", "violet", "Measured and published by others; ships with the planner."),
}
EMULATED_HELP = (
    "torch refused to use more than this capacity, which includes the CUDA context. Kernels and context are those of "
    "the real GPU, which has more memory."
)
_FACT_NAMES = {"card": "GPU", "cuda": "CUDA", "cudnn": "cuDNN", "python": "Python"}
PHASE_NAMES = STAGE_NAMES | {
    "waiting": "Waiting for the device",
    "starting": "Starting the worker",
    "loading": "Loading",
    "warm-up": "Warm-up",
    "running": "Running",
    "unet": "Denoising",
    "reading back": "Reading back",
}
# The part of a run in which it ended, after ``Cancelled`` or ``Failed``.
_ENDED_IN = {
    "waiting": "while waiting for the device",
    "starting": "while the worker started",
    "loading": "while loading",
    "warm-up": "in the warm-up",
    "running": "while running",
    "text_encoder": "in the text encoder",
    "vae_encoder": "in the VAE encoder",
    "unet": "in the UNet",
    "vae_decoder": "in the VAE decoder",
    "safety_checker": "in the safety checker",
    "reading back": "while reading the images back",
}


def _metric(label: str, size_bytes: int | None, help_text: str) -> None:
    if size_bytes is not None:
        st.metric(label, gib(size_bytes), help=help_text)


def _heading(measurement: Measurement) -> None:
    measured, environment = measurement.measured, measurement.environment
    words = OUTCOME_WORDS[measured.outcome]
    if measured.ended_in:
        words += f" {_ENDED_IN.get(measured.ended_in, f'in {plain(measured.ended_in)}')}"
    with st.container(horizontal=True, vertical_alignment="center"):
        if environment.device_kind == "cuda":
            st.markdown(f"**{words}** on {plain(environment.card_name)}", width="content")
            if measurement.scope == "pipeline":
                verdict_badge(verdict_of(measurement))
            if environment.emulated_bytes is not None:
                st.badge("emulated capacity", icon=":material/compress:", color="orange", help=EMULATED_HELP)
        else:
            st.markdown(f"**{words}**", width="content")
            st.badge("CPU rehearsal", icon=":material/laptop_mac:", color="gray", help="It says nothing about GPUs.")
        if measurement.origin in _ORIGINS:
            icon, color, text = _ORIGINS[measurement.origin]
            st.badge(measurement.origin, icon=icon, color=color, help=text)
    at = plain(when(measurement))
    st.caption(f"{what(measurement)} · " + (f"recorded {at}" if measurement.origin == "reference" else f"{at} UTC"))
    if measurement.source:
        st.caption(f"Source: {plain(measurement.source)}")
    if alone := _SCOPE_WORDS.get(measurement.scope):
        st.info(
            f"Only {alone} was run. Its peaks do not include the weights and what else was allocated before.",
            icon=":material/info:",
        )
    if measured.outcome in ANSWERS and (line := predicted_line(measurement.predictions)):
        st.caption(line)
    # The heading already says that a run was cancelled.
    if measured.reason and measured.outcome != "cancelled":
        st.error(plain(measured.reason), icon=":material/error:")


def _peaks(measurement: Measurement) -> None:
    measured = measurement.measured
    on_cpu = measurement.environment.device_kind == "cpu"
    allocated = "Living tensors, counted one by one." if on_cpu else "The peak of tensors and workspaces together."
    device = "The process's resident memory." if on_cpu else "All memory in use on the GPU, by every process."
    with st.container(horizontal=True, gap="medium"):
        _metric("Peak allocated", measured.peak_allocated_bytes, allocated)
        _metric("Peak reserved", measured.peak_reserved_bytes, "Memory that torch's caching allocator held.")
        _metric("Peak in process" if on_cpu else "Peak on device", measured.peak_device_bytes, device)
        _metric("Context", measured.context_bytes, "Memory that CUDA took outside torch's allocator.")
        _metric("Weights", measured.weights_bytes, "Memory allocated before the run began.")
        if measured.num_alloc_retries is not None:
            st.metric(
                "Retries", measured.num_alloc_retries, help="How often the allocator freed its cache and tried again."
            )
        if measured.seconds_per_step is not None:
            st.metric("A step", f"{measured.seconds_per_step:.2f} s", help=f"{measured.total_seconds:.1f} s in total.")


def _stages(measurement: Measurement) -> None:
    rows = [
        {
            "Stage": STAGE_NAMES.get(stage.stage, stage.stage),
            "Allocated": "–" if stage.peak_allocated_bytes is None else gib(stage.peak_allocated_bytes),
            "Reserved": "–" if stage.peak_reserved_bytes is None else gib(stage.peak_reserved_bytes),
            "Seconds": f"{stage.seconds:.2f}",
        }
        for stage in measurement.measured.stages
    ]
    if measurement.environment.device_kind == "cpu":
        for row in rows:
            del row["Reserved"]
    st.dataframe(rows, hide_index=True, alt="Peaks and seconds of each stage")


def _predictions(measurement: Measurement) -> None:
    """Draw all predictions beside the measured peaks, and how far off each peak was."""
    if measurement.origin == "reference":
        _reference_predictions(measurement)
    by_basis = {prediction.basis: compare(measurement, prediction) for prediction in measurement.predictions}
    if not by_basis:
        return
    names = " and the ".join(basis.replace("-", " ") for basis in by_basis)
    st.markdown(f"**Compared with the {names}**")
    comparison_chart(by_basis)
    for basis, lines in by_basis.items():
        peak = next(line for line in lines if line.name == "Peak allocated")
        if measurement.measured.outcome == "ok" and peak.error is not None:
            st.caption(
                f"The {basis.replace('-', ' ')}'s allocated peak is {off_words(peak.error)}: "
                f"{gib(peak.predicted_bytes or 0)} predicted, {gib(peak.measured_bytes or 0)} measured."
            )


def _reference_predictions(measurement: Measurement) -> None:
    """Draw how far off the dry run and the formula are on a reference run, as on Accuracy."""
    predicted = reference_predictions().get(measurement.measurement_id)
    if predicted is None:
        return
    for basis in ("dry-run", "formula"):
        st.caption(
            f"The {basis.replace('-', ' ')}'s {predicted.peak} peak is {off_words(predicted.error(basis))}: "
            f"{gib(predicted.predicted[basis])} predicted, {gib(predicted.measured_bytes)} measured."
        )


def predicted_line(predictions: Sequence[Prediction]) -> str:
    """Say what each basis predicted before the run; empty if no basis had an answer."""
    said = [
        f"{prediction.basis.replace('-', ' ')} {prediction.verdict}, need {gib(prediction.need_bytes)}"
        for prediction in predictions
        if prediction.need_bytes is not None and prediction.verdict != "unknown"
    ]
    return f"Predicted before the run: {'; '.join(said)}." if said else ""


def when(measurement: Measurement) -> str:
    """Return when the run was measured, to the minute, or the day on which a reference run was recorded."""
    is_reference = measurement.origin == "reference"
    return measurement.created_at[:10] if is_reference else measurement.created_at[:16].replace("T", " ")


def what(measurement: Measurement) -> str:
    """Describe in one line what was run."""
    request, scope = measurement.request, measurement.scope
    if scope == "pipeline":
        return request.describe()
    size = f"{request.effective_width}×{request.effective_height}"
    return ", ".join([f"{scope} {size}", f"batch {request.batch}", *request.vae_options])


def off_words(error: float) -> str:
    """Say how far off a prediction was: ``2.3 % too low``, with a no-break space."""
    shown = typeset(f"{abs(error):.1%}")
    return typeset("within 0.1 %") if abs(error) < 0.0005 else f"{shown} too {'low' if error < 0 else 'high'}"


def measurement_view(measurement: Measurement) -> None:
    """Draw the run in full: heading, peaks, predictions, stages and environment."""
    _heading(measurement)
    measured = measurement.measured
    if measured.stages or measured.peak_allocated_bytes is not None or measured.peak_reserved_bytes is not None:
        _peaks(measurement)
        _predictions(measurement)
    if measured.stages:
        _stages(measurement)
    environment = measurement.environment
    with st.expander("GPU, versions and settings"):
        names = ("card", "driver", "compute_capability", "cuda", "cudnn", "torch", "diffusers", "transformers")
        names += ("accelerate", "python", "dtype", "attention", "allocator_settings", "weights")
        facts = [(name, getattr(environment, name)) for name in names]
        lines = [f"- {_FACT_NAMES.get(name, name.replace('_', ' '))}: {code(value)}" for name, value in facts if value]
        if environment.total_bytes:
            lines.append(f"- total memory: {gib(environment.total_bytes)}")
        if environment.emulated_bytes is not None:
            lines.append(f"- emulated capacity: {gib(environment.emulated_bytes)}")
        for holder in measurement.holders:
            lines.append(f"- also on the GPU: {plain(str(holder['name']))} ({plain(str(holder['pid']))})")
        lines.append(f"- run: {code(measurement.measurement_id)}")
        st.markdown("\n".join(lines))
