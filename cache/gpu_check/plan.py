"""The experiments of a check: their requests, their order, and how long each takes.

The most informative per second come first. Three steps are enough for memory, two in a rehearsal; two requests have
twenty, for the time of a step. Requests that need the same model follow one another, since a new worker loads it anew.
Requests that may run out of the GPU's memory come late, since that ends the worker.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cache.jobs.resident import pipeline_key
from cache.jobs.sweep import Entry, grid, in_order
from cache.machine.device import Device
from planner.answer import Verdict
from planner.cards.card import Card, emulated_name
from planner.errors import NoProgram
from planner.programs.assemble import events_of
from planner.programs.library import Library
from planner.replay.allocator import CachingAllocator
from planner.replay.dry_run import dry_run
from planner.replay.kernels import KernelPolicy
from planner.request import GenerationRequest, Task
from planner.units import GIB

# A run for memory has so many steps. PNDM keeps four noise predictions from the fourth step on, each of the size of
# the latents.
STEPS = 3
STEPS_FOR_TIME = 20

# These capacities are emulated on larger GPUs, with these sizes. By the dry run most of them are tight.
EMULATED: tuple[tuple[int, tuple[dict[str, Any], ...]], ...] = (
    (8 * GIB, ({"width": 1024, "height": 1024}, {"width": 1536, "height": 1536}, {"width": 768, "batch": 4})),
    (16 * GIB, ({"width": 2048, "height": 2048}, {"width": 1024, "height": 1024, "batch": 4})),
    (24 * GIB, ({"width": 1024, "height": 1024, "batch": 8}, {"width": 2048, "height": 2048, "batch": 2})),
)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Hold a request to run and the reason; with `records` its allocations are recorded.

    Recorded allocations are compared with those of the dry run.
    """

    request: GenerationRequest
    why: str
    capacity_bytes: int | None = None
    records: bool = False

    @property
    def group(self) -> tuple[Any, ...]:
        """Return the key of what a worker must have loaded for it, as `Job.resident_key` does."""
        return (self.capacity_bytes, pipeline_key(self.request))


def _one(task: Task, size: int | tuple[int, int], why: str, *, records: bool = False, **changes: Any) -> Experiment:
    width, height = (size, size) if isinstance(size, int) else size
    values: dict[str, Any] = {"task": task, "width": width, "height": height, "steps": STEPS}
    return Experiment(request=GenerationRequest(**values | changes), why=why, records=records)


