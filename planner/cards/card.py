"""A GPU as a capacity planner sees it: memory, compute capability, rates, and where each number is from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.units import short_gib

# A card is from our list, from a description by its user, or from this machine's driver.
Origin = Literal["catalogue", "described", "attached"]

_ARCHITECTURES = {5: "Maxwell", 6: "Pascal", 7: "Volta", 8: "Ampere", 9: "Hopper", 10: "Blackwell", 12: "Blackwell"}


# Source: CUDA 13.0 release notes.
OLDEST_FOR_CUDA_13 = (7, 5)
TOO_OLD = (
    "can be planned for and not verified: the pinned torch 2.13 is built with CUDA 13, which needs compute capability "
    f"{OLDEST_FOR_CUDA_13[0]}.{OLDEST_FOR_CUDA_13[1]} or newer"
)


def family_of(capability: tuple[int, int]) -> str:
    """Return NVIDIA's name of the architecture of a compute capability, such as ``Turing``."""
    exceptions = {(7, 5): "Turing", (8, 9): "Ada"}
    return exceptions.get(capability) or _ARCHITECTURES.get(capability[0], f"compute capability {capability[0]}")


def emulated_name(name: str, emulated_bytes: int | None) -> str:
    """Add an emulated capacity to the name of a card or a run, as in ``H100, 16 GiB emulated``.

    Without a capacity the name stays as it is.
    """
    return name if emulated_bytes is None else f"{name}, {short_gib(emulated_bytes)} emulated"


@dataclass(frozen=True, kw_only=True)
class Card:
    """Hold what is known of a card: memory in bytes, bandwidth in GB/s (10^9), rate in TFLOPS.

    `model` is the name under which runs on such cards are found: the catalogue's, for an attached card too. `name` is
    for people, and nothing is read back from it: the other fields hold the facts. Of an attached card, `index` is
    the driver's number and `instance` that of its MIG instance. `workers` processes share the card `shared_from`, which
    is None for a whole card; `emulated_bytes` is a capacity that is emulated, None where there is none.
    """

    name: str
    usable_bytes: int
    usable_high_bytes: int
    context_bytes: int
    context_low_bytes: int
    compute_capability: tuple[int, int]
    bandwidth_gb_s: int | None = None
    float16_tflops: int | None = None
    aliases: tuple[str, ...] = ()
    shared_names: tuple[str, ...] = ()
    cloud: tuple[str, ...] = ()
    source: str = ""
    model: str = ""
    origin: Origin = "described"
    is_laptop: bool = False
    index: int | None = None
    instance: int | None = None
    workers: int = 1
    emulated_bytes: int | None = None
    shared_from: Card | None = None

    def __post_init__(self):
        if not self.model:
            object.__setattr__(self, "model", self.name)

    @property
    def whole(self) -> Card:
        """Return the card that this card is a share of, or itself if it is whole."""
        return self.shared_from or self

    @property
    def runs_pinned_torch(self) -> bool:
        """Tell whether the pinned torch runs on it: if not, it can be planned for and not verified."""
        return self.compute_capability >= OLDEST_FOR_CUDA_13

    @property
    def notes(self) -> tuple[str, ...]:
        """List the notes that go with every answer about the card, each without its name."""
        return () if self.runs_pinned_torch else (TOO_OLD,)

    @property
    def best_bytes(self) -> int:
        """Return the most bytes that such a card was seen to leave to a process.

        A context of `context_bytes` is counted within them.
        """
        return max(self.usable_bytes, self.usable_high_bytes - self.context_low_bytes + self.context_bytes)

    @property
    def capability(self) -> str:
        """Return the compute capability as torch and NVIDIA write it, such as ``7.5``."""
        return f"{self.compute_capability[0]}.{self.compute_capability[1]}"
