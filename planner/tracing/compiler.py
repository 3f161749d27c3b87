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
from planner.programs.library import AREAS, CallSize, Library, Op, Routine
from planner.programs.names import Layout, pipeline_name, routine_name, weights_name
from planner.request import ATTENTION_KINDS, IP_ADAPTERS, MAX_CONTROLNETS, TASKS, GenerationRequest
from planner.tracing.call_frames import CompileError, Frame, folded, frames_of
from planner.tracing.pipeline import assemble
from planner.tracing.recorder import Loaded
from planner.tracing.tracer import meta_modules, trace_attention, trace_call, trace_halves

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

    `values` are its bytes at each of `sizes`. Of several multipliers that explain it alike, the first counts.

    Raises:
        CompileError: no feature divides all values alike, or several areas do that the sizes should tell apart.
    """
    quantities = np.stack([size.features() for size in sizes])
    found = []
    for feature in np.flatnonzero(quantities[0]).tolist():
        coefficient, rest = divmod(values[0], int(quantities[0, feature]))
        if not rest and all(coefficient * int(q) == v for q, v in zip(quantities[:, feature], values, strict=True)):
            found.append((feature, coefficient))
    if not found:
        raise CompileError(f"{values} at {sizes} is no whole multiple of any of {AREAS}, with or without the batch")
    if len({feature % len(AREAS) for feature, _ in found}) > 1 and not one_size:
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
    one_size = len({(size.height, size.width) for size in at}) == 1
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
    return assemble(meta_modules(request), request)


class _Compiler:
    """Trace requests, and gather the frames of each routine."""

    def __init__(self, make_pipeline: Callable[[GenerationRequest], Any]):
        self.make_pipeline = make_pipeline
        self.frames: dict[str, list[Frame]] = {}
        self.weights: dict[str, list[tuple[int, str, str, bool, bool]]] = {}
        self._pipelines: dict[GenerationRequest, Any] = {}
        # What each routine returns on inputs of some shapes, so that it runs once for all requests.
        self._memory: dict[Any, Any] = {}

    def pipeline(self, request: GenerationRequest) -> Any:
        """Give the pipeline to trace this request on, built once for equal options."""
        plain = {"width": 64, "height": 64, "batch": 1, "images_per_prompt": 1, "steps": 50, "guidance_scale": 7.5}
        key = GenerationRequest.from_dict(request.to_dict() | plain)
        if key not in self._pipelines:
            if len(self._pipelines) > 8:
                self._pipelines.clear()
            self._pipelines[key] = self.make_pipeline(request)
            self._list_weights(request, self._pipelines[key])
        return self._pipelines[key]

    def trace(self, request: GenerationRequest) -> None:
        """Trace one request and keep its frames."""

        def name_of(routine: str, batch: int) -> str:
            return routine_name(routine, request, batch, request.latent_height, request.latent_width, PLAIN)

        events = trace_call(self.pipeline(request), request, memory=self._memory, name_of=name_of, with_weights=False)
        loaded = next(index for index, event in enumerate(events) if isinstance(event, Loaded))
        self._keep(request, frames_of(pipeline_name(request), call_size(request), folded(events[loaded + 1 :])))

    def trace_halves(self, request: GenerationRequest, height: int, width: int, layout: Layout) -> None:
        """Trace the VAE's halves alone on this input, and keep their frames."""
        events = trace_halves(self.pipeline(request), request, height, width, layout)
        self._keep(request, frames_of("", CallSize(request.batch, height, width), folded(events))[:-1], layout)

    def trace_attention(self, request: GenerationRequest) -> None:
        """Trace the attention layers of each depth alone, and keep their frames."""
        events = trace_attention(self.pipeline(request), request)
        self._keep(request, frames_of("", call_size(request), folded(events))[:-1])

    def _keep(self, request: GenerationRequest, frames: list[Frame], layout: Layout = PLAIN) -> None:
        for frame in frames:
            if not frame.is_stand_in:
                is_pipeline = frame.name == pipeline_name(request)
                size = frame.size.batch, frame.size.height, frame.size.width
                key = frame.name if is_pipeline else routine_name(frame.name, request, *size, layout)
                self.frames.setdefault(key, []).append(frame)

    def _list_weights(self, request: GenerationRequest, pipeline: Any) -> None:
        for component in LOAD_ORDER:
            module, name = getattr(pipeline, component, None), weights_name(component, request)
            if module is None or name in self.weights or not request.is_half or request.controlnets > 1:
                continue
            # A LoRA is listed at rank 1, of which its bytes are a multiple.
            if request.lora_rank > 1:
                continue
            self.weights[name] = list(_weights(component, module))


