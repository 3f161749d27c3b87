"""The rows of the catalogue: each becomes a card, and memory that nobody reported is derived from other rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from planner.cards.card import Card
from planner.units import gib_to_bytes

# Newer drivers keep more of a card's memory. Reports of one kind of card differ by at most this, on T4s.
DRIVER_GIB = 0.20
# With ECC on, GDDR memory uses this part of itself for the code.
_ECC_PART = 1 / 16

_COLLECTED = "usable memory: total_memory as torch reports it on Linux, collected from public reports, lowest first"
_REMEMBERED = "usable memory: 'total capacity' in public out-of-memory messages on Linux, noted without links"
_LOWERED = f"the low end is {DRIVER_GIB:.2f} GiB below them, the most that newer drivers were seen to keep of a card"
_DERIVED = (
    "usable memory: derived, for no report of this card was found: what reported cards of the same compute capability "
    "lack of their memory, at the low end as the next larger of them, at the high end as the next smaller"
)
_ECC = {
    "off": "",
    "on": "a sixteenth of its memory taken off for ECC",
    "optional": "a sixteenth of its memory taken off for ECC at the low end, none at the high end",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """Hold a card's data sheet and reports: memory in GiB, bandwidth in GB/s, rate in TFLOPS.

    `usable` is the range over reports, None where there is none; `is_lowered` says that they are older than today's
    drivers, or few. `names` are other names that mean this card, and `shared_names` those by which drivers call it
    though alone they mean a smaller one.
    """

    name: str
    memory: int
    capability: tuple[int, int]
    context: tuple[float, float]
    context_source: str
    usable: tuple[float, float] | None = None
    is_lowered: bool = False
    usable_source: str = _REMEMBERED
    ecc: Literal["off", "on", "optional"] = "off"
    rates: tuple[int | None, int | None] = (None, None)
    rates_source: str = "bandwidth and dense float16 tensor rate: NVIDIA data sheet"
    names: tuple[str, ...] = ()
    shared_names: tuple[str, ...] = ()
    cloud: tuple[str, ...] = ()
    is_laptop: bool = False
    note: str = ""

    @property
    def low_memory(self) -> float:
        """Return the GiB that are left with ECC on, if the card has ECC."""
        return self.memory * (1 - _ECC_PART) if self.ecc != "off" else self.memory

    @property
    def high_memory(self) -> float:
        """Return the GiB that are left with ECC off, if it can be switched off."""
        return self.memory * (1 - _ECC_PART) if self.ecc == "on" else self.memory

    @property
    def reported(self) -> tuple[float, float] | None:
        """Return the range over reports in GiB, or None without a report.

        The low end is lowered by what newer drivers keep, if `is_lowered` says so.
        """
        if self.usable is None:
            return None
        low, high = self.usable
        return (low - DRIVER_GIB if self.is_lowered else low), high


def collected(low: float, high: float) -> dict:
    """Return the fields of a row with a range from public reports that include newer drivers."""
    return {"usable": (low, high), "usable_source": _COLLECTED}


def older(low: float, high: float) -> dict:
    """Return the fields of a row with few or old reports, whose low end is lowered."""
    return {"usable": (low, high), "is_lowered": True}


def usable_of(row: Row, rows: Sequence[Row]) -> tuple[float, float]:
    """Find the range of usable GiB: as reported, else derived from `rows` of its capability.

    The part of its memory that a card lacks grows with the memory. So at the low end a card lacks as much as the next
    larger one, or the same fraction as the largest; at the high end it lacks as much as the next smaller one, or the
    same fraction as the smallest.
    """
    if row.reported is not None:
        return row.reported
    alike = [(one, one.reported) for one in rows if one.capability == row.capability and one.reported is not None]
    lows = sorted((one.low_memory, ends[0]) for one, ends in alike)
    highs = sorted((one.high_memory, ends[1]) for one, ends in alike)
    larger = next((size for size, _ in lows if size >= row.low_memory), None)
    if larger is None:
        low = row.low_memory * lows[-1][1] / lows[-1][0]
    else:
        low = row.low_memory - max(size - usable for size, usable in lows if size == larger)
    smaller = next((size for size, _ in reversed(highs) if size <= row.high_memory), None)
    if smaller is None:
        high = row.high_memory * highs[0][1] / highs[0][0]
    else:
        high = row.high_memory - min(size - usable for size, usable in highs if size == smaller)
    return low, high


def card_of(row: Row, rows: Sequence[Row]) -> Card:
    """Make the card of a row among all `rows`, each number with its source."""
    low, high = usable_of(row, rows)
    if row.reported is None:
        usable = "; ".join(part for part in (_DERIVED, _ECC[row.ecc]) if part)
    else:
        usable = f"{row.usable_source}; {_LOWERED}" if row.is_lowered else row.usable_source
    return Card(
        name=row.name,
        usable_bytes=gib_to_bytes(low),
        usable_high_bytes=gib_to_bytes(high),
        context_low_bytes=gib_to_bytes(row.context[0]),
        context_bytes=gib_to_bytes(row.context[1]),
        compute_capability=row.capability,
        bandwidth_gb_s=row.rates[0],
        float16_tflops=row.rates[1],
        aliases=row.names,
        shared_names=row.shared_names,
        cloud=row.cloud,
        origin="catalogue",
        is_laptop=row.is_laptop,
        source="; ".join(part for part in (usable, row.context_source, row.rates_source, row.note) if part),
    )