def _chosen_for_gpu(device: Device) -> Iterator[Experiment]:
    yield _one("img2img", 512, "the default request", records=True)
    yield _one("img2img", (1800, 1200), "a T4 was measured 1.57 GiB above the prediction", records=True)
    yield _one("txt2img", 512, "the other task", records=True)
    yield _one("txt2img", 512, "several images", records=True, batch=4)
    yield _one("img2img", 1024, "large convolutions", records=True)
    for batch in (16, 2, 8):
        yield _one("txt2img", 512, "several images", batch=batch)
    yield _one("txt2img", 512, "convolutions of 2^31 elements", records=True, batch=32)
    yield _one("img2img", (1000, 1304), "latents with odd sides", records=True)
    yield _one("img2img", 2048, "the largest common size", records=True)
    yield _one("img2img", 512, "the time of a step", steps=STEPS_FOR_TIME)
    yield _one("txt2img", 1024, "the time of a step", steps=STEPS_FOR_TIME)
    for side in (256, 768, 1536, 2048):
        yield _one("txt2img", side, "sizes")
    for side in (256, 768, 1536):
        yield _one("img2img", side, "sizes")
    for batch in (2, 4):
        yield _one("img2img", 1024, "several images", batch=batch)
    yield _one("txt2img", 1024, "tiles of the VAE", records=True, vae_tiling=True)
    yield _one("txt2img", 512, "slices of the VAE", records=True, batch=4, vae_slicing=True)
    for side in (512, 1024):
        yield _one("img2img", side, "attention in slices", records=side == 512, attention_slicing=True)
    yield _one("txt2img", 512, "no guidance", guidance_scale=1.0)
    yield _one("img2img", (520, 776), "latents with odd sides")
    yield _one("txt2img", (1096, 616), "latents with odd sides")
    yield _one("txt2img", 512, "slices of the VAE", batch=32, vae_slicing=True)
    yield _one("img2img", 2048, "tiles of the VAE", vae_tiling=True)
    for index, side in enumerate((512, 1024)):
        yield _one("img2img", side, "channels_last", records=not index, channels_last=True)
    yield _one("txt2img", 512, "channels_last", records=True, batch=4, channels_last=True)
    for size in (512, (1800, 1200), 2048):
        yield _one("img2img", size, "model offload", records=size == 512, offload="model")
    for batch in (1, 4, 16):
        yield _one("txt2img", 512, "reference runs without safety checker", batch=batch, safety_checker=False)
    yield _one("txt2img", 512, "both passes of hires fix", records=True, hires=1.5)
    # Each of these loads a model of its own. Two options share one where recorded allocations tell them apart.
    yield _one("img2img", 512, "eager attention", records=True, attention="eager")
    yield _one("img2img", 512, "single precision", records=True, dtype="float32")
    # Before compute capability 8.0 no rule says what kernels of bfloat16 take.
    has_rule = device.card is not None and device.card.compute_capability >= (8, 0)
    expandable = {"dtype": "bfloat16" if has_rule else "float16", "allocator": "expandable"}
    yield _one("img2img", 512, "expandable segments, bfloat16 from 8.0 on", records=True, **expandable)
    yield _one("img2img", 512, "a ControlNet and a LoRA", records=True, controlnets=1, lora_rank=16)
    yield _one("inpaint", 512, "inpainting with an IP-Adapter", records=True, ip_adapter="base")
    yield _one("img2img", 512, "offload by layers", records=True, offload="sequential")


def _emulated() -> Iterator[Experiment]:
    for capacity_bytes, sizes in EMULATED:
        for index, size in enumerate(sizes):
            changes = {"height": size["width"]} | size
            for task in ("img2img", "txt2img") if not index else ("img2img",):
                request = GenerationRequest(task=task, steps=STEPS, **changes)
                # A recording shows which kernels found no room and fell back.
                records = task == "img2img"
                yield Experiment(request=request, why="short of memory", capacity_bytes=capacity_bytes, records=records)


_ADDED: dict[str, Any] = {"controlnets": 1, "lora_rank": 16, "ip_adapter": "base"}


def _chosen_for_cpu() -> Iterator[Experiment]:
    """Choose the same kinds of experiments at sizes that a CPU can run."""
    yield _one("img2img", 128, "the default task", records=True, steps=2)
    yield _one("txt2img", (128, 64), "the other task", records=True, steps=2)
    yield _one("txt2img", 64, "several images", records=True, batch=4, steps=2)
    yield _one("img2img", (72, 136), "latents with odd sides", records=True, steps=2)
    yield _one("img2img", (576, 64), "tiles of the VAE", vae_tiling=True, steps=2)
    yield _one("txt2img", 64, "slices of the VAE", batch=4, vae_slicing=True, steps=2)
    yield _one("img2img", 64, "attention in slices", attention_slicing=True, steps=2)
    yield _one("img2img", 256, "sizes", records=True, steps=2)
    yield _one("txt2img", 256, "no guidance", guidance_scale=1.0, steps=2)
    yield _one("img2img", 64, "channels_last", channels_last=True, steps=2)
    yield _one("txt2img", 64, "both passes of hires fix", steps=2, hires=1.5)
    yield _one("txt2img", 512, "the largest rehearsal", steps=2)
    yield _one("img2img", 512, "the time of a step", steps=5)
    yield _one("img2img", 64, "a ControlNet, a LoRA and an IP-Adapter", steps=2, **_ADDED)
    yield _one("inpaint", 64, "inpainting, offload by layers", steps=2, offload="sequential")
    # A rehearsal cannot run these; the summary lists them with the reason.
    yield _one("img2img", (1800, 1200), "large sizes", records=True)
    yield _one("img2img", 512, "xformers", attention="xformers")
    yield Experiment(request=GenerationRequest(steps=STEPS), why="short of memory", capacity_bytes=8 * GIB)


