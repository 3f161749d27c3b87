"""What remedies ask of cards: whether one has any hope, and which is the next larger one."""

from planner.alternatives.sizes import fits
from planner.cards.lookup import CATALOGUE, Card, shared_card
from planner.programs.library import Library
from planner.replay.dry_run import live_peaks
from planner.request import GenerationRequest
from planner.units import GIB


def may_run(request: GenerationRequest, card: Card, library: Library) -> bool:
    """Whether the tensors alone leave the card any hope; where they do not, the verdict is ``no``.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    most = max(card.usable_bytes - card.context_bytes, card.usable_high_bytes - card.context_low_bytes)
    return max(live_peaks(library, request).values()) <= most


def next_card(request: GenerationRequest, card: Card, library: Library) -> Card | None:
    """The smallest larger card of the catalogue on which the request fits, shared by as many as this one, or None.

    It is one that can be had and runs the pinned torch: for a rented card one that is rented, else any but a laptop's.
    Of cards of the same size, to a GiB, it is the slowest: there is no price list, and the faster one is dearer.
    """
    others = [other for other in CATALOGUE if other.runs_pinned_torch and not other.is_laptop]
    if card.cloud:
        others = [other for other in others if other.cloud]
    by_size = sorted(others, key=lambda whole: (whole.usable_bytes // GIB, whole.float16_tflops or 0))
    shares = (shared_card(whole, card.workers) for whole in by_size)
    larger = (share for share in shares if share.usable_bytes > card.usable_bytes)
    return next((share for share in larger if fits(request, share, library)), None)
