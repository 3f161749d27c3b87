"""Compile traces of the real pipeline into memory programs.

Each routine is traced at a few sizes. The events must come in the same order every time, and every size must be one
whole multiple of one of `planner.programs.library.features`. Anything else raises an error: no size is guessed.
"""

import importlib.metadata
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planner.components import LIBRARIES, LOAD_ORDER, MAX_TRACED_STEPS
from planner.programs.files import save
from planner.programs.library import AREAS, TIMES_BATCH, CallSize, Library, Op, Routine, features
from planner.programs.names import Layout, pipeline_name, routine_name
from planner.request import TASKS, GenerationRequest
from planner.tracing.call_frames import CompileError, Frame, folded, frames_of
from planner.tracing.pipeline import assemble
from planner.tracing.recorder import Birth, Loaded, Recorder
from planner.tracing.tracer import meta_modules, trace_call, trace_halves

# Batch, latent height and width. The sides are odd, even and prime, so that no two features are in proportion.
SIZES = ((2, 19, 26), (3, 29, 21), (5, 14, 35))


# Sizes at which upsamplers copy a channels_last input: first the last upsampler, then the last two, then all. The UNet
# runs on twice the batch given here. From a batch of 64 on, all upsamplers copy at any size.
UNET_COPIES = (
    ((5, 997, 811), (8, 701, 811), (16, 603, 499)),
    ((12, 997, 899), (16, 1003, 811), (31, 607, 701)),
    ((32, 19, 26), (33, 29, 21), (37, 14, 35)),
)
VAE_COPIES = (
    ((2, 419, 397), (3, 331, 347), (5, 229, 307)),
    ((2, 599, 601), (3, 499, 503), (5, 419, 397)),
    ((64, 19, 26), (67, 29, 21), (71, 14, 35)),
)
# A single image can be large enough for the first two of these three cases.
VAE_COPIES_OF_ONE = (((1, 499, 601), (1, 613, 787), (1, 509, 997)), ((1, 787, 811), (1, 997, 619), (1, 1013, 701)))

PLAIN = Layout()


def fit_size(values: tuple[int, ...], sizes: list[CallSize], *, one_size: bool) -> tuple[int, int]:
    """Find the (feature, coefficient) that explains one size.

    `values` are its bytes at each of `sizes`.

    Raises:
        CompileError: no feature divides all values alike, or several do although the sizes should tell them apart.
    """
    quantities = np.stack([features(*size) for size in sizes])
    found = []
    for feature in range(quantities.shape[1]):
        coefficient, rest = divmod(values[0], int(quantities[0, feature]))
        if not rest and all(coefficient * int(q) == v for q, v in zip(quantities[:, feature], values, strict=True)):
            found.append((feature, coefficient))
    if not found:
        raise CompileError(f"{values} at {sizes} is no whole multiple of any of {AREAS}, with or without the batch")
    if len(found) > 1 and not one_size and found[1][0] != found[0][0] + TIMES_BATCH:
        raise CompileError(f"{values} at {sizes} could be any of {found}")
    return found[0]


class _Pool:
    """Number values, equal ones alike."""

    def __init__(self):
        self.numbers: dict[Any, int] = {}

    def __call__(self, value: Any) -> int:
        return self.numbers.setdefault(value, len(self.numbers))


def routine_from(key: str, frames: list[Frame], module: Callable[[str], int]) -> Routine:
    """Make one routine from its frames at several sizes.

    Raises:
        CompileError: the frames differ in more than their sizes, or no feature explains a size.
    """
    first = frames[0]
    shape = [(op, module_name if op != Op.DEATH else "") for op, _, module_name in first.ops]
    for frame in frames[1:]:
        if [(op, name if op != Op.DEATH else "") for op, _, name in frame.ops] != shape or frame.calls != first.calls:
            raise CompileError(f"{key}: the order of events at {frame.size} is not that at {first.size}")
    at = [frame.size for frame in frames]
    one_size = len({(size.height, size.width) for size in at}) == 1 or len({size.batch for size in at}) == 1
    sizes, kernels = _Pool(), _Pool()
    ops = []
    for index, (op, operand, name) in enumerate(first.ops):
        values = [frame.ops[index][1] for frame in frames]
        if op == Op.BIRTH:
            operand = sizes(fit_size(tuple(values), at, one_size=one_size))
        elif op in (Op.CONVOLUTION, Op.ATTENTION):
            of_each = zip(*(parts for parts, _ in values), strict=True)
            row = [sizes(fit_size(tuple(part), at, one_size=one_size)) for part in of_each]
            plain = {number for _, number in values}
            if len(plain) > 1:
                raise CompileError(f"{key}: {name} has {plain} at different sizes")
            operand = (
                kernels((*row, *[0] * (5 - len(row)), plain.pop()))
                if op == Op.CONVOLUTION
                else kernels((*row, plain.pop(), 0, 0, 0))
            )
        elif any(value != operand for value in values):
            raise CompileError(f"{key}: event {index} differs between sizes: {values}")
        ops.append((int(op), operand, module(name)))
    return Routine(
        ops=np.array(ops, dtype=np.int32).reshape(-1, 3),
        sizes=np.array(list(sizes.numbers), dtype=np.int32).reshape(-1, 2),
        kernels=np.array(list(kernels.numbers), dtype=np.int32).reshape(-1, 6),
        calls=tuple(first.calls),
    )


