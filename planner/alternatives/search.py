"""Search GPUs for remedies."""

from planner.alternatives.sizes import fits
from planner.cards.lookup import CATALOGUE, Card, shared_card
from planner.programs.library import Library
from planner.replay.dry_run import live_peaks
from planner.request import GenerationRequest
from planner.units import GIB


def may_run(request: GenerationRequest, card: Card, library: Library) -> bool:
    """Tell whether the tensors alone leave room on the GPU.

    Where they do not, the verdict is ``no``.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    most = max(card.usable_bytes - card.context_bytes, card.usable_high_bytes - card.context_low_bytes)
    return max(live_peaks(library, request).values()) <= most


def next_card(request: GenerationRequest, card: Card, library: Library) -> Card | None:
    """Find the smallest larger GPU of the catalogue that fits the request, or None.

    It is shared by as many workers as this GPU. Only GPUs that run the pinned torch count: rented ones for a rented
    GPU, else all but a laptop's. Of GPUs of the same memory, to a GiB, the slowest counts: there is no price list, and
    faster ones are dearer.
    """
    others = [other for other in CATALOGUE if other.runs_pinned_torch and not other.is_laptop]
    if card.cloud:
        others = [other for other in others if other.cloud]
    by_size = sorted(others, key=lambda whole: (whole.usable_bytes // GIB, whole.float16_tflops or 0))
    shares = (shared_card(whole, card.workers) for whole in by_size)
    larger = (share for share in shares if share.usable_bytes > card.usable_bytes)
    return next((share for share in larger if fits(request, share, library)), None)
