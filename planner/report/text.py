"""Answers as JSON and as text. Nothing here prints."""

from collections.abc import Sequence
from typing import Any

from planner.alternatives.images import ImageRow, Listed
from planner.answer import SCHEMA, SIGNS, Answer
from planner.cards.lookup import Card
from planner.components import STAGES
from planner.formula import Breakdown
from planner.plan import PlanAnswer
from planner.request import GenerationRequest
from planner.units import exact_size, gib, signed_gib


def answer_row(answer: Answer) -> dict[str, Any]:
    """Return one entry of ``gpus`` in the JSON contract: bytes, null without an answer."""
    return {
        "name": answer.card.name,
        "verdict": answer.verdict,
        "basis": answer.basis,
        "usable_bytes": answer.card.usable_bytes,
        "need_bytes": answer.need_bytes,
        "minimum_bytes": answer.minimum_bytes,
        "headroom_bytes": answer.headroom_bytes,
        "peak_allocated_bytes": answer.peak_allocated_bytes,
        "minimum_allocated_bytes": answer.minimum_allocated_bytes,
        "peak_reserved_bytes": answer.peak_reserved_bytes,
        "context_bytes": answer.context_bytes,
        "interval_bytes": None if answer.interval_bytes is None else list(answer.interval_bytes),
        "peak_stage": answer.peak_stage,
        "stages": {stage: answer.stages.get(stage) for stage in STAGES},
        "worst_need_bytes": answer.need_bytes if answer.worst_need_bytes is None else answer.worst_need_bytes,
        "capped_allocated_bytes": answer.capped_allocated_bytes,
        "capped_reserved_bytes": answer.capped_reserved_bytes,
        "after_call": None if answer.after_call is None else answer.after_call._asdict(),
        "copies": None if answer.copies is None else answer.copies._asdict(),
        "assumptions": list(answer.assumptions),
        "stack": list(answer.stack),
        "evidence": answer.evidence,
        "reason": answer.reason,
        "notes": list(answer.card.notes),
    } | ({} if answer.peak_pass is None else {"peak_pass": answer.peak_pass})


def formula_row(breakdown: Breakdown) -> dict[str, int]:
    """Return ``formula`` of the JSON contract, in bytes."""
    return {
        "base_bytes": breakdown.base_bytes,
        "vae_encoder_bytes": breakdown.vae_encoder_bytes,
        "unet_bytes": breakdown.unet_bytes,
        "vae_decoder_bytes": breakdown.vae_decoder_bytes,
        "total_bytes": breakdown.total_bytes,
    }


def fit_object(request: GenerationRequest, answers: Sequence[Answer], breakdown: Breakdown) -> dict[str, Any]:
    """Return the whole JSON object of ``fit --json``."""
    return {
        "schema": SCHEMA,
        "request": request.to_dict(),
        "gpus": [answer_row(answer) for answer in answers],
        "formula": formula_row(breakdown),
    }


def plan_object(found: PlanAnswer) -> dict[str, Any]:
    """Return the JSON object of ``fit --json``, with ``images`` if images are listed."""
    body = fit_object(found.plan.request, found.answers, found.formula)
    return body | {"images": images_object(found.images)} if found.images else body


def images_object(images: Listed) -> dict[str, Any]:
    """Return ``images`` of the JSON object: the list, and the worst image for each GPU."""

    def row_of(row: ImageRow) -> dict[str, int]:
        return {"width": row.width, "height": row.height, "batch": row.count}

    return {
        "list": [row_of(row) for row in images.rows],
        "worst": [{"image": row_of(row), **answer_row(answer)} for row, answer in images.worst],
    }


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Write rows in aligned columns; the columns in `right` are flush right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else gib(size_bytes)


