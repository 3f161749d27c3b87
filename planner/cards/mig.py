"""The MIG slices that people rent or cut themselves, as cards beside the catalogue.

They are estimates, and each says so in its `source`. For an attached slice the driver's report counts instead.
"""

from dataclasses import replace

from planner.cards.card import Card
from planner.cards.catalogue import CATALOGUE
from planner.units import gib_to_bytes

_GB = 10**9
# A slice has fewer multiprocessors than its card, and each takes part of the context, so its context may be as small
# as the smallest of the catalogue.
_CONTEXT_LOW = min(card.context_low_bytes for card in CATALOGUE)
_SOURCE = (
    "an estimate from the profile's name, not a report of such a slice: usable memory from {low}% of its GB as 10^9 "
    "bytes up to its GB as GiB; context up to the whole card's; rates in eighths of the whole card's"
)
# Each line has the whole card, the percentage of a profile's GB that is usable, and the profiles as compute slices and
# GB.
# The GB in the names of an H200's profiles are rounded up, so less of them is usable.
_PROFILES: tuple[tuple[str, int, tuple[tuple[int, int], ...]], ...] = (
    ("A100-40GB", 100, ((1, 5), (2, 10), (3, 20))),
    ("A100-80GB", 100, ((1, 10), (2, 20), (3, 40))),
    ("H100-80GB", 100, ((1, 10), (2, 20), (3, 40))),
    ("H200", 95, ((1, 18), (2, 35), (3, 71))),
)
# This maps compute slices to memory slices: a 3g profile has four of the card's eight memory slices.
_MEMORY_EIGHTHS = {1: 1, 2: 2, 3: 4}


def _slice(whole: Card, compute: int, size_gb: int, percent: int) -> Card:
    profile = f"{compute}g.{size_gb}gb"
    # The driver's name of an instance is the full name of its card with "MIG" after it.
    names = [f"{alias} MIG {profile}" if " " in alias else f"{alias} {profile}" for alias in whole.aliases]
    return replace(
        whole,
        name=f"{whole.name} {profile}",
        model="",
        shared_names=(),
        aliases=(*names, f"{whole.name} MIG {profile}"),
        usable_bytes=size_gb * _GB * percent // 100,
        usable_high_bytes=gib_to_bytes(size_gb),
        context_low_bytes=_CONTEXT_LOW,
        bandwidth_gb_s=(whole.bandwidth_gb_s or 0) * _MEMORY_EIGHTHS[compute] // 8,
        float16_tflops=(whole.float16_tflops or 0) * compute // 8,
        source=f"MIG slice of {whole.name}: {_SOURCE.format(low=percent)}",
    )


_WHOLE = {card.name: card for card in CATALOGUE}

SLICES: tuple[Card, ...] = tuple(
    _slice(_WHOLE[name], compute, size_gb, percent)
    for name, percent, profiles in _PROFILES
    for compute, size_gb in profiles
)