_OF_GRID = "the grid of verify --sweep"


def experiments(found: Sequence[Experiment], verdicts: Mapping[Experiment, Verdict]) -> list[Experiment]:
    """Order the candidates by what they teach, and then so that few workers are started.

    First come requests that are expected to fit on the whole GPU, then emulated capacities, then requests that may run
    out of the GPU's own memory and so end their worker. The grid fills the time that is left.
    """

    def phase(one: Experiment) -> int:
        if not is_chosen(one):
            return 4
        if one.capacity_bytes is not None:
            return 1
        return {"tight": 2, "no": 3}.get(verdicts[one], 0)

    first_of: dict[tuple[Any, ...], int] = {}
    for one in found:
        first_of.setdefault((phase(one), *one.group), len(first_of))
    return sorted(found, key=lambda one: (phase(one), first_of[phase(one), *one.group]))


def candidates(device: Device) -> list[Experiment]:
    """List all experiments for the device, each once, in the order of this file."""
    if device.kind == "cpu":
        return list(_chosen_for_cpu())
    base = GenerationRequest(steps=STEPS)
    rest = (_of_entry(entry) for entry in in_order(grid(base)))
    found: dict[tuple[str, int | None], Experiment] = {}
    for one in (*_chosen_for_gpu(device), *_emulated(), *rest):
        found.setdefault((one.request.request_id, one.capacity_bytes), one)
    return list(found.values())


def _of_entry(entry: Entry) -> Experiment:
    return Experiment(request=entry.request, why=_OF_GRID, capacity_bytes=entry.capacity_bytes)


def verdict_on(one: Experiment, card: Card | None, library: Library | None) -> Verdict:
    """Predict the verdict by one replay on this card, at the experiment's capacity.

    `planner.fit.fit` would make thirteen replays.
    """
    if card is None or library is None:
        return "unknown"
    usable = card.usable_bytes if one.capacity_bytes is None else min(card.usable_bytes, one.capacity_bytes)
    is_expandable = one.request.allocator == "expandable"
    try:
        policy = KernelPolicy.of(card.compute_capability, one.request.dtype)
        allocator = CachingAllocator(usable - card.context_bytes, is_expandable)
        replayed = dry_run(events_of(library, one.request), policy, allocator=allocator)
    except NoProgram:
        return "unknown"
    if replayed.outcome != "ok":
        return "no"
    return "tight" if replayed.num_alloc_retries or replayed.fallbacks else "fits"


# The constants and functions from here on estimate seconds.

