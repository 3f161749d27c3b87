"""Write a plan as Markdown for a ticket: request, verdicts, notes, and the command that repeats it."""

import re
from collections.abc import Mapping, Sequence

from planner.alternatives.images import Listed
from planner.answer import SIGNS, Answer
from planner.formula import not_in_the_formula
from planner.report.text import card_notes, copies_words, threshold_notes
from planner.request import GenerationRequest
from planner.units import gib, signed_gib

FORMATS = ("table", "json", "md")


def fit_notes(request: GenerationRequest, answers: Sequence[Answer]) -> list[str]:
    """List the notes: reasons, measured runs, thresholds, assumptions, omissions."""
    notes = list(dict.fromkeys(answer.reason for answer in answers if answer.reason))
    notes += [a.evidence for a in answers if a.evidence and a.evidence not in (a.reason or "")]
    notes += card_notes([answer.card for answer in answers])
    notes += threshold_notes(answers)
    # Those who ask for shares of a GPU ask how many there could be.
    notes += [words for answer in answers if answer.card.workers > 1 and (words := copies_words(answer))]
    assumed = dict.fromkeys(note for answer in answers for note in answer.assumptions)
    notes += [f"assumed - {assumption}" for assumption in assumed]
    granted = dict.fromkeys(item for answer in answers for item in answer.stack)
    if granted:
        notes.append(f"taken for granted - {'; '.join(granted)}")
    if any(answer.basis == "formula" for answer in answers):
        notes += [f"not in the formula - {note}" for note in not_in_the_formula(request)]
    return notes


def _escaped(text: str) -> str:
    """Escape Markdown, which names and reasons contain only by accident."""
    return re.sub(r"([\\`*<>|\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else gib(size_bytes)


def _row(answer: Answer, *more: str) -> str:
    headroom = answer.headroom_bytes
    cells = (
        _escaped(answer.card.name),
        *more,
        f"{SIGNS[answer.verdict]} {answer.verdict}",
        _size(answer.need_bytes),
        gib(answer.card.usable_bytes),
        "-" if headroom is None else signed_gib(headroom),
        answer.basis,
    )
    return f"| {' | '.join(cells)} |"


def _after_lines(answers: Sequence[Answer]) -> list[str]:
    """Write what stays on each GPU after the call, where it is known."""
    lines = []
    for answer in answers:
        if after := answer.after_call:
            lines.append(
                f"- {_escaped(answer.card.name)}: after the call {gib(after.total_bytes)} stay in use: "
                f"{gib(after.allocated_bytes)} allocated, {gib(after.cached_bytes)} cached, of which "
                f"torch.cuda.empty\\_cache() gives back {gib(after.releasable_bytes)}, and the CUDA context of "
                f"{gib(after.context_bytes)}"
            )
    return lines


def _images_lines(images: Listed) -> list[str]:
    """Write the worst of the listed images on each card as a table, and then the list."""
    listed = "; ".join(row.text for row in images.rows)
    return [
        f"**{images.title}**",
        "",
        "| GPU | image | verdict | need | usable | headroom | basis |",
        "|---|---|---|---:|---:|---:|---|",
        *(_row(answer, row.text) for row, answer in images.worst),
        "",
        f"The list: {listed}. Each has the task and the options of the request above.",
    ]


def fit_markdown(
    request: GenerationRequest,
    answers: Sequence[Answer],
    versions: Mapping[str, str],
    *commands: str,
    images: Listed | None = None,
) -> str:
    """Write the answers as a Markdown section: request, table, notes, versions and commands.

    If `images` are listed beside the request, the worst of them on each card follows the request's own table.
    """
    lines = [
        "## Will it fit?",
        "",
        f"**{_escaped(request.describe())}**",
        "",
        "| GPU | verdict | need | usable | headroom | basis |",
        "|---|---|---:|---:|---:|---|",
        *map(_row, answers),
    ]
    if images:
        lines += ["", *_images_lines(images)]
    notes = fit_notes(request, answers)
    if notes:
        lines += ["", *(f"- {_escaped(note)}" for note in notes)]
    if after := _after_lines(answers):
        lines += ["", *after]
    lines += [
        "",
        "Need is the GPU memory with which the request runs comfortably, the CUDA context included. Headroom is usable "
        "minus need: if it is negative, so much memory is missing.",
        "",
        f"Stable Diffusion v1.5 with {', '.join(f'{name} {version}' for name, version in versions.items())}. "
        "To repeat it:",
        "",
        "```console",
        *(f"$ {command}" for command in commands),
        "```",
    ]
    return "\n".join(lines)
