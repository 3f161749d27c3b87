"""Which part of a card a share is."""

import re

from planner.gpus import Card


def share_of(card: Card) -> tuple[str, int]:
    """The name of the whole card, and how many workers share it: 1 unless `planner.gpus.shared_card` made it."""
    match = re.fullmatch(r"(.+), 1 of ([0-9]+) workers", card.name)
    return (match[1], int(match[2])) if match else (card.name, 1)
