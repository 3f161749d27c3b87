"""Count, before any work, the allocator events that the answer of a plan would replay.

The time of an answer is that of its replays, and the time of a replay is proportional to the events in it. Most
requests have some 8,600 events at any size. Tiles and slices of the VAE make up to ten times as many, and their number
is known from the size alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from planner.cards.lookup import Card
from planner.components import VAE_TILE, VAE_TILE_STRIDE
from planner.errors import InvalidArgument, NoProgram
from planner.plan import Plan
from planner.programs.assemble import events_of
from planner.programs.library import Library
from planner.programs.vae_tiles import HALVES
from planner.replay.kernels import KernelPolicy
from planner.request import GenerationRequest

# The replays of one answer: with each fraction of workspace where something is assumed (26), and the two searches for
# the minimum. The largest number counted in tests/ui/guard/test_cost.py is 55.
REPLAYS_OF_KERNELS = 55
# GPUs whose kernels are alike share these replays. Each GPU adds those within its own memory: cold and warm, at its
# usual memory and at the most that was seen.
REPLAYS_OF_GPU = 4


def events_count(library: Library, request: GenerationRequest) -> int:
    """Count the events of the request's history.

    The count is never too low, and where there are tiles at most a third too high. The history
    without tiles is assembled for that, which takes milliseconds at most.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    if request.hires > 1:
        return sum(events_count(library, one) for one in request.passes())
    form = request.replay_form()
    if not (form.vae_tiling and max(form.latent_height, form.latent_width) > VAE_TILE):
        return _assembled(library, form)
    slices = min(form.images, 2) if form.vae_slicing else 1
    halves = HALVES[1:] if form.task == "txt2img" else HALVES
    tiles = sum(_tiled(library, half, form.latent_height, form.latent_width) for half in halves)
    # The encoder is also called on each image of the batch, one after another.
    return _assembled(library, replace(form, vae_tiling=False)) + tiles * slices


@lru_cache(maxsize=1024)
def _assembled(library: Library, form: GenerationRequest) -> int:
    return len(events_of(library, form).kinds)


def _tiled(library: Library, half: str, height: int, width: int) -> int:
    """Count the events of one half of the VAE on one batch, tile by tile.

    `height` and `width` are in latents.
    """
    rows = [min(VAE_TILE, height - top) for top in range(0, height, VAE_TILE_STRIDE)]
    columns = [min(VAE_TILE, width - left) for left in range(0, width, VAE_TILE_STRIDE)]
    kinds = Counter((tall, wide) for tall in rows for wide in columns)
    # Of equal tiles, the first and the last are played in full, and the others leave their results.
    in_full = sum(min(count, 2) for count in kinds.values())
    number = len(rows) * len(columns)
    blends = (len(rows) - 1) * len(columns) + (len(columns) - 1) * len(rows)
    # A tile is born and dies; so does a row of them; a blend has three births and three deaths.
    return in_full * _longest(library, half) + 2 * number + 6 * blends + 2 * len(rows) + 1


@lru_cache(maxsize=16)
def _longest(library: Library, half: str) -> int:
    """Count the events of the longest routine of this half, with those that it calls."""
    inner = {"vae._encode": "vae.encoder", "vae._decode": "vae.decoder"}[half]
    lengths = [
        max(len(library.routine(name).plain_ops) for name in library.routines if name.startswith(f"{start}/"))
        for start in (half, inner, f"{inner}.attention")
    ]
    return sum(lengths)


def cost_of(plan: Plan, cards: Sequence[Card], library: Library | None) -> int:
    """Count the events that the answer of this plan on these GPUs would replay at most.

    Answers by the formula replay nothing. So does a request without a program, which the formula answers.
    """
    if library is None or not plan.uses_library:
        return 0
    return sum(_costs(plan, cards, library))


def _costs(plan: Plan, cards: Sequence[Card], library: Library) -> list[int]:
    kernels = {policy for card in cards if (policy := _policy(card, plan.request)) is not None}
    replays = len(kernels) * REPLAYS_OF_KERNELS + len(cards) * REPLAYS_OF_GPU
    # The request's own task may not take an image's size; the answer then says so.
    asked = [plan.request.replay_form()]
    for row in plan.image_rows:
        try:
            asked.append(row.of(plan.request).replay_form())
        except InvalidArgument:
            continue
    counts = []
    for form in dict.fromkeys(asked):
        try:
            counts.append(replays * events_count(library, form))
        except NoProgram:
            continue
    return counts


def _policy(card: Card, request: GenerationRequest) -> KernelPolicy | None:
    """Give the GPU's kernels for this request, None where no rule covers them and nothing is replayed."""
    try:
        return KernelPolicy.of(card.compute_capability, request.dtype)
    except NoProgram:
        return None


def check_cost(plan: Plan, cards: Sequence[Card], library: Library | None, most: int) -> int:
    """Return the cost of an answer in events, if it is at most `most`.

    Raises:
        TooMuch: it is more.
    """
    cost = cost_of(plan, cards, library)
    if cost <= most:
        return cost
    images = len(plan.image_rows)
    ways = [f"fewer GPUs ({len(cards)} are named)"] if len(cards) > 1 else []
    ways += [f"fewer images ({images} are listed)"] if images else []
    ways += ["smaller images, which have fewer tiles"] if plan.request.vae_tiling or not ways else []
    rule = f"must replay at most {most:,} allocator events in all"
    # Rounded up, so that parts of equal size are small enough.
    raise TooMuch("the question", rule, cost, f"ask in {-(-cost // most)} parts or more: {', '.join(ways)}")


class TooMuch(InvalidArgument):
    """Report a question whose answer would take too much work, with what to reduce."""
