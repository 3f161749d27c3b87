"""Replay a memory program on a simulated GPU.

The program says what the pipeline allocates and when, the kernel policy what workspace kernels take on top, and the
simulated allocator what the process reserves for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from planner.components import STAGES
from planner.programs.assemble import events_of, flat_of, history_form
from planner.programs.events import Events
from planner.programs.library import Library, Op
from planner.replay.allocator import MIN_BLOCK, Block, CachingAllocator, OutOfDeviceMemory
from planner.replay.bounds import Bounds
from planner.replay.kernels import KernelPolicy
from planner.request import VAE_SCALE_FACTOR, GenerationRequest

# An enum's attribute takes longer to look up than to compare.
BIRTH, DEATH, CONVOLUTION, ATTENTION = map(int, (Op.BIRTH, Op.DEATH, Op.CONVOLUTION, Op.ATTENTION))

Outcome = Literal["ok", "out-of-memory"]


class StagePeak(NamedTuple):
    """Hold the peaks of one stage."""

    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """Hold the result of a replay. Sizes in bytes, without the CUDA context.

    `loaded_bytes` is allocated once the weights are loaded and nothing has run. `fallbacks` counts shapes of
    convolutions whose preferred workspace found no room. `after_allocated_bytes` and `after_reserved_bytes` are held
    once the last event has played, and `after_empty_cache_reserved_bytes` is what ``torch.cuda.empty_cache()`` would
    leave reserved; None if out of memory, where an exception frees what the call held. With model offload, diffusers
    moves the component that ran last off the GPU at the end of the call, and no event does. `ended_at` is the index of
    the event that was out of memory, or None. `timeline` is (events, 2), int64: allocated bytes with the workspace, and
    reserved bytes, during each event; None unless it was asked for.
    """

    outcome: Outcome
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    stages: dict[str, StagePeak]
    loaded_bytes: int
    num_alloc_retries: int
    fallbacks: int
    after_allocated_bytes: int | None = None
    after_reserved_bytes: int | None = None
    after_empty_cache_reserved_bytes: int | None = None
    ended_at: int | None = None
    timeline: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def peak_stage(self) -> str:
        """Give the stage that allocates most, the later of equal ones."""
        return max(reversed(self.stages), key=lambda stage: self.stages[stage].allocated_bytes)


def dry_run(
    events: Events,
    policy: KernelPolicy,
    capacity_bytes: int | None = None,
    *,
    with_timeline: bool = False,
    allocator: CachingAllocator | None = None,
) -> DryRun:
    """Replay these events with kernels of this policy.

    Without `capacity_bytes` memory is unlimited. An `allocator` that is passed in brings its own capacity, and
    `capacity_bytes` is not used.
    """
    return _Replay(events, policy, allocator or CachingAllocator(capacity_bytes)).run(with_timeline)


class _Replay:
    """Make one pass over the events."""

    def __init__(self, events: Events, policy: KernelPolicy, allocator: CachingAllocator):
        self.events, self.policy, self.allocator = events, policy, allocator
        self.convolutions = policy.convolution_bytes(events.convolutions).tolist()
        self.attentions = policy.attention_bytes(events.attentions).tolist()
        self.fallen_back: set[tuple[int, ...]] = set()
        self.stages: dict[str, StagePeak] = {}
        self.timeline: list[tuple[int, int]] = []

    def run(self, with_timeline: bool) -> DryRun:
        """Replay the events until the last one, or until one is out of memory."""
        allocator = self.allocator
        malloc, free, timeline = allocator.malloc, allocator.free, self.timeline
        convolutions, attentions = self.convolutions, self.attentions
        blocks: list[Block] = []
        stage, ended_at, workspace, has_handle = "", None, 0, False
        played = loaded_bytes = 0
        kinds_and_values = zip(self.events.kinds.tolist(), self.events.values.tolist(), strict=True)
        try:
            for kind, value in kinds_and_values:
                if kind == BIRTH:
                    blocks.append(malloc(value))
                elif kind == DEATH:
                    free(blocks[value])
                elif kind == CONVOLUTION:
                    workspace = self._convolve(value) if convolutions[value] else 0
                elif kind == ATTENTION:
                    workspace = self._scratch(attentions[value]) if attentions[value] else 0
                elif kind == Op.STAGE:
                    if STAGES[value] != stage:
                        self._close(stage)
                        stage = STAGES[value]
                elif kind == Op.LOADED:
                    loaded_bytes = allocator.allocated_bytes
                elif kind == Op.EMPTY_CACHE:
                    allocator.empty_cache()
                elif kind == Op.PRODUCT and not has_handle:
                    malloc(self.policy.cublas_bytes)
                    has_handle = True
                if with_timeline:
                    timeline.append((allocator.allocated_bytes + workspace, allocator.reserved_bytes))
                    workspace = 0
                played += 1
        except OutOfDeviceMemory:
            ended_at = played
        self._close(stage)
        has_ended = ended_at is None
        return DryRun(
            outcome="ok" if has_ended else "out-of-memory",
            peak_allocated_bytes=max(peak.allocated_bytes for peak in self.stages.values()),
            peak_reserved_bytes=max(peak.reserved_bytes for peak in self.stages.values()),
            stages={name: peak for name, peak in self.stages.items() if name},
            loaded_bytes=loaded_bytes,
            num_alloc_retries=allocator.num_alloc_retries,
            fallbacks=len(self.fallen_back),
            after_allocated_bytes=allocator.allocated_bytes if has_ended else None,
            after_reserved_bytes=allocator.reserved_bytes if has_ended else None,
            after_empty_cache_reserved_bytes=(
                allocator.reserved_bytes - allocator.releasable_bytes() if has_ended else None
            ),
            ended_at=ended_at,
            timeline=np.array(timeline or [(0, 0)], dtype=np.int64) if with_timeline else None,
        )

    def _convolve(self, row: int) -> int:
        """Run a convolution, and return the bytes of its workspace.

        It falls back to a plan without workspace where the preferred plan finds no room.

        Source: aten/src/ATen/native/cudnn/Conv_v8.cpp, try_plans: out of memory moves on to the next plan, and the
        one that worked is remembered for the shape.
        """
        if self.fallen_back and tuple(self.events.convolutions[row]) in self.fallen_back:
            return 0
        try:
            return self._scratch(self.convolutions[row])
        except OutOfDeviceMemory:
            self.fallen_back.add(tuple(self.events.convolutions[row]))
            return 0

    def _scratch(self, size_bytes: int) -> int:
        """Allocate a workspace and free it again; return the bytes of the block that held it."""
        block = self.allocator.malloc(size_bytes)
        taken = block.size
        self.allocator.free(block)
        return taken

    def _close(self, stage: str) -> None:
        """Keep the peaks of a stage that ends, and begin to look for those of the next."""
        allocator = self.allocator
        before = self.stages.get(stage, StagePeak(0, 0))
        self.stages[stage] = StagePeak(
            max(before.allocated_bytes, allocator.peak_allocated_bytes),
            max(before.reserved_bytes, allocator.peak_reserved_bytes),
        )
        allocator.reset_peaks()


def live_peaks(library: Library, request: GenerationRequest) -> dict[str, int]:
    """Compute the peak bytes of living storages by stage.

    Rounding, workspaces and the allocator are left out.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    events = events_of(library, request)
    live, stages = events.live_bytes(), events.stages()
    return {STAGES[index]: int(live[stages == index].max()) for index in np.unique(stages[stages >= 0]).tolist()}