# A UNet call on one sample of 512x512 is one unit of work. Published times for the two samples of a guided step are
# 144 ms on a T4 (65 TFLOPS) and 44.6 ms on an A100 (312 TFLOPS), and on the A100 278 ms for the 32 samples of batch 16.
# That is 4.7 s x TFLOPS a unit on the T4 and 2.7 on a busy A100; the larger one is used.
# Source: huggingface/diffusers, docs/optimization/torch2.0.md.
TFLOPS_SECONDS_PER_UNIT = 4.7
# A call that is too small to keep the GPU busy takes as long as launching its kernels: the A100's guided step.
LEAST_CALL_SECONDS = 0.045
# Decoding one 512x512 image takes 292 ms on a T4 and 32 ms on an A100, about four units each. Encoding does half the
# work. Source: huggingface/open-muse, benchmark/artifacts/all.csv.
DECODE_UNITS, ENCODE_UNITS = 4.0, 2.0
# At 512x512 a fifth of the UNet's work is self-attention, which grows with the square of the area.
ATTENTION_SHARE = 0.2
# A card without a known data sheet is taken to have the float16 TFLOPS of a T4.
UNKNOWN_TFLOPS = 65
# A rehearsal of 256x256 on two cores took 1.2 s for a guided step.
CPU_SECONDS_PER_UNIT = 3.0
# A start loads the libraries, makes the context and 1.37 billion synthetic weights. A run adds the warm-up, the first
# use of kernels, and writing the row.
START_SECONDS = 25.0
RUN_SECONDS = 2.5
# With model offload, weights cross PCIe in both directions.
OFFLOAD_SECONDS = 4.0
# With offload by layers the UNet's 1.7 GB cross PCIe for each of its calls, from memory that is not pinned, and hooks
# run for each of its layers.
LAYERS_SECONDS = 0.5
# Without tensor cores: a T4 has 8.1 TFLOPS in float32 for 65 in float16.
# Source: NVIDIA, T4 Tensor Core GPU data sheet.
FLOAT32_FACTOR = 8.0
# A ControlNet has the UNet's down and middle blocks, less than half of its work.
CONTROLNET_SHARE = 0.5
# The tests in tests/gpu together run requests much like those above.
TESTS_SECONDS = 150.0


def seconds_of(one: Experiment, card: Card | None) -> float:
    """Estimate the seconds of an experiment on this card, with its model loaded.

    A `card` of None is the CPU.
    """
    return RUN_SECONDS + sum(_seconds_of_call(request, card) for request in one.request.passes())


def _seconds_of_call(request: GenerationRequest, card: Card | None) -> float:
    """Estimate the seconds of one pipeline call on this card."""
    area = request.effective_width * request.effective_height / 512**2
    a_unit = CPU_SECONDS_PER_UNIT
    if card is not None:
        a_unit = TFLOPS_SECONDS_PER_UNIT / (card.float16_tflops or UNKNOWN_TFLOPS)
        a_unit *= 1.0 if request.is_half else FLOAT32_FACTOR
    a_sample = area * (1 - ATTENTION_SHARE + ATTENTION_SHARE * area)
    networks = 1 + CONTROLNET_SHARE * request.controlnets
    a_call = max(LEAST_CALL_SECONDS, request.unet_batch * networks * a_sample * a_unit)
    if request.offload == "sequential":
        a_call += LAYERS_SECONDS
    # PNDM makes one UNet call more than there are steps.
    calls = request.steps + 1
    encodes = 0.0 if request.task == "txt2img" else ENCODE_UNITS
    vae = (DECODE_UNITS * request.images + encodes * request.batch) * area * a_unit
    offload = OFFLOAD_SECONDS if request.offload != "none" else 0.0
    return calls * a_call + vae + offload


def seconds_with_starts(
    planned: Sequence[Experiment], verdicts: Sequence[Verdict], card: Card | None
) -> Iterator[float]:
    """Estimate the seconds of each experiment, with a worker's start if it needs a new worker.

    It needs one for another model, and after a run that ran out of memory.
    """
    before: tuple[Any, ...] | None = None
    for one, verdict in zip(planned, verdicts, strict=True):
        yield seconds_of(one, card) + (0 if one.group == before else START_SECONDS)
        before = one.group if verdict in ("fits", "unknown") else None


def is_chosen(one: Experiment) -> bool:
    """Tell whether the experiment was chosen in this file, and is not from the grid."""
    return one.why != _OF_GRID


def with_capacity(device: Device, one: Experiment) -> Device:
    """Return the device with the capacity that the experiment emulates."""
    return replace(device, emulated_bytes=one.capacity_bytes)


def name_of(one: Experiment) -> str:
    """Name the experiment for people."""
    return emulated_name(one.request.describe(), one.capacity_bytes)