def real_pipeline(request: GenerationRequest) -> Any:
    """Build SD v1.5 on the meta device, as this request loads it."""
    modules = meta_modules(safety_checker=request.safety_checker, channels_last=request.channels_last)
    return assemble(modules, request.task)


class _Compiler:
    """Trace requests, and gather the frames of each routine."""

    def __init__(self, make_pipeline: Callable[[GenerationRequest], Any]):
        self.make_pipeline = make_pipeline
        self.frames: dict[str, list[Frame]] = {}
        self._pipelines: dict[Any, Any] = {}
        self._memories: dict[Any, dict[Any, Any]] = {}

    def pipeline(self, request: GenerationRequest) -> Any:
        """Give the pipeline to trace this request on, built once for equal options."""
        key = request.task, request.safety_checker, request.channels_last, request.attention_slicing
        if key not in self._pipelines:
            self._pipelines[key] = self.make_pipeline(request)
        return self._pipelines[key]

    def trace(self, request: GenerationRequest) -> None:
        """Trace one request and keep its frames."""
        # A stand-in is for a routine of the same name, and with channels_last each task has its own.
        of_task = request.task if request.channels_last else ""
        memory = self._memories.setdefault((request.channels_last, request.attention_slicing, of_task), {})
        events = trace_call(self.pipeline(request), request, memory=memory)
        loaded = next(index for index, event in enumerate(events) if isinstance(event, Loaded))
        size = CallSize(request.batch, request.latent_height, request.latent_width)
        self._keep(request, frames_of(pipeline_name(request), size, folded(events[loaded + 1 :])))

    def trace_halves(self, request: GenerationRequest, height: int, width: int, layout: Layout) -> None:
        """Trace the VAE's halves alone on this input, and keep their frames."""
        events = trace_halves(self.pipeline(request), request, height, width, layout)
        self._keep(request, frames_of("", CallSize(request.batch, height, width), folded(events))[:-1], layout)

    def _keep(self, request: GenerationRequest, frames: list[Frame], layout: Layout = PLAIN) -> None:
        for frame in frames:
            if not frame.is_stand_in:
                is_pipeline = frame.name == pipeline_name(request)
                key = frame.name if is_pipeline else routine_name(frame.name, request, *frame.size, layout)
                self.frames.setdefault(key, []).append(frame)


def _requests() -> Iterator[GenerationRequest]:
    """List the requests to trace.

    They are all combinations that change the order of allocations, each at three sizes.
    """
    for batch, height, width in (*SIZES, *((1, *size[1:]) for size in SIZES)):
        size: dict[str, Any] = {"batch": batch, "height": 8 * height, "width": 8 * width}
        if batch > 1:
            yield from _calls(**size)
        for channels_last, attention_slicing in itertools.product((False, True), repeat=2):
            options = {"channels_last": channels_last, "attention_slicing": attention_slicing, "steps": 1}
            # Without guidance the UNet has a batch of one. With channels_last, the origin of the latents matters.
            for guidance_scale, task, sides in itertools.product(
                (7.5, 1.0) if batch == 1 else (7.5,),
                TASKS if channels_last else ("img2img",),
                ({}, {"width": 64, "height": 64}),
            ):
                values = {**size, **sides, **options, "guidance_scale": guidance_scale, "task": task}
                yield GenerationRequest.from_dict(values)
    for attention_slicing, task, at in itertools.product((False, True), TASKS, UNET_COPIES):
        options = {"channels_last": True, "attention_slicing": attention_slicing, "steps": 1, "task": task}
        for batch, height, width in at:
            yield GenerationRequest.from_dict({"batch": batch, "height": 8 * height, "width": 8 * width, **options})
        if at is UNET_COPIES[-1]:
            for batch, _, _ in at:
                yield GenerationRequest.from_dict({"batch": batch, "height": 64, "width": 64, **options})