def allocated_peaks(
    library: Library, request: GenerationRequest, sizes: Sequence[tuple[int, int]], policy: KernelPolicy
) -> np.ndarray:
    """Compute a lower bound of the allocated peak, in bytes, at each latent (height, width).

    The bound counts storages and workspaces rounded to 512 bytes. It leaves out what a block holds beyond its request,
    at most 1 MiB for each of the large ones, and is within 2 % of the allocator's own peak.

    Shape:
        (sizes,), int64.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    if request.hires > 1:
        # Each pass of hires fix bounds the peak of both.
        of_passes = [_at(request, size).passes() for size in sizes]
        return np.array([max(_peak_of_pass(library, one, policy) for one in passes) for passes in of_passes])
    peaks = np.empty(len(sizes), dtype=np.int64)
    alike: dict[GenerationRequest, list[int]] = {}
    for index, (height, width) in enumerate(sizes):
        at = _at(request, (height, width))
        form = history_form(at)
        if form == at.allocation_form():
            # A history of its own is not worth the preparation that many sizes share.
            peaks[index] = _rounded_peak(flat_of(library, form).at(height, width), policy)
        else:
            alike.setdefault(form, []).append(index)
    for form, indices in alike.items():
        bounds = _bounds_of(library, form)
        for start in range(0, len(indices), _AT_ONCE):
            part = indices[start : start + _AT_ONCE]
            peaks[part] = bounds.peaks([sizes[index] for index in part], policy)
    return peaks


# So many sizes are evaluated at once, for the sake of memory.
_AT_ONCE = 256


def _at(request: GenerationRequest, size: tuple[int, int]) -> GenerationRequest:
    """Give the request at this latent (height, width)."""
    return replace(request, height=size[0] * VAE_SCALE_FACTOR, width=size[1] * VAE_SCALE_FACTOR)


def _peak_of_pass(library: Library, one: GenerationRequest, policy: KernelPolicy) -> int:
    flat = flat_of(library, history_form(one))
    return _rounded_peak(flat.at(one.latent_height, one.latent_width), policy)


@lru_cache(maxsize=16)
def _bounds_of(library: Library, form: GenerationRequest) -> Bounds:
    return Bounds(flat_of(library, form))


def _rounded_peak(events: Events, policy: KernelPolicy) -> int:
    deltas = _rounded(events.deltas())
    deltas[int(np.argmax(events.kinds == Op.PRODUCT))] += policy.cublas_bytes
    live = np.cumsum(deltas)
    for op, sizes in (
        (Op.CONVOLUTION, policy.convolution_bytes(events.convolutions)),
        (Op.ATTENTION, policy.attention_bytes(events.attentions)),
    ):
        at = events.kinds == op
        live[at] += _rounded(sizes)[events.values[at]]
    return int(live.max())


def _rounded(sizes: np.ndarray) -> np.ndarray:
    """Round away from zero to a multiple of 512."""
    return np.sign(sizes) * (-(-np.abs(sizes) // MIN_BLOCK) * MIN_BLOCK)
