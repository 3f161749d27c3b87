"""Find cards by name or by description, and make shares and emulated capacities of them.

Names match as `planner.cards.names` compares them, never by substring: "A10" would also be an A100.
"""

from dataclasses import replace

from planner.cards.card import Card, emulated_name, family_of
from planner.cards.catalogue import CATALOGUE
from planner.cards.mig import SLICES
from planner.cards.names import nearest, normalised
from planner.errors import InvalidArgument, UnknownCard
from planner.units import gib, parse_bytes

__all__ = (
    "CATALOGUE",
    "DEFAULT_CARDS",
    "MAX_WORKERS",
    "SLICES",
    "Card",
    "card_named",
    "card_row",
    "described_card",
    "emulated_card",
    "emulated_name",
    "family_of",
    "shared_card",
)

DEFAULT_CARDS = ("T4", "A10", "A100")
# This limits the processes that share one card, so that a typing mistake does not print a page of zeros.
MAX_WORKERS = 64

_BY_NAME = {normalised(name): card for card in (*CATALOGUE, *SLICES) for name in (card.name, *card.aliases)}
_SHARED: dict[str, list[Card]] = {}
for _card in CATALOGUE:
    for _name in _card.shared_names:
        _SHARED.setdefault(normalised(_name), []).append(_card)


def card_named(name: str, total_bytes: int | None = None) -> Card:
    """Find the card of this name or alias, in any case and with or without its brand.

    Drivers have one name for cards of several sizes: with `total_bytes` it means the card whose memory is nearest,
    else the smallest.

    Raises:
        UnknownCard: no card has this name; the message names a similar one if there is any.
    """
    key = normalised(name)
    card = _BY_NAME.get(key)
    if card is None:
        parts = [part.strip() for part in name.split(",")] if "," in name else []
        if parts and all(normalised(part) in _BY_NAME for part in parts):
            raise UnknownCard(name, None, tuple(parts))
        raise UnknownCard(name, nearest(name, {known: one.name for known, one in _BY_NAME.items()}))
    if total_bytes is None:
        return card
    return min([card, *_SHARED.get(key, ())], key=lambda one: abs(one.usable_high_bytes - total_bytes))


def described_card(gpu_memory: str, compute_capability: str) -> Card:
    """Make a card from its memory (``16GiB``) and its compute capability (``7.5``).

    Its context range covers the catalogue's cards of the same compute capability. Without such cards it covers those
    of the same major version, or else all.

    Raises:
        InvalidArgument: one of the texts breaks its rule.
    """
    usable_bytes = parse_bytes("gpu_memory", gpu_memory)
    major, dot, minor = compute_capability.partition(".")
    is_number = major.isascii() and major.isdigit() and minor.isascii() and minor.isdigit()
    if not (dot and is_number and len(major) <= 2 and 5 <= int(major) <= 20 and len(minor) == 1):
        raise InvalidArgument(
            "compute_capability", "must be a version from 5.0 up", compute_capability, "for example 7.5 for a T4"
        )
    capability = (int(major), int(minor))
    alike = (
        [card for card in CATALOGUE if card.compute_capability == capability]
        or [card for card in CATALOGUE if card.compute_capability[0] == capability[0]]
        or list(CATALOGUE)
    )
    return Card(
        name=f"{gib(usable_bytes)} GPU, compute capability {compute_capability}",
        usable_bytes=usable_bytes,
        usable_high_bytes=usable_bytes,
        context_low_bytes=min(card.context_low_bytes for card in alike),
        context_bytes=max(card.context_bytes for card in alike),
        compute_capability=capability,
        source=f"memory as described; context: range over {', '.join(card.name for card in alike)}",
    )


def shared_card(card: Card, workers: int) -> Card:
    """Make the share of one worker where `workers` processes use a card at the same time.

    One worker has the whole card, and a share of a share is a share of the whole card. Each share has an equal part of
    the usable memory and of the rates, and a CUDA context of full size within its memory. Runs measured on the whole
    card are no evidence for a share, so its `model` is its own name.

    Raises:
        InvalidArgument: `workers` is not a whole number from 1 to `MAX_WORKERS`.
    """
    if type(workers) is not int:
        raise InvalidArgument("workers", "must be a whole number", workers)
    if not 1 <= workers <= MAX_WORKERS:
        nearest = 1 if workers < 1 else MAX_WORKERS
        raise InvalidArgument("workers", f"must be between 1 and {MAX_WORKERS}", workers, f"nearest: {nearest}")
    card = card.whole
    if workers == 1:
        return card
    return replace(
        card,
        name=f"{card.name}, 1 of {workers} workers",
        model="",
        aliases=(),
        shared_names=(),
        usable_bytes=card.usable_bytes // workers,
        usable_high_bytes=card.usable_high_bytes // workers,
        bandwidth_gb_s=None if card.bandwidth_gb_s is None else card.bandwidth_gb_s // workers,
        float16_tflops=None if card.float16_tflops is None else card.float16_tflops // workers,
        workers=workers,
        shared_from=card,
        source=f"1 of {workers} equal shares of {card.name}; {card.source}",
    )


def emulated_card(card: Card, capacity_bytes: int) -> Card:
    """Limit a card to a capacity in bytes beyond which torch refuses memory.

    The CUDA context counts within the capacity. Kernels, context and the model under which runs are found stay those
    of the real card. For a share, the whole card is limited.
    """
    if card.shared_from is not None:
        return shared_card(emulated_card(card.whole, capacity_bytes), card.workers)
    return replace(
        card,
        name=emulated_name(card.name, capacity_bytes),
        aliases=(),
        shared_names=(),
        usable_bytes=min(card.usable_bytes, capacity_bytes),
        usable_high_bytes=min(card.usable_high_bytes, capacity_bytes),
        emulated_bytes=capacity_bytes,
        source=f"a capacity emulated on {card.name}; {card.source}",
    )


def card_row(card: Card) -> dict:
    """Return the card as JSON: bytes as integers, sources included."""
    return {
        "name": card.name,
        "aliases": list(card.aliases),
        "usable_bytes": card.usable_bytes,
        "usable_high_bytes": card.usable_high_bytes,
        "context_bytes": card.context_bytes,
        "context_low_bytes": card.context_low_bytes,
        "compute_capability": card.capability,
        "runs_pinned_torch": card.runs_pinned_torch,
        "notes": list(card.notes),
        "bandwidth_gb_s": card.bandwidth_gb_s,
        "float16_tflops": card.float16_tflops,
        "cloud": list(card.cloud),
        "source": card.source,
    }