def call_size(request: GenerationRequest) -> CallSize:
    """Give the batch, size, prompts and rank of this request's pipeline call."""
    height, width = request.latent_height, request.latent_width
    return CallSize(request.images, height, width, request.batch, request.lora_rank)


def _weights(component: str, module: Any, path: str = "") -> Iterator[tuple[int, str, str, bool, bool]]:
    """List the module's weights in the order of ``module.to(device)``, that of ``_apply``.

    Each is (bytes, component, owner, is a buffer, is a LoRA's).
    """
    path = path or component
    for name, child in module.named_children():
        yield from _weights(component, child, f"{path}.{name}")
    for tensors, is_buffer in ((module._parameters, False), (module._buffers, True)):
        for tensor in tensors.values():
            if tensor is not None:
                yield tensor.untyped_storage().nbytes(), component, path, is_buffer, ".lora_" in path


# The batch times the images of a prompt must not be in proportion to the batch.
_IMAGES_PER_PROMPT = (2, 3)
_RANKS = (7, 11, 13)
# Two of them are enough to tell all areas apart.
_TWO = SIZES[0], SIZES[2]
_ONE = tuple((1, *size[1:]) for size in SIZES)


def _sized(batch: int, height: int, width: int, **options: Any) -> GenerationRequest:
    return GenerationRequest.from_dict({"batch": batch, "height": 8 * height, "width": 8 * width, **options})


def _requests() -> Iterator[GenerationRequest]:
    """List the requests to trace whole, in an order that lets few pipelines be built.

    The calls of a pipeline are traced for every combination that changes them, all else being remembered. The UNet's
    blocks are traced once for each memory format and data type, and its own frame for what is added to it.
    """
    for dtype in ("float16", "float32"):
        yield from _calls(dtype)
        yield from _blocks(dtype)


def _calls(dtype: str) -> Iterator[GenerationRequest]:
    """List the requests of all pipeline calls, at two sizes each."""
    for task, controlnets, ip_adapter in itertools.product(TASKS, (0, 1, 2), ("none", "base")):
        options: dict[str, Any] = {"task": task, "controlnets": controlnets, "ip_adapter": ip_adapter, "dtype": dtype}
        for guidance_scale, steps in itertools.product((7.5, 1.0), range(1, MAX_TRACED_STEPS + 1)):
            options |= {"guidance_scale": guidance_scale, "steps": steps}
            for size, images in zip(_TWO, _IMAGES_PER_PROMPT, strict=True):
                yield _sized(*size, **options, images_per_prompt=images)
                if task == "inpaint":
                    yield _sized(*size, **options)
    for guidance_scale, size in itertools.product((7.5, 1.0), (*_TWO, _ONE[0], _ONE[2])):
        # The plus adapter prepares its embeddings in another way.
        for ip_adapter in ("base", "plus"):
            yield _sized(*size, ip_adapter=ip_adapter, guidance_scale=guidance_scale, steps=1, dtype=dtype)
        yield _sized(*size, safety_checker=False, guidance_scale=guidance_scale, steps=1, dtype=dtype)


def _blocks(dtype: str) -> Iterator[GenerationRequest]:
    """List the requests of all frames of the UNet and the ControlNets."""
    plain, unet, both = {}, {"channels_last_unet": True}, {"channels_last": True}
    one_net = tuple(itertools.product((0, 1), ("none", "base")))
    several = tuple((nets, "none") for nets in range(2, MAX_CONTROLNETS + 1))
    wanted: tuple[tuple[dict[str, bool], str, tuple[tuple[int, str], ...]], ...] = (
        (plain, "img2img", one_net + several),
        (both, "img2img", one_net + several),
        (both, "txt2img", one_net),
        (unet, "img2img", ((0, "none"),)),
        (plain, "inpaint", ((0, "none"),)),
        (both, "inpaint", ((0, "none"),)),
    )
    for memory_format, task, added in wanted:
        for controlnets, ip_adapter in added:
            options = {"task": task, "controlnets": controlnets, "ip_adapter": ip_adapter, "steps": 1, "dtype": dtype}
            options |= memory_format
            for size in SIZES:
                yield _sized(*size, **options)
            for size in (_ONE[0], _ONE[2], (1, 8, 8)):
                yield _sized(*size, **options, guidance_scale=1.0)
            for batch in (2, 3):
                yield _sized(batch, 8, 8, **options)
    for task, at in itertools.product(("img2img", "txt2img"), UNET_COPIES):
        options = {"channels_last": True, "steps": 1, "task": task, "dtype": dtype}
        for batch, height, width in at:
            yield _sized(batch, height, width, **options)
        if at is UNET_COPIES[-1]:
            for batch, _, _ in at:
                yield _sized(batch, 8, 8, **options)
    # A LoRA on the text encoder.
    for size, rank in zip(SIZES, _RANKS, strict=True):
        yield _sized(*size, steps=1, lora_rank=rank, lora_text_encoder=True, dtype=dtype)


