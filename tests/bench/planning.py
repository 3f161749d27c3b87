"""Measure the largest sizes on GPUs, and a map of more than six hundred cells."""

import time
from collections.abc import Callable
from importlib import import_module

from planner.alternatives import sizes
from planner.alternatives.size_map import BATCHES, FEW_SIDES, by_batch, by_card, columns
from planner.cards.lookup import CATALOGUE, DEFAULT_CARDS, SLICES, card_named
from planner.programs.files import shipped
from planner.replay.fast_replay import warm_up
from planner.replay.peaks import need_bytes
from planner.request import GenerationRequest

Row = tuple[str, str, str]


def forget() -> None:
    """Clear all caches of answers."""
    for name in ("planner.fit", "planner.replay.minimum", "planner.replay.peaks", "planner.alternatives.sizes"):
        for kept in vars(import_module(name)).values():
            if getattr(kept, "__module__", None) == name and hasattr(kept, "cache_clear"):
                kept.cache_clear()


def cold_ms(act: Callable[[], object], times: int = 3) -> float:
    """Return the fewest milliseconds of this many calls, each with empty caches."""
    taken = []
    for _ in range(times):
        forget()
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return min(taken) * 1000


def planning() -> list[Row]:
    """Return rows for ``make bench``."""
    library, request = shipped(), GenerationRequest()
    cards = [card_named(name) for name in DEFAULT_CARDS]
    warm_up()
    need_bytes(request, cards[0], library)
    squares, few = columns(request, is_square=True), columns(request, FEW_SIDES, is_square=True)
    one = cold_ms(lambda: need_bytes(GenerationRequest(width=904, height=712), cards[0], library), 21)
    found = cold_ms(lambda: [sizes.sizes(request, card, library) for card in cards])
    all_cards = [*CATALOGUE, *SLICES]
    known = cold_ms(lambda: [sizes.sizes(request, card, library) for card in CATALOGUE], 1)
    of_cards = cold_ms(lambda: by_card(squares, all_cards, library))
    some_cards = CATALOGUE[::4][:28]
    of_some = cold_ms(lambda: by_card(squares, some_cards, library))
    of_batches = cold_ms(lambda: by_batch(few, BATCHES, cards[-1], library))
    return [
        ("One need of a size never seen", f"{one:.1f} ms", "a dry run of which one number is asked"),
        ("What fits on 3 cards", f"{found:.0f} ms", "four shapes and a batch each"),
        (f"What fits on all {len(CATALOGUE)} cards", f"{known:.0f} ms", ""),
        ("Map of sizes and cards", f"{of_cards:.0f} ms", f"{len(squares) * len(all_cards)} cells, all exact"),
        ("Map of sizes and 28 cards", f"{of_some:.0f} ms", f"{len(squares) * len(some_cards)} cells, all exact"),
        ("Map of sizes and batches", f"{of_batches:.0f} ms", f"{len(few) * len(BATCHES)} cells on {cards[-1].name}"),
    ]
