"""Prepare a dry run for drawing: memory by event, bands of stages, parts of the peak."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from planner.cards.lookup import Card
from planner.components import STAGES
from planner.programs.assemble import events_of
from planner.programs.events import Events
from planner.programs.library import Library, Op
from planner.replay.allocator import CachingAllocator
from planner.replay.dry_run import DryRun, dry_run
from planner.replay.kernels import KernelPolicy
from planner.request import GenerationRequest

# The number of points is enough for a chart as wide as a screen.
POINTS = 400
LOADING = "loading"


class Point(NamedTuple):
    """Hold the peaks from this event until the next point."""

    event: int
    stage: str
    allocated_bytes: int
    reserved_bytes: int


class Band(NamedTuple):
    """Hold one stage: its events are `begin` until before `end`."""

    stage: str
    begin: int
    end: int


class Failed(NamedTuple):
    """Describe the event that was out of memory, and the bytes that it asked for."""

    stage: str
    operation: str
    module: str
    size_bytes: int


class Part(NamedTuple):
    """Hold one part of the GPU memory in use at the peak.

    `kind` is weights, tensors, workspace, slack or context.
    """

    kind: str
    name: str
    size_bytes: int


@dataclass(frozen=True)
class Timeline:
    """Hold a dry run of one request on one GPU, for drawing.

    `peak_event` is the index of the event during which most was allocated; `operation` and `module` ran then. `parts`
    add up to the bytes reserved at that moment and the CUDA context. `events` counts all events; of the UNet's calls
    between its first and its last only the results are played. `failed` is the event that found no room, or None.
    """

    run: DryRun
    points: tuple[Point, ...]
    bands: tuple[Band, ...]
    events: int
    peak_event: int
    peak_stage: str
    operation: str
    module: str
    parts: tuple[Part, ...]
    failed: Failed | None

    def total(self, kind: str) -> int:
        """Add up the bytes of all parts of this kind."""
        return sum(part.size_bytes for part in self.parts if part.kind == kind)


_OPERATIONS = {
    Op.CONVOLUTION: "convolution",
    Op.ATTENTION: "attention",
    Op.BIRTH: "new tensor",
    Op.PRODUCT: "matrix product",
}


def block_of(module: str) -> str:
    """Name the part of a component that the module belongs to.

    >>> block_of("vae.decoder.up_blocks.3.resnets.0.conv1")
    'vae.decoder.up_blocks.3'
    >>> block_of("unet.mid_block.attentions.0")
    'unet.mid_block'
    """
    names = module.split(".")
    for index, name in enumerate(names):
        if name in ("down_blocks", "up_blocks"):
            return ".".join(names[: index + 2])
    return ".".join(names[: 3 if names[0] == "vae" else 2]) or "pipeline"


@lru_cache(maxsize=16)
def timeline_of(request: GenerationRequest, card: Card, library: Library) -> Timeline:
    """Replay the request within the GPU's usable memory less the context, for drawing.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    events = events_of(library, request)
    policy = KernelPolicy.of(card.compute_capability, request.dtype)
    room = max(0, card.usable_bytes - card.context_bytes)
    allocator = CachingAllocator(room, expandable=request.allocator == "expandable")
    run = dry_run(events, policy, with_timeline=True, allocator=allocator)
    assert run.timeline is not None
    used = run.timeline
    stages = [STAGES[index] if index >= 0 else LOADING for index in events.stages()[: len(used)].tolist()]
    peak = int(used[:, 0].argmax())
    kind = Op(int(events.kinds[peak]))
    return Timeline(
        run=run,
        points=_points(used, stages),
        bands=_bands(stages),
        events=len(used),
        peak_event=peak,
        peak_stage=stages[peak],
        operation=_OPERATIONS.get(kind, kind.name.lower()),
        module=_module(events, peak),
        parts=_parts(events, run, policy, peak, card.context_bytes),
        failed=_failed(events, run, policy),
    )


def _module(events: Events, event: int) -> str:
    return events.modules[events.module_ids[event]] or "pipeline"


def _failed(events: Events, run: DryRun, policy: KernelPolicy) -> Failed | None:
    if run.ended_at is None:
        return None
    event = run.ended_at
    kind, value = Op(int(events.kinds[event])), int(events.values[event])
    stage = events.stages()[event]
    # A convolution falls back to no workspace, so it is a tensor or an attention call that finds no room.
    size = int(policy.attention_bytes(events.attentions)[value]) if kind == Op.ATTENTION else value
    size = policy.cublas_bytes if kind == Op.PRODUCT else size
    name = _OPERATIONS.get(kind, kind.name.lower())
    return Failed(STAGES[stage] if stage >= 0 else LOADING, name, _module(events, event), size)


def _points(used: np.ndarray, stages: list[str]) -> tuple[Point, ...]:
    """Sample the peak of each stretch of events; no stretch crosses a stage."""
    starts = [band.begin for band in _bands(stages)]
    stretch = max(1, len(used) // POINTS)
    edges = sorted({*starts, *range(0, len(used), stretch)})
    most = np.maximum.reduceat(used, edges, axis=0).tolist()
    return tuple(Point(edge, stages[edge], *pair) for edge, pair in zip(edges, most, strict=True))


def _bands(stages: list[str]) -> tuple[Band, ...]:
    begins = [index for index, pair in enumerate(pairwise([None, *stages])) if pair[0] != pair[1]]
    return tuple(Band(stages[begin], begin, end) for begin, end in pairwise([*begins, len(stages)]))


def _parts(events: Events, run: DryRun, policy: KernelPolicy, peak: int, context_bytes: int) -> tuple[Part, ...]:
    alive = events.alive_at(peak)
    sizes, modules = events.sizes(), events.birth_modules()
    weights: Counter[str] = Counter()
    tensors: Counter[str] = Counter()
    for number in alive.tolist():
        name = events.modules[modules[number]]
        if events.is_weight[number]:
            weights[name] += int(sizes[number])
        else:
            tensors[block_of(name)] += int(sizes[number])
    assert run.timeline is not None
    allocated, reserved = run.timeline[peak].tolist()
    scratch = _scratch_bytes(events, policy, peak, run)
    handle = policy.cublas_bytes if (events.kinds[: peak + 1] == Op.PRODUCT).any() else 0
    known = sum(weights.values()) + sum(tensors.values()) + scratch + handle
    parts = [Part("weights", name, size) for name, size in weights.items()]
    parts += [Part("tensors", name, size) for name, size in tensors.most_common()]
    if scratch:
        parts.append(Part("workspace", "of the running kernel", scratch))
    if handle:
        parts.append(Part("workspace", "of cuBLAS", handle))
    parts.append(Part("slack", "rounding and whole blocks", allocated - known))
    parts.append(Part("slack", "reserved, not allocated", reserved - allocated))
    parts.append(Part("context", "CUDA", context_bytes))
    return tuple(parts)


def _scratch_bytes(events: Events, policy: KernelPolicy, peak: int, run: DryRun) -> int:
    """Compute the bytes of the workspace at the peak, 0 if the kernel fell back."""
    assert run.timeline is not None
    kind, row = int(events.kinds[peak]), int(events.values[peak])
    if not peak or run.timeline[peak, 0] == run.timeline[peak - 1, 0] or kind not in (Op.CONVOLUTION, Op.ATTENTION):
        return 0
    if kind == Op.CONVOLUTION:
        return int(policy.convolution_bytes(events.convolutions[row : row + 1])[0])
    return int(policy.attention_bytes(events.attentions[row : row + 1])[0])