def _attentions() -> Iterator[GenerationRequest]:
    """List the requests whose attention layers are traced alone."""
    for dtype, kind, ip_adapter, has_lora, controlnets in itertools.product(
        ("float16", "float32"), (*ATTENTION_KINDS, "sliced"), IP_ADAPTERS, (False, True), (0, 1)
    ):
        sliced = kind == "sliced"
        if (sliced and ip_adapter != "none") or (controlnets and (has_lora or ip_adapter != "none")):
            continue
        options = {
            "dtype": dtype,
            "attention": "sdpa" if sliced else kind,
            "attention_slicing": sliced,
            "ip_adapter": ip_adapter,
            "controlnets": controlnets,
        }
        # The pipeline of one rank serves all sizes.
        for index, rank in enumerate(_RANKS if has_lora else (0, 0, 0)):
            for size in (SIZES[index], _ONE[index], (SIZES[index][0], 8, 8), (1, 8, 8)):
                scale = 1.0 if size[0] == 1 else 7.5
                yield _sized(*size, **options, lora_rank=rank, guidance_scale=scale)


def _halves() -> Iterator[tuple[GenerationRequest, int, int, Layout]]:
    """List the VAE halves to trace alone: images of all layouts, tiles of every kind, and each attention."""
    for dtype, attention in itertools.product(("float16", "float32"), ATTENTION_KINDS):
        options: dict[str, Any] = {"dtype": dtype, "attention": attention}
        yield from _halves_of(options)


def _whole_halves(request: GenerationRequest) -> tuple[GenerationRequest, int, int, Layout]:
    return request, request.latent_height, request.latent_width, PLAIN


def _halves_of(options: dict[str, Any]) -> Iterator[tuple[GenerationRequest, int, int, Layout]]:
    for batch, height, width in (*SIZES, *_ONE, (1, 1, 1), (2, 1, 1), (3, 1, 1)):
        for channels_last, task in _FORMATS:
            request = GenerationRequest(batch=batch, channels_last=channels_last, task=task, **options)
            for is_cut in (False, True):
                yield request, height, width, Layout(is_cut=is_cut)
    # What upsamplers copy does not depend on the attention.
    copied_formats = _FORMATS if options["attention"] == "sdpa" else ()
    for channels_last, task in copied_formats:
        copies = [*VAE_COPIES, *(VAE_COPIES_OF_ONE if channels_last else ())]
        for batch, height, width in itertools.chain.from_iterable(copies):
            request = GenerationRequest(batch=batch, channels_last=channels_last, task=task, **options)
            yield request, height, width, Layout()
        for batch, height, width in (*VAE_COPIES[-1], *((size[0], 1, 1) for size in VAE_COPIES[-1])):
            request = GenerationRequest(batch=batch, channels_last=channels_last, task=task, **options)
            yield request, height, width, Layout(is_cut=True)
    for batch, height, width in (*SIZES, *_ONE):
        for is_cut in (False, True):
            yield GenerationRequest(batch=batch, **options), height, width, Layout(is_cut, is_planar=True)


_FORMATS: tuple[tuple[bool, Any], ...] = ((False, "img2img"), (True, "img2img"), (True, "txt2img"))


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
    alone = list(_attentions()) if requests is None else list(requests)
    halves = list(_halves()) if requests is None else list(map(_whole_halves, requests))
    total = len(wanted) + len(alone) + len(halves) + 1
    for index, request in enumerate(wanted):
        report(index / total, request.describe())
        compiler.trace(request)
    for index, request in enumerate(alone):
        report((len(wanted) + index) / total, f"attention of {request.describe()}")
        compiler.trace_attention(request)
    for index, half in enumerate(halves):
        report((total - 1 - len(halves) + index) / total, f"VAE of {half[0].describe()}")
        compiler.trace_halves(*half)
    report(1.0, "fitting sizes")
    if requests is None:
        # Weights of all variants, the LoRA's at rank 1.
        for task, ip_adapter, rank in itertools.product(TASKS, IP_ADAPTERS, (0, 1)):
            compiler.pipeline(
                GenerationRequest(
                    task=task, ip_adapter=ip_adapter, lora_rank=rank, lora_text_encoder=rank > 0, controlnets=1
                )
            )
    module = _Pool()
    module("")
    weights = {
        name: np.array([(size, module(component), module(owner), *rest) for size, component, owner, *rest in rows])
        for name, rows in sorted(compiler.weights.items())
    }
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
