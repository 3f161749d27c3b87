"""A memory program replayed on a card that is not there.

The program says what the pipeline allocates and when; the card says what its kernels need as workspace and how much
there is; the simulated allocator says what comes of it. Nothing is fitted to measurements.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from planner.components import STAGES
from planner.programs.assemble import events_of
from planner.programs.library import Events, Library, Op
from planner.replay.allocator import MIN_BLOCK, Block, CachingAllocator, OutOfDeviceMemory
from planner.request import VAE_SCALE_FACTOR, GenerationRequest
from planner.units import MIB

# cuBLAS keeps one workspace a handle and stream, from the same allocator, from the first matrix product on.
# Source: aten/src/ATen/cuda/CublasHandlePool.cpp, getChosenWorkspaceSize: ":4096:2:16:8", or 32 MiB on newer cards.
CUBLAS_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024
CUBLAS_BYTES_FROM_90 = 32 * MIB

# Memory-efficient attention keeps a float32 accumulator when a head is wider than its registers hold.
# Source: kernel_forward.h, kMaxK and kNeedsOutputAccumulatorBuffer.
WIDEST_HEAD_IN_REGISTERS = 128
# Flash attention takes heads up to this width; the VAE's single head of 512 is beyond it.
WIDEST_FLASH_HEAD = 256

# Convolutions whose input or output has this many elements were seen to take no workspace on torch 2.0: with that rule
# VAE decode of 32 images of 512x512 is right to 512 bytes. cuDNN 9.3 and newer index beyond 2^31 and may take theirs.
# Source: the peaks of huggingface/open-muse's benchmark; aten/src/ATen/native/Convolution.cpp, use_cudnn.
LARGE_CONVOLUTION_NUMEL = 2**31

# The fractions of the workspace at which reserved peaks are replayed: close together, for a reserved peak leaps. A
# workspace a little smaller than the preferred one may no longer fit the blocks that tensors have left.
REPLAYED_FRACTIONS = (*(tenth / 10 for tenth in range(10)), 0.95, 1.0, 2.0)

# Where measured whole pipelines of several images confirm the replay within 0.2 %: 512x512 with batches of 4 and 16 on
# 7.5, of 4 on 8.0, of 2, 8 and 32 on 8.9, and 256x256 with 8 on 8.0. The GPUs of 8.6 and 8.7 run the kernels of 8.0.
# Source: cache/history/reference_runs/pipelines.jsonl; tests/unit/accuracy/test_reference_errors.py holds the one to
# the other.
CONFIRMED_BATCHES = frozenset({(7, 5), (8, 0), (8, 6), (8, 7), (8, 9)})
MOST_CONFIRMED_BATCH = 32

# Up to this size measured runs confirm the replay on compute capability 7.5. The one larger run, img2img 1800x1200 on a
# T4 with torch 2.8, took 21 % more, in one allocation whose cause is unknown; a GPU of 8.9 took what is predicted.
CONFIRMED_PIXELS_75 = 512 * 512

# Repeated runs of one public benchmark of the whole pipeline, on an A10G, gave 3.184 and 3.192 GiB.
RUN_TO_RUN = 0.0025

# An enum's attribute takes longer to look up than to compare.
BIRTH, DEATH, CONVOLUTION, ATTENTION = map(int, (Op.BIRTH, Op.DEATH, Op.CONVOLUTION, Op.ATTENTION))

Capability = tuple[int, int]
Outcome = Literal["ok", "out-of-memory"]


@dataclass(frozen=True)
class KernelPolicy:
    """What a card's kernels take as workspace, by its compute capability.

    `convolution` names the plan that cuDNN prefers:

    - ``nhwc``: tensor cores work on channels_last, so an NCHW input, filter and output are each transposed in the
      workspace, channels padded to eights. An image's three channels are too few for them, and go without.
    - ``float32``: without tensor cores, input, filter and output are converted to float32 in the workspace.

    `workspace_fraction` is how much of that workspace they take: 0 none at all, as if each had fallen back to its last
    plan; 1 what the preferred plan needs; 2 the cautious end, where convolutions that are channels_last already
    transpose all the same, and those of `LARGE_CONVOLUTION_NUMEL` elements take their workspace as well; with
    `may_double` all others take twice theirs there.
    `are_large_like_others` says that such convolutions take what all others take.
    """

    convolution: Literal["nhwc", "float32"]
    has_flash_attention: bool
    cublas_bytes: int
    workspace_fraction: float = 1.0
    are_large_like_others: bool = False
    may_double: bool = False

    @classmethod
    def of(cls, capability: Capability) -> "KernelPolicy":
        """Give the policy of this compute capability."""
        return cls(
            convolution="nhwc" if capability >= (7, 0) else "float32",
            has_flash_attention=capability >= (8, 0),
            cublas_bytes=CUBLAS_BYTES_FROM_90 if capability >= (9, 0) else CUBLAS_BYTES,
            may_double=capability == (7, 5),
        )

    def convolution_bytes(self, convolutions: np.ndarray) -> np.ndarray:
        """Workspace of the preferred plan of each convolution, from `Events.convolutions`.

        Shape:
            (convolutions,), int64.
        """
        x, x_padded, y, y_padded, weight, channels_last = convolutions.T
        taken, beyond = min(self.workspace_fraction, 1.0), max(self.workspace_fraction - 1.0, 0.0)
        is_large = is_large_convolution(convolutions) & (not self.are_large_like_others)
        if self.convolution == "float32":
            return (np.where(is_large, beyond, taken) * (4 * (x + y + weight))).astype(np.int64)
        # Three channels of an image become eight, and what is channels_last already needs no transpose.
        is_image = 3 * x_padded == 8 * x
        share = np.where((channels_last != 0) | is_large, beyond, taken + beyond * self.may_double)
        return (np.where(is_image, 0, share) * (2 * (x_padded + y_padded + weight))).astype(np.int64)

    def without_workspace(self) -> "KernelPolicy":
        """Give the same policy with every convolution on a plan without workspace."""
        return replace(self, workspace_fraction=0.0)

    def attention_bytes(self, attentions: np.ndarray) -> np.ndarray:
        """Compute what each fused attention call takes beside its output.

        Shape:
            (calls,), int64.
        """
        log_sum_exp, accumulator, head_dim = attentions.T
        is_flash = self.has_flash_attention & (head_dim <= WIDEST_FLASH_HEAD)
        return np.where(is_flash, log_sum_exp, np.where(head_dim > WIDEST_HEAD_IN_REGISTERS, accumulator, 0))


def is_large_convolution(convolutions: np.ndarray) -> np.ndarray:
    """Tell which rows of `Events.convolutions` read or write `LARGE_CONVOLUTION_NUMEL` elements or more.

    Shape:
        (convolutions,), bool.
    """
    return (convolutions[:, 0] >= LARGE_CONVOLUTION_NUMEL) | (convolutions[:, 2] >= LARGE_CONVOLUTION_NUMEL)


def assumptions(request: GenerationRequest, capability: Capability, *, has_large: bool = False) -> list[str]:
    """List what the dry run takes for granted here, and no measurement has confirmed yet.

    `has_large` says that a convolution of the request is a large one. Where anything is assumed, the allocated peak is
    a range: from kernels without workspace to the most that kernels of any of `REPLAYED_FRACTIONS` allocate.
    """
    found = []
    if has_large:
        found.append(
            "a convolution of 2^31 elements or more: such were seen to take no workspace on torch 2.0, and newer cuDNN "
            "may take it"
        )
    pixels = request.effective_width * request.effective_height
    if capability == (7, 5) and pixels > CONFIRMED_PIXELS_75:
        found.append(
            "images above 512x512 on compute capability 7.5: the one published run, img2img 1800x1200 on a T4, took "
            "21 % more than the dry run, and why is unknown; convolutions may take twice their workspace"
        )
    if request.batch > (MOST_CONFIRMED_BATCH if capability in CONFIRMED_BATCHES else 1):
        found.append(
            f"batch {request.batch}: behind its attention the VAE is channels_last, where convolutions are taken to "
            "transpose nothing; some cuDNN versions need less, others may transpose all the same"
        )
    if request.channels_last:
        found.append("channels_last: convolutions are taken to transpose nothing and so to need no workspace")
    if capability < (7, 0):
        found.append(
            "no tensor cores: convolutions are taken to convert to float32 in their workspace, which holds where the "
            "VAE decoder peaks; the UNet's own kernels were seen to take more"
        )
    if capability == (7, 0):
        found.append(
            "compute capability 7.0: kernels are taken to need what those of capability 7.5 need; the one run that was "
            "published took 3.7 % less"
        )
    if capability >= (9, 0):
        version = ".".join(map(str, capability))
        found.append(f"compute capability {version}: kernels are taken to need what those of capability 8 need")
    return found


def stack(versions: Mapping[str, str]) -> tuple[str, ...]:
    """List what the dry run takes for granted of the user's software, from the versions that programs were made with.

    Of 45 published runs with the eager attention processor of 2022 that were out of memory, the dry run says ``fits``
    of 34: right with fused attention, and wrong for such a stack. ``cudnn.benchmark`` takes the fastest plan, whatever
    its workspace.
    """
    releases = ", ".join(f"{name} {versions[name].partition('+')[0]}" for name in ("torch", "diffusers"))
    return (
        "float16",
        "fused attention as diffusers sets it (an eager processor needs more)",
        "torch.backends.cudnn.benchmark off",
        f"{releases}, and torch's default CUDA allocator",
    )


class StagePeak(NamedTuple):
    """The most that was allocated and reserved during one stage."""

    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a replay gave. Sizes in bytes; the CUDA context is in none of them.

    `loaded_bytes` is what stands allocated when the weights are in place and nothing has run.
    `fallbacks` counts shapes of convolutions whose preferred workspace found no room, `ended_at` is the event that was
    out of memory. `timeline` is (events, 2), allocated and reserved during each event with its workspace, or None when
    none was asked for.
    """

    outcome: Outcome
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    stages: dict[str, StagePeak]
    loaded_bytes: int
    num_alloc_retries: int
    fallbacks: int
    ended_at: int | None = None
    timeline: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def peak_stage(self) -> str:
        """Give the stage that allocates most; of equal ones the later."""
        return max(reversed(self.stages), key=lambda stage: self.stages[stage].allocated_bytes)


