"""Write how wrong predictions were as text, Markdown and JSON: by GPU, by run, and what runs confirm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from planner.accuracy.by_gpu import (
    CONFIRMED_WITHIN,
    GRADED_BASIS,
    HALVES,
    PEAKS,
    STATES,
    WHOLE,
    Confirmed,
    GpuAccuracy,
    Tally,
    by_gpu,
    circumstances,
    confirmed,
    kinds_words,
    measured_gpus,
    median_words,
    off_words,
    tally,
    version_words,
    versions_words,
    within,
    work_of,
)
from planner.accuracy.grading import Graded
from planner.answer import SCHEMA
from planner.cards.card import family_of
from planner.report.text import text_table
from planner.units import MIB

OWN = "history"
NOTHING_AT_ALL = "not measured: no run on a GPU is in the history, and no reference run counts"
NOTES = (
    "off by: predicted against measured; negative if the prediction was too low. Each run is predicted from the "
    "other runs alone",
    f"confirmed: runs that the dry run predicts within {100 * CONFIRMED_WITHIN:.1f} %, of all runs with the condition",
)

Sources = Mapping[str, str]
RUN_HEADER = ("GPU", "request", "peak", "measured, MiB", "predicted, MiB", "off by", "inside", "with", "source")
_RUN_RIGHT = (3, 4, 5)
CONFIRMED_HEADER = ("compute capability", "measured on", *STATES)
GPU_HEADER = ("GPU", "runs", "peak", "median error", "worst")


def _run_lines(one: Graded, sources: Sources) -> list[tuple[str, ...]]:
    """Write a run's line, and another for its reserved peak if both were measured."""
    notes = [note for note in circumstances(one) if note != "reserved"]
    ends = ", ".join([versions_words(one), *notes]), sources.get(one.observation.run_id, OWN)

    def line(peak: str, measured: int, predicted: int, is_covered: bool | None) -> tuple[str, ...]:
        return (
            one.observation.card_name,
            work_of(one),
            peak,
            f"{measured / MIB:,.1f}",
            f"{predicted / MIB:,.1f}",
            off_words(predicted / measured - 1),
            "yes" if is_covered else "no",
            *ends,
        )

    lines = [line(one.peak, one.measured_bytes, one.predicted[GRADED_BASIS], one.is_covered)]
    reserved = one.observation.peak_reserved_bytes
    if one.peak == "allocated" and reserved:
        lines.append(line("reserved", reserved, one.reserved[GRADED_BASIS], one.is_reserved_covered))
    return lines