def _halves() -> Iterator[tuple[GenerationRequest, int, int, Layout]]:
    """List the VAE halves to trace alone: tiles of every kind, and planar images."""
    one = [(1, *size[1:]) for size in SIZES]
    for batch, height, width in (*SIZES, *one, (1, 1, 1), (2, 1, 1), (3, 1, 1)):
        for channels_last, task in ((False, "img2img"), (True, "img2img"), (True, "txt2img")):
            request = GenerationRequest(batch=batch, channels_last=channels_last, task=task)
            yield request, height, width, Layout(is_cut=True)
    for channels_last, task in ((False, "img2img"), (True, "img2img"), (True, "txt2img")):
        copies = [*VAE_COPIES, *(VAE_COPIES_OF_ONE if channels_last else ())]
        for batch, height, width in itertools.chain.from_iterable(copies):
            request = GenerationRequest(batch=batch, channels_last=channels_last, task=task)
            yield request, height, width, Layout()
        for batch, height, width in (*VAE_COPIES[-1], *((size[0], 1, 1) for size in VAE_COPIES[-1])):
            request = GenerationRequest(batch=batch, channels_last=channels_last, task=task)
            yield request, height, width, Layout(is_cut=True)
    for batch, height, width in (*SIZES, *one):
        for is_cut in (False, True):
            yield GenerationRequest(batch=batch), height, width, Layout(is_cut, is_planar=True)


def _calls(**size: Any) -> Iterator[GenerationRequest]:
    for task, guidance_scale, safety_checker, steps in itertools.product(
        TASKS, (7.5, 1.0), (True, False), range(1, MAX_TRACED_STEPS + 1)
    ):
        yield GenerationRequest(
            task=task, guidance_scale=guidance_scale, safety_checker=safety_checker, steps=steps, **size
        )


def _weights(pipeline: Any, module: Callable[[str], int]) -> dict[str, tuple[tuple[int, int], ...]]:
    weights = {}
    for component in LOAD_ORDER:
        recorder = Recorder()
        if getattr(pipeline, component) is None:
            continue
        recorder.load(component, getattr(pipeline, component))
        births = [event for event in recorder.events if isinstance(event, Birth)]
        weights[component] = tuple((birth.size_bytes, module(birth.module)) for birth in births)
    return weights


def compile_library(
    versions: Mapping[str, str],
    report: Callable[[float, str], None] = lambda *_: None,
    *,
    requests: Sequence[GenerationRequest] | None = None,
    make_pipeline: Callable[[GenerationRequest], Any] = real_pipeline,
) -> Library:
    """Trace and compile every routine of the installed libraries.

    `report` is called with the progress, from 0 to 1, and the next step in words. Fewer `requests`, or another
    pipeline than the real one, make a smaller library of the same kind.

    Raises:
        CompileError: programs cannot hold a routine.
    """
    compiler = _Compiler(make_pipeline)
    wanted = list(_requests()) if requests is None else list(requests)
    for index, request in enumerate(wanted):
        report(index / (len(wanted) + 1), request.describe())
        compiler.trace(request)
    if requests is None:
        for half in _halves():
            compiler.trace_halves(*half)
    report(1.0, "fitting sizes")
    module = _Pool()
    module("")
    weights = _weights(compiler.pipeline(wanted[0]), module)
    routines = {key: routine_from(key, frames, module) for key, frames in sorted(compiler.frames.items())}
    return Library(versions, routines, tuple(module.numbers), weights, "compiled here")


def main() -> None:
    """Compile the installed versions to ``PATH.json`` and ``PATH.bin``.

    The command is ``python -m planner.tracing.compiler PATH``. Progress goes to stdout as JSON lines. Where the files
    cannot be written the exit code is ``os.EX_IOERR``.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    # Their warnings (of casts, of missing torchvision) are about things done on purpose here.
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()

    def report(done: float, what: str) -> None:
        print(json.dumps({"done": done, "what": what}), flush=True)

    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in LIBRARIES}
    library = compile_library(versions, report)
    try:
        save(library, Path(sys.argv[1]))
    except OSError as error:
        print(error.strerror, file=sys.stderr)
        sys.exit(os.EX_IOERR)


if __name__ == "__main__":
    main()