def fit_text(request: GenerationRequest, answers: Sequence[Answer]) -> str:
    """Write the answers as a table under the request."""
    rows = [
        (
            answer.card.name,
            f"{SIGNS[answer.verdict]} {answer.verdict}",
            _size(answer.need_bytes),
            gib(answer.card.usable_bytes),
            "-" if answer.headroom_bytes is None else signed_gib(answer.headroom_bytes),
            answer.basis,
        )
        for answer in answers
    ]
    header = ("GPU", "verdict", "need", "usable", "headroom", "basis")
    return f"{request.describe()}\n\n{text_table(header, rows, right=(2, 3, 4))}"


def threshold_notes(answers: Sequence[Answer]) -> list[str]:
    """Write how each tight GPU may still run, and by how much memory each failing one misses."""
    notes = []
    for answer in answers:
        minimum, usable = answer.minimum_bytes, answer.card.usable_bytes
        # A measured answer has a single size and explains its own limits.
        if minimum is None or answer.basis in ("formula", "measured"):
            continue
        if answer.verdict == "tight" and answer.need_bytes is not None and answer.need_bytes <= usable:
            upper = gib(answer.worst_need_bytes or 0)
            said = f"the need fits, but the upper end of its range, {upper}, does not"
            notes.append(f"{answer.card.name}: {said}")
        elif answer.verdict == "tight" and minimum > usable:
            better = "on a GPU whose usable memory and CUDA context are at the better end of the reports"
            notes.append(f"{answer.card.name}: the minimum is {gib(minimum)}; it may run {better}{_capped(answer)}")
        elif answer.verdict == "tight":
            slower = f"with slower kernels or allocator retries{_capped(answer)}"
            notes.append(f"{answer.card.name}: runs from {gib(minimum)}, {slower}")
        elif answer.verdict == "no":
            notes.append(f"{answer.card.name}: even the minimum, {gib(minimum)}, is {gib(minimum - usable)} too much")
    return notes


def _capped(answer: Answer) -> str:
    if answer.less_on_card_bytes is None:
        return ""
    unlimited = _size(answer.peak_allocated_bytes)
    return f"; on this GPU its allocated peak is {gib(answer.less_on_card_bytes)}, with unlimited memory {unlimited}"


def card_notes(cards: Sequence[Card]) -> list[str]:
    """List the notes on these cards, each note once, after the names of its cards."""
    names: dict[str, list[str]] = {}
    for card in cards:
        for note in card.notes:
            names.setdefault(note, []).append(card.name)
    return [f"{', '.join(of)}: {note}" for note, of in names.items()]


def copies_words(answer: Answer) -> str:
    """Say how many copies run at once on the whole GPU, empty without an answer."""
    if answer.copies is None:
        return ""
    separate, shared = answer.copies
    what = "copy" if separate == 1 else "copies"
    return (
        f"{separate} {what} of this fit {answer.card.whole.name} as processes with a CUDA context each, {shared} if "
        "they share one, as with MPS; what a client of MPS takes for itself is estimated as nothing and not measured"
    )


def verify_command(request: GenerationRequest, emulated_bytes: int | None = None) -> str:
    """Write the command that measures this request; options with default values are left out.

    With `emulated_bytes` it measures at that capacity.
    """
    capacity = [] if emulated_bytes is None else [f"--capacity {exact_size(emulated_bytes)}"]
    return " ".join(["python -m planner verify", *request.arguments(), *capacity])


def cards_text(cards: Sequence[Card]) -> str:
    """Write the catalogue as a table."""
    rows = [
        (
            card.name,
            gib(card.usable_bytes),
            gib(card.context_bytes),
            card.capability,
            "-" if card.bandwidth_gb_s is None else f"{card.bandwidth_gb_s}",
            "-" if card.float16_tflops is None else f"{card.float16_tflops}",
            "yes" if card.runs_pinned_torch else "no",
            ", ".join(card.cloud) or "-",
        )
        for card in cards
    ]
    header = ("GPU", "usable", "context", "capability", "GB/s", "TFLOPS", "verify", "cloud")
    return text_table(header, rows, right=(1, 2, 3, 4, 5))
