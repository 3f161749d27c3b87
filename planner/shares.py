"""Which part of a card a share is, and another part of the same card."""

import re
from dataclasses import replace

from planner.errors import UnknownCard
from planner.gpus import Card, card_named, shared_card


def share_of(card: Card) -> tuple[str, int]:
    """The name of the whole card, and how many workers share it: 1 unless `planner.gpus.shared_card` made it."""
    match = re.fullmatch(r"(.+), 1 of ([0-9]+) workers", card.name)
    return (match[1], int(match[2])) if match else (card.name, 1)


def reshared(card: Card, workers: int) -> Card:
    """The same card, shared by so many workers in place of those that share it, or whole for one.

    A card that is not in the catalogue is known by its share alone: of the bytes that did not divide, it lacks some.

    Raises:
        InvalidArgument: `workers` is not a whole number from 1 to `planner.gpus.MAX_WORKERS`.
    """
    name, sharing = share_of(card)
    try:
        whole = card_named(name)
    except UnknownCard:
        usable, high = card.usable_bytes * sharing, card.usable_high_bytes * sharing
        whole = replace(card, name=name, usable_bytes=usable, usable_high_bytes=high)
    return shared_card(whole, workers)
