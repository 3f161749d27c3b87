"""Compare the allocations of a recorded run, and the workspace of each convolution, with the prediction.

The size of an allocation is the bytes that were asked for. Only sizes above 1 MiB are compared: smaller ones are
indices and statistics of norms, whose kernels use scratch memory of their own. This module does not import torch:
`cache.worker.recording` makes the recordings in the worker.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from cache.records import Measurement
from planner.programs.assemble import events_of
from planner.programs.events import Events
from planner.programs.library import Library, Op
from planner.replay.allocator import SMALL_SIZE, CachingAllocator
from planner.replay.dry_run import dry_run, live_peaks
from planner.replay.kernels import KernelPolicy
from planner.request import GenerationRequest

# Kernels of tensor cores pad channels to a multiple of this where they transpose them
# (`planner.replay.kernels.KernelPolicy`).
CHANNELS_TOGETHER = 8

# A recording lists the allocations of CUDA's caching allocator, or on the CPU the storages of living tensors.
Recorded = Literal["cuda", "storages"]
CUDA: Recorded = "cuda"
STORAGES: Recorded = "storages"


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """Hold equal calls of one convolution; shapes are torch's, sizes are the bytes asked for.

    `workspaces` are the allocations inside each call whose free is the next event of the history, as for cuDNN's
    workspace. `copies` are the others that did not outlive the call, such as an input that was made contiguous.
    `refused` are those for which there was no room, so that cuDNN took a plan with less.
    """

    module: str
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    dtype: str
    channels_last: bool
    workspaces: tuple[int, ...] = ()
    copies: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    calls: int = 1

    @property
    def workspace_bytes(self) -> int:
        """Return the bytes of the largest workspace of a call."""
        return max(self.workspaces, default=0)

    def row(self) -> np.ndarray:
        """Return the call as a row of `Events.convolutions`.

        Shape:
            (1, 6), int64.
        """

        def padded(shape: Sequence[int]) -> int:
            batch, channels, *sides = shape
            return batch * -(-channels // CHANNELS_TOGETHER) * CHANNELS_TOGETHER * prod(sides)

        image, out = self.input_shape, self.output_shape
        values = (prod(image), padded(image), prod(out), padded(out), prod(self.weight_shape), self.channels_last)
        return np.array([values], dtype=np.int64)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read a convolution that `asdict` and JSON wrote."""
        told: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
        return cls(**told)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Hold the allocations of a run: `sizes` above 1 MiB in order, and their `modules`."""

    of: Recorded
    sizes: tuple[int, ...]
    modules: tuple[str, ...]
    convolutions: tuple[Convolution, ...] = ()

    def to_json(self) -> str:
        """Write the recording as a JSON object in which each module's name stands once."""
        names = list(dict.fromkeys(self.modules))
        numbers = {name: number for number, name in enumerate(names)}
        allocations = [[size, numbers[name]] for size, name in zip(self.sizes, self.modules, strict=True)]
        convolutions = [asdict(one) for one in self.convolutions]
        return json.dumps(
            {"of": self.of, "modules": names, "allocations": allocations, "convolutions": convolutions},
            separators=(",", ":"),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the recording that a worker wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no recording.
        """
        try:
            kept = json.loads(path.read_text())
            return cls(
                of=kept["of"],
                sizes=tuple(size for size, _ in kept["allocations"]),
                modules=tuple(kept["modules"][number] for _, number in kept["allocations"]),
                convolutions=tuple(map(Convolution.from_dict, kept["convolutions"])),
            )
        except (LookupError, TypeError) as error:
            raise ValueError(f"{path} is no recording ({error!r})") from None


def recorded(trace: Iterable[Mapping[str, Any]]) -> list[int]:
    """List the sizes above 1 MiB of a trace of torch's allocator, in order.

    The trace is ``torch.cuda.memory._snapshot()["device_traces"][device]``.
    """
    return [entry["size"] for entry in trace if entry["action"] == "alloc" and entry["size"] > SMALL_SIZE]


def predicted(events: Events, policy: KernelPolicy | None, *, has_handle: bool = False) -> list[tuple[int, str]]:
    """List the predicted allocations of a call above 1 MiB as (size, module), in order.

    Kernels are the preferred ones, and weights are left out. A `policy` of None means a device whose kernels take no
    workspace. `has_handle` says that an earlier call has made cuBLAS's handle with its workspace, which stays.
    """
    loaded = int((events.kinds == Op.LOADED).argmax())
    convolutions, attentions = [0] * len(events.convolutions), [0] * len(events.attentions)
    if policy is not None:
        convolutions = policy.convolution_bytes(events.convolutions).tolist()
        attentions = policy.attention_bytes(events.attentions).tolist()
    cublas_bytes = 0 if policy is None or has_handle else policy.cublas_bytes
    made: list[tuple[int, str]] = []
    rows = zip(*(part[loaded:].tolist() for part in (events.kinds, events.values, events.module_ids)), strict=True)
    for kind, value, module in rows:
        match Op(kind):
            case Op.BIRTH:
                size = value
            case Op.CONVOLUTION:
                size = convolutions[value]
            case Op.ATTENTION:
                size = attentions[value]
            case Op.PRODUCT:
                size, cublas_bytes = cublas_bytes, 0
            case _:
                continue
        if size > SMALL_SIZE:
            made.append((size, events.modules[module]))
    return made


@dataclass(frozen=True)
class Difference:
    """Hold the sizes that only one of two lists has as (size, count), largest first."""

    only_real: list[tuple[int, int]]
    only_predicted: list[tuple[int, int]]
    matched: int
    real: int

    @property
    def share(self) -> float:
        """Return the part of the real allocations that was predicted, in [0, 1]."""
        return self.matched / self.real if self.real else 1.0


def difference(real: Iterable[int], expected: Iterable[int]) -> Difference:
    """Find the sizes that only the run has, and those that only the prediction has."""
    ours, theirs = Counter(expected), Counter(real)
    return Difference(
        only_real=sorted((theirs - ours).items(), reverse=True),
        only_predicted=sorted((ours - theirs).items(), reverse=True),
        matched=(ours & theirs).total(),
        real=theirs.total(),
    )


def grouped(calls: Iterable[Convolution]) -> tuple[Convolution, ...]:
    """Join equal calls into one with a count, in the order of their first."""
    counted: Counter[Convolution] = Counter()
    for call in calls:
        counted[replace(call, calls=1)] += call.calls
    return tuple(replace(call, calls=count) for call, count in counted.items())


def convolution_rows(recording: Recording, policy: KernelPolicy) -> list[dict[str, Any]]:
    """List each convolution with its measured and its predicted workspace, worst first."""
    rows = []
    for one in recording.convolutions:
        predicted_bytes = int(policy.convolution_bytes(one.row())[0])
        taken = {"workspace_bytes": one.workspace_bytes, "predicted_bytes": predicted_bytes}
        rows.append(asdict(one) | taken)
    rows.sort(key=lambda row: -abs(row["workspace_bytes"] - row["predicted_bytes"]))
    return rows


def _where(
    sizes: Iterable[tuple[int, int]], here: Iterable[tuple[int, str]], there: Iterable[tuple[int, str]]
) -> list[dict[str, Any]]:
    """Write (size, count) pairs as objects with modules.

    Modules are those that make more allocations of the size in `here` than in `there`.
    """
    modules: dict[int, list[str]] = defaultdict(list)
    for size, module in Counter(here) - Counter(there):
        modules[size].append(module)
    return [{"size_bytes": size, "count": count, "modules": modules[size]} for size, count in sizes]


def compared(
    recording: Recording, library: Library, request: GenerationRequest, policy: KernelPolicy | None
) -> dict[str, Any]:
    """Compare a recorded run with the dry run of its request: find sizes that only one has.

    The run was in a process that had made cuBLAS's handle. A `policy` of None means the CPU, whose kernels take no
    workspace, so none is compared.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    events = events_of(library, request, "all")
    ours = predicted(events, policy, has_handle=True)
    theirs = list(zip(recording.sizes, recording.modules, strict=True))
    found = difference(recording.sizes, (size for size, _ in ours))
    if policy is None:
        allocated_bytes, reserved_bytes = max(live_peaks(library, request).values()), None
    else:
        allocator = CachingAllocator(expandable=request.allocator == "expandable")
        replayed = dry_run(events, policy, allocator=allocator)
        allocated_bytes, reserved_bytes = replayed.peak_allocated_bytes, replayed.peak_reserved_bytes
    return {
        "of": recording.of,
        "real": found.real,
        "predicted": len(ours),
        "matched": found.matched,
        "share": found.share,
        "only_real": _where(found.only_real, theirs, ours),
        "only_predicted": _where(found.only_predicted, ours, theirs),
        "predicted_allocated_bytes": allocated_bytes,
        "predicted_reserved_bytes": reserved_bytes,
        "convolutions": [] if policy is None else convolution_rows(recording, policy),
    }


def recording_report(recording: Recording, library: Library, measurement: Measurement) -> dict[str, Any]:
    """Return `compared` of a run in the history, with its measured peaks, as JSON.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
        ValueError: the run does not have the compute capability of its GPU.
    """
    capability = measurement.environment.compute_capability
    policy = None if recording.of == STORAGES else KernelPolicy.of(_numbers(capability), measurement.request.dtype)
    measured = measurement.measured
    return {
        "request": measurement.request.to_dict(),
        "capacity_bytes": measurement.environment.emulated_bytes,
        "outcome": measured.outcome,
        "peak_allocated_bytes": measured.peak_allocated_bytes,
        "peak_reserved_bytes": measured.peak_reserved_bytes,
    } | compared(recording, library, measurement.request, policy)


def _numbers(capability: str | None) -> tuple[int, int]:
    if capability is None:
        raise ValueError("the run does not say the compute capability of its GPU")
    major, _, minor = capability.partition(".")
    return int(major), int(minor)