def dry_run(
    events: Events,
    policy: KernelPolicy,
    capacity_bytes: int | None = None,
    *,
    with_timeline: bool = False,
    allocator: CachingAllocator | None = None,
) -> DryRun:
    """Replay these events by kernels of this policy; without `capacity_bytes` memory is unlimited.

    An `allocator` other than the default one has a capacity of its own.
    """
    return _Replay(events, policy, allocator or CachingAllocator(capacity_bytes)).run(with_timeline)


class _Replay:
    """One pass over the events: the inner loop of everything here."""

    def __init__(self, events: Events, policy: KernelPolicy, allocator: CachingAllocator):
        self.events, self.policy, self.allocator = events, policy, allocator
        self.convolutions = policy.convolution_bytes(events.convolutions).tolist()
        self.attentions = policy.attention_bytes(events.attentions).tolist()
        self.fallen_back: set[tuple[int, ...]] = set()
        self.stages: dict[str, StagePeak] = {}
        self.timeline: list[tuple[int, int]] = []

    def run(self, with_timeline: bool) -> DryRun:
        """Replay all events, or as many as there is room for."""
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
        return DryRun(
            outcome="ok" if ended_at is None else "out-of-memory",
            peak_allocated_bytes=max(peak.allocated_bytes for peak in self.stages.values()),
            peak_reserved_bytes=max(peak.reserved_bytes for peak in self.stages.values()),
            stages={name: peak for name, peak in self.stages.items() if name},
            loaded_bytes=loaded_bytes,
            num_alloc_retries=allocator.num_alloc_retries,
            fallbacks=len(self.fallen_back),
            ended_at=ended_at,
            timeline=np.array(timeline or [(0, 0)], dtype=np.int64) if with_timeline else None,
        )

    def _convolve(self, row: int) -> int:
        """Run a convolution by its preferred plan, or by one without workspace; return what it took.

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
        block = self.allocator.malloc(size_bytes)
        taken = block.size
        self.allocator.free(block)
        return taken

    def _close(self, stage: str) -> None:
        allocator = self.allocator
        before = self.stages.get(stage, StagePeak(0, 0))
        self.stages[stage] = StagePeak(
            max(before.allocated_bytes, allocator.peak_allocated_bytes),
            max(before.reserved_bytes, allocator.peak_reserved_bytes),
        )
        allocator.reset_peaks()


def live_peaks(library: Library, request: GenerationRequest) -> dict[str, int]:
    """Compute the peak bytes of living storages by stage: no rounding, workspace or allocator.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    events = events_of(library, request)
    live, stages = events.live_bytes(), events.stages()
    return {STAGES[index]: int(live[stages == index].max()) for index in np.unique(stages[stages >= 0]).tolist()}


def allocated_peaks(
    library: Library, request: GenerationRequest, sizes: Sequence[tuple[int, int]], policy: KernelPolicy
) -> np.ndarray:
    """Compute the allocated peak at each (latent height, latent width), without allocator detail.

    Counts storages and workspaces rounded to 512 bytes. Leaves out what a block holds beyond its request, at most
    1 MiB for each of the large ones, so it is a lower bound within 2 % of the allocator's own peak.

    Shape:
        (sizes,), int64.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    peaks = np.empty(len(sizes), dtype=np.int64)
    for index, (height, width) in enumerate(sizes):
        at = replace(request, height=height * VAE_SCALE_FACTOR, width=width * VAE_SCALE_FACTOR)
        peaks[index] = _rounded_peak(events_of(library, at), policy)
    return peaks


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
    """Away from zero to a multiple of 512."""
    return np.sign(sizes) * (-(-np.abs(sizes) // MIN_BLOCK) * MIN_BLOCK)
