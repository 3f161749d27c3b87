"""The command ``sizes``: the largest sizes that fit on each GPU, and the smallest GPU for the request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from planner.alternatives.sizes import RATIOS, Batch, CardSizes, Size, sizes, smallest_card
from planner.answer import SCHEMA
from planner.cards.lookup import Card
from planner.cli.arguments import GroupedCommand, cards_of, json_option, plan_options, request_options
from planner.cli.output import library_here, print_json, say
from planner.plan import Plan
from planner.report.text import card_notes, text_table
from planner.request import GenerationRequest
from planner.units import gib


def _size_object(size: Size | None) -> dict[str, int] | None:
    return None if size is None else {"width": size.width, "height": size.height}


def sizes_row(one: CardSizes) -> dict[str, Any]:
    """Return one entry of ``gpus`` in ``sizes --json``: sizes in pixels, null if none fits.

    Where nothing is known of the GPU, ``reason`` says why.
    """
    return {
        "name": one.card.name,
        "basis": one.basis,
        "usable_bytes": one.card.usable_bytes,
        **{name: _size_object(one.sizes[name]) for name in RATIOS},
        "batch": one.batch.images,
        "notes": list(one.card.notes),
        "reason": one.reason or None,
    }


def sizes_object(request: GenerationRequest, found: Sequence[CardSizes], smallest: Card | None) -> dict[str, Any]:
    """Return the whole JSON object of ``sizes --json``."""
    return {
        "schema": SCHEMA,
        "request": request.to_dict(),
        "gpus": [sizes_row(one) for one in found],
        "smallest": smallest.name if smallest else None,
    }


def _cell(what: Size | Batch | None) -> str:
    if what is None or (isinstance(what, Batch) and not what.images):
        return "none"
    text = str(what) if isinstance(what, Size) else str(what.images)
    return f"{text}+" if what.is_limit else text


def sizes_text(request: GenerationRequest, found: Sequence[CardSizes]) -> str:
    """Write the sizes that fit as a table; a ``+`` marks the largest size that is tried."""
    size = f"{request.effective_width}×{request.effective_height}"
    header = ("GPU", "usable", *RATIOS, f"batch at {size}", "basis")
    rows = [
        (
            one.card.name,
            gib(one.card.usable_bytes),
            *("unknown" if one.reason else _cell(what) for what in (*one.sizes.values(), one.batch)),
            one.basis,
        )
        for one in found
    ]
    return f"{request.describe()}\n\n{text_table(header, rows, right=range(1, 3 + len(RATIOS)))}"


@click.command("sizes", cls=GroupedCommand, epilog="\b\nExample:\n  will-it-fit sizes --batch 4 --gpu T4 --gpu A10")
@request_options
@plan_options("gpu_memory", "compute_capability", "workers")
@json_option
def sizes_command(plan: Plan, as_json: bool) -> int:
    """Find the largest sizes and batch that fit each GPU, and the smallest GPU for the request."""
    request, cards = plan.request, cards_of(plan)
    library = library_here()
    found = [sizes(request, card, library) for card in cards]
    smallest = smallest_card(request, cards, library)
    if as_json:
        print_json(sizes_object(request, found, smallest))
    else:
        print(sizes_text(request, found))
    for note in (*(f"{one.card.name}: {one.reason}" for one in found if one.reason), *card_notes(cards)):
        say(note)
    if any(what and what.is_limit for one in found for what in (*one.sizes.values(), one.batch)):
        say("+ marks the limit of the planner; larger ones were not tried")
    if smallest:
        say(f"the smallest of these GPUs for the request: {smallest.name}")
    else:
        say("none of these GPUs fits the request")
    return 0
