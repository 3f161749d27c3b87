"""The command ``gpus``: the catalogue."""

import click

from planner.answer import SCHEMA
from planner.cards.lookup import CATALOGUE, SLICES, card_row
from planner.cli.arguments import json_option
from planner.cli.output import print_json, say
from planner.report.text import cards_text


@click.command("gpus")
@json_option
def gpus_command(as_json: bool) -> int:
    """List the GPUs of the catalogue, with sources in --json."""
    if as_json:
        print_json(
            {
                "schema": SCHEMA,
                "gpus": [card_row(card) for card in CATALOGUE],
                "mig_slices": [card_row(card) for card in SLICES],
            }
        )
    else:
        print(cards_text(CATALOGUE))
        for note in dict.fromkeys(note for card in CATALOGUE for note in card.notes):
            say(f"verify no: {note}")
        say(f"MIG slices, by name: {', '.join(card.name for card in SLICES)}")
    return 0