def confirmed_cells(one: Confirmed) -> tuple[str, ...]:
    """Write one compute capability as the cells under `CONFIRMED_HEADER`."""
    if not one.gpus:
        return (one.title, "none", "", "", "everything")
    return (one.title, ", ".join(one.gpus), *(", ".join(one.words(state)) for state in STATES))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Write rows as a Markdown table; the columns in `right` are flush right."""
    ruler = ("---:" if index in right else "---" for index in range(len(header)))
    lines = [header, tuple(ruler), *(tuple(map(_escaped, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def gpu_table(graded: Sequence[Graded]) -> str:
    """Write a Markdown line for each GPU with measured whole pipelines, and each kind of peak."""
    rows = []
    for gpu in measured_gpus(one for one in graded if one.is_whole):
        told = by_gpu(graded, gpu)
        for peak, found in zip(PEAKS, (told.allocated, told.reserved), strict=True):
            if found:
                worst = f"{off_words(found.worst_error)}, {work_of(found.worst)}"
                rows.append((gpu.name, str(len(found.runs)), peak, median_words(found.median_error), worst))
    return markdown_table(GPU_HEADER, rows, right=(1, 3))


def _shown(told: Sequence[GpuAccuracy], *, is_whole: bool) -> list[Graded]:
    """List the runs behind these answers, each once."""
    return [one for one in dict.fromkeys(one for gpu in told for one in gpu.runs_to_show) if one.is_whole == is_whole]


def accuracy_text(graded: Sequence[Graded], told: Sequence[GpuAccuracy], sources: Sources) -> str:
    """Write a sentence for each GPU, the runs with sources, and the confirmed conditions."""
    lines = []
    for gpu in told:
        lines += [gpu.sentence(), *(f"  {line}" for line in gpu.further_sentences())]
    parts = ["\n".join(lines) or NOTHING_AT_ALL]
    for is_whole, name in ((True, "whole pipelines"), (False, "halves of the VAE")):
        if shown := _shown(told, is_whole=is_whole):
            rows = [line for one in shown for line in _run_lines(one, sources)]
            parts.append(f"{name}\n\n{text_table(RUN_HEADER, rows, _RUN_RIGHT)}")
        if families := confirmed(graded, is_whole=is_whole):
            parts.append("\n".join([f"confirmed by {name}", *(f"  {one.sentence()}" for one in families)]))
    return "\n\n".join(parts)


def accuracy_markdown(graded: Sequence[Graded], told: Sequence[GpuAccuracy], sources: Sources) -> str:
    """Write Markdown sections: by GPU, whole pipelines, halves of the VAE, conditions."""
    lines = []
    for gpu in told:
        lines += [f"- **{gpu.sentence()}.**", *(f"  - {line}" for line in gpu.further_sentences())]
    sections = ["\n\n".join(("## By GPU", "\n".join(lines) or NOTHING_AT_ALL))]
    for is_whole, name in ((True, "Whole pipelines"), (False, "Halves of the VAE")):
        if shown := _shown(told, is_whole=is_whole):
            allocated, reserved = (tally(one for one in shown if one.peak == peak) for peak in PEAKS)
            counted = kinds_words(allocated, reserved, *(WHOLE if is_whole else HALVES))
            rows = [line for one in shown for line in _run_lines(one, sources)]
            sections.append(f"## {name}\n\n{counted}.\n\n{markdown_table(RUN_HEADER, rows, _RUN_RIGHT)}")
    tables = [
        f"{name}:\n\n{markdown_table(CONFIRMED_HEADER, [confirmed_cells(one) for one in families])}"
        for is_whole, name in ((True, "Whole pipelines"), (False, "Halves of the VAE"))
        if (families := confirmed(graded, is_whole=is_whole))
    ]
    within = f"Runs that the dry run predicts within {100 * CONFIRMED_WITHIN:.1f} %, of all runs with the condition."
    sections.append("\n\n".join(["## What is confirmed", within, *tables]))
    return "\n\n".join(sections)


def accuracy_object(graded: Sequence[Graded], told: Sequence[GpuAccuracy], sources: Sources) -> dict[str, Any]:
    """Return the whole JSON object of ``accuracy --json``."""
    shown = [*_shown(told, is_whole=True), *_shown(told, is_whole=False)]
    return {
        "schema": SCHEMA,
        "gpus": [gpu_row(one) for one in told],
        "runs": [run_row(one, sources.get(one.observation.run_id, OWN)) for one in shown],
        "confirmed": {
            "whole_pipelines": [confirmed_row(one) for one in confirmed(graded, is_whole=True)],
            "halves": [confirmed_row(one) for one in confirmed(graded, is_whole=False)],
        },
    }


def tally_row(found: Tally | None) -> dict[str, Any] | None:
    """Return a tally as JSON: errors are signed fractions, null if there are no runs."""
    if found is None:
        return None
    return {
        "runs": len(found.runs),
        "median_error": found.median_error,
        "worst_error": found.worst_error,
        "worst_run": found.worst.observation.run_id,
        "inside_interval": found.inside,
    }


def run_row(one: Graded, source: str) -> dict[str, Any]:
    """Return one graded run as JSON: sizes in bytes, errors as signed fractions, both by basis."""
    observation = one.observation
    low, high = one.interval_bytes
    return {
        "id": observation.run_id,
        "gpu": observation.card_name,
        "compute_capability": version_words(observation.capability),
        "scope": observation.scope,
        "request": observation.request.to_dict(),
        "attention": observation.attention,
        "versions": observation.versions,
        "peak": one.peak,
        "measured_bytes": one.measured_bytes,
        "predicted_bytes": dict(one.predicted),
        "errors": {basis: one.error(basis) for basis in one.predicted},
        "interval_bytes": [low, high],
        "is_inside_interval": one.is_covered,
        "met_end_of_memory": one.is_capped,
        "source": source,
    }


def gpu_row(told: GpuAccuracy) -> dict[str, Any]:
    """Return the accuracy on one GPU as JSON, without its runs."""
    return {
        "name": told.gpu.name,
        "compute_capability": version_words(told.gpu.capability),
        "is_measured": told.is_measured,
        "sentence": told.sentence(),
        "allocated": tally_row(told.allocated),
        "reserved": tally_row(told.reserved),
        "halves": tally_row(told.halves),
        "nearness": told.nearness,
        "nearest": [
            {
                "name": near.gpu.name,
                "compute_capability": version_words(near.gpu.capability),
                "allocated": tally_row(near.allocated),
                "reserved": tally_row(near.reserved),
            }
            for near in told.nearest
        ],
        "assumptions": list(told.assumed),
    }


def _agreeing(found: Tally | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"runs": len(found.runs), "within": within(found), "worst_error": found.worst_error}


def confirmed_row(one: Confirmed) -> dict[str, Any]:
    """Return the confirmed conditions of one compute capability as JSON."""
    return {
        "compute_capability": version_words(one.capability),
        "family": family_of(one.capability),
        "gpus": list(one.gpus),
        "conditions": {
            name: {
                "state": found.state,
                "allocated": _agreeing(found.allocated),
                "reserved": _agreeing(found.reserved),
            }
            for name, found in one.conditions.items()
        },
    }
