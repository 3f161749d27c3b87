"""``accuracy`` on the terminal: how wrong predictions were on each GPU, the runs with sources, what they confirm."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from planner.accuracy.by_gpu import (
    CONFIRMED_WITHIN,
    GRADED_BASIS,
    HALVES,
    PEAKS,
    STATES,
    WHOLE,
    Confirmed,
    Gpu,
    GpuAccuracy,
    by_gpu,
    circumstances,
    confirmed,
    confirmed_row,
    gpu_of,
    gpu_row,
    kinds_words,
    measured_gpus,
    median_words,
    off_words,
    run_row,
    tally,
    versions_words,
    work_of,
)
from planner.accuracy.grading import Graded
from planner.report.text import SCHEMA, text_table
from planner.units import MIB

# As of ``fit``: nothing to base an answer on.
NOTHING_MEASURED = 12
OWN = "history"
NOTHING_AT_ALL = "not measured: no run on a GPU is in the history, and no published one counts"
NOTES = (
    "off by: predicted against measured; negative is a prediction that was too low. Each run is predicted from the "
    "others alone",
    f"confirmed: runs that the dry run meets within {100 * CONFIRMED_WITHIN:.1f} %, of all that have the condition",
)

Sources = Mapping[str, str]
RUN_HEADER = ("GPU", "what ran", "peak", "measured, MiB", "predicted, MiB", "off by", "inside", "with", "source")
_RUN_RIGHT = (3, 4, 5)
CONFIRMED_HEADER = ("compute capability", "measured on", *STATES)
GPU_HEADER = ("GPU", "runs", "peak", "median error", "worst")


def _run_lines(one: Graded, sources: Sources) -> list[tuple[str, ...]]:
    """A run's line, and another for its reserved peak where both were measured."""
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
    """Write rows as a Markdown table; the columns named in `right` are flush right."""
    ruler = ("---:" if index in right else "---" for index in range(len(header)))
    lines = [header, tuple(ruler), *(tuple(map(_escaped, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def gpu_table(graded: Sequence[Graded]) -> str:
    """Write one Markdown line for each GPU whose whole pipelines were measured, and each kind of peak."""
    rows = []
    for gpu in measured_gpus(one for one in graded if one.is_whole):
        told = by_gpu(graded, gpu)
        for peak, found in zip(PEAKS, (told.allocated, told.reserved), strict=True):
            if found:
                worst = f"{off_words(found.worst_error)}, {work_of(found.worst)}"
                rows.append((gpu.name, str(len(found.runs)), peak, median_words(found.median_error), worst))
    return markdown_table(GPU_HEADER, rows, right=(1, 3))


def _shown(told: Sequence[GpuAccuracy], *, is_whole: bool) -> list[Graded]:
    """The runs behind these answers, each once."""
    return [one for one in dict.fromkeys(one for gpu in told for one in gpu.runs_to_show) if one.is_whole == is_whole]


def accuracy_text(graded: Sequence[Graded], told: Sequence[GpuAccuracy], sources: Sources) -> str:
    """Write a sentence for each GPU, then the runs with their sources, then what runs confirm."""
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
    """Write the same as Markdown sections: by GPU, whole pipelines, halves of the VAE, what is confirmed."""
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
    within = f"Runs that the dry run meets within {100 * CONFIRMED_WITHIN:.1f} %, of all that have the condition."
    sections.append("\n\n".join(["## What is confirmed", within, *tables]))
    return "\n\n".join(sections)


def accuracy_object(graded: Sequence[Graded], told: Sequence[GpuAccuracy], sources: Sources) -> dict[str, Any]:
    """Give the whole JSON object of ``accuracy --json``."""
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


def _asked(arguments: argparse.Namespace, graded: Sequence[Graded]) -> list[Gpu]:
    """The GPUs of the command line, or every one that was measured."""
    from planner.cli.main import _cards_from

    if arguments.gpu or arguments.gpu_memory is not None or arguments.compute_capability is not None:
        return list(dict.fromkeys(gpu_of(card) for card in _cards_from(arguments)))
    return measured_gpus(graded)


def accuracy(arguments: argparse.Namespace) -> int:
    """``accuracy``: exit 12 where a GPU that was asked for, or all of them, have no run of a whole pipeline.

    Raises:
        NoProgram: there are no memory programs, so that no run can be graded.
    """
    from cache.history.observations import gather
    from cache.history.reference import sources
    from cache.programs import find
    from planner.accuracy.grading import grade
    from planner.cli.main import _format_from, print_json, say
    from planner.errors import NoProgram

    as_format = _format_from(arguments)
    # A wrong name is said at once: grading takes seconds.
    _asked(arguments, ())
    library, notice = find()
    if library is None:
        raise NoProgram(notice or "there are no memory programs to grade runs by")
    if notice:
        say(notice)
    evidence, notice = gather(library, with_reference=not arguments.no_reference)
    if notice:
        say(f"{notice}; the answer stands without it")
    graded = grade(evidence, library=library)
    told = [by_gpu(graded, gpu) for gpu in _asked(arguments, graded)]
    if as_format == "json":
        print_json(accuracy_object(graded, told, sources()))
    else:
        write: Callable[..., str] = accuracy_markdown if as_format == "md" else accuracy_text
        print(write(graded, told, sources()))
        if as_format != "md":
            for note in NOTES:
                say(note)
    return 0 if told and all(one.is_measured for one in told) else NOTHING_MEASURED
