"""Trace the allocations of a pipeline call by running the real pipeline on the meta device.

Calls that programs keep as routines are marked, stages begin where the worker's do, and model offload moves weights as
accelerate does. The compiler makes programs of the recorded events.
"""

import gc
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils._pytree import tree_map

from planner.components import LOAD_ORDER
from planner.programs.names import Layout
from planner.request import VAE_SCALE_FACTOR, GenerationRequest
from planner.tracing.pipeline import apply_options, assemble, call_arguments, component_modules
from planner.tracing.recorder import (
    KEPT_NUMEL,
    META,
    Begin,
    EmptyCache,
    End,
    Event,
    Loaded,
    Recorder,
    Repeat,
    Returned,
    Stage,
    keep_values,
    on_device,
    tensors_in,
)

# The calls that programs keep as routines: (name, the module on the pipeline, its method).
ROUTINES = (
    ("text_encoder", "text_encoder", "forward"),
    ("vae._encode", "vae", "_encode"),
    ("vae.encoder", "vae.encoder", "forward"),
    ("vae._decode", "vae", "_decode"),
    ("vae.decoder", "vae.decoder", "forward"),
    # Every pass of these loops is like the others.
    ("vae.blend", "vae", "blend_v"),
    ("vae.blend", "vae", "blend_h"),
    ("unet", "unet", "forward"),
    ("safety_checker", "safety_checker", "forward"),
    # This runs on the whole batch, or image by image.
    ("denormalize", "image_processor", "denormalize"),
)
# The pipeline takes an image, but never looks at its size, for the work on pixels is replaced.
_SMALL_IMAGE = Image.new("RGB", (8, 8))

# The routines that need to run only once a shape: modules, whose results are plain tensors.
REMEMBERED = ("text_encoder", "vae.encoder", "vae.decoder", "unet", "safety_checker")


def meta_modules(*, safety_checker: bool = True, channels_last: bool = False) -> dict[str, Any]:
    """Build the SD v1.5 modules in float16 on the meta device.

    Small buffers keep their values beside them.
    """
    modules = component_modules(safety_checker=safety_checker)
    for name, module in modules.items():
        module.to(torch.float16)
        if channels_last and name in ("unet", "vae"):
            module.to(memory_format=torch.channels_last)
        move_buffers(module)
    return modules


def move_buffers(module: torch.nn.Module) -> None:
    """Move the module's real buffers to the meta device.

    Small buffers keep their values beside them.
    """
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and not on_device(buffer):
                moved = buffer.to(META)
                if buffer.numel() <= KEPT_NUMEL:
                    keep_values(moved, buffer)
                part._buffers[name] = moved


class Routines:
    """Mark the calls of `ROUTINES` in a recording, and remember their results.

    With a memory, each of them runs only once a shape. The memory maps (routine, shapes) to a description of the
    result. The allocations of such a call were recorded when it ran; later calls only make its results, so that a
    pipeline with stand-ins takes a tenth of the time.
    """

    def __init__(self, recorder: Recorder, memory: dict[Any, Any] | None = None):
        self.recorder, self.memory = recorder, memory

    def mark(self, stack: ExitStack, pipeline: Any) -> None:
        """Mark every routine of this pipeline until the stack unwinds."""
        for routine, path, method in ROUTINES:
            module = pipeline
            for name in path.split("."):
                module = getattr(module, name)
            if module is not None:
                marked = self.wrap(routine, path, method, getattr(module, method))
                stack.enter_context(mock.patch.object(module, method, marked))

    def wrap(self, routine: str, component: str, method: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `forward` so that its calls are marked and remembered.

        The storages that a method other than ``forward`` makes are attributed to its component.
        """

        def marked(*args: Any, **kwargs: Any) -> Any:
            inputs = tensors_in((args, kwargs))
            if method != "forward":
                self.recorder.enter(component)
            # A call on one image has no axis for the batch.
            is_one = routine == "denormalize" and inputs[0].dim() == 3
            name = "denormalize_one" if is_one else routine
            self.recorder.events.append(Begin(name, 1 if is_one else inputs[0].shape[0]))
            key = (routine, tuple((tuple(t.shape), t.stride()) for t in inputs))
            memory = self.memory if routine in REMEMBERED else None
            if memory is not None and key in memory:
                out = self._made_anew(memory[key], inputs)
            else:
                out = forward(*args, **kwargs)
                if memory is not None:
                    memory[key] = self._described(out, inputs)
            del inputs
            if method != "forward":
                self.recorder.leave()
            self.recorder.events.append(End(name))
            return out

        return marked

    @staticmethod
    def _described(out: Any, inputs: list[torch.Tensor]) -> Any:
        """Replace each new tensor of the result by its shape, strides and dtype.

        Their order is that of their birth.
        """
        known = {tensor.untyped_storage()._cdata: index for index, tensor in enumerate(inputs)}

        def describe(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            if leaf.untyped_storage()._cdata in known:
                return _Passed(known[leaf.untyped_storage()._cdata])
            return _Like(leaf.shape, leaf.stride(), leaf.dtype)

        return tree_map(describe, out)

    @staticmethod
    def _made_anew(described: Any, inputs: list[torch.Tensor]) -> Any:
        def make(leaf: Any) -> Any:
            if isinstance(leaf, _Passed):
                return inputs[leaf.index]
            if isinstance(leaf, _Like):
                return torch.empty_strided(leaf.shape, leaf.stride, dtype=leaf.dtype, device=META)
            return leaf

        return tree_map(make, described, is_leaf=lambda leaf: isinstance(leaf, (_Passed, _Like)))


class _Passed:
    """Stand for a result that is one of the call's inputs."""

    def __init__(self, index: int):
        self.index = index


class _Like:
    """Describe a result by its shape, strides and dtype."""

    def __init__(self, shape: Any, stride: Any, dtype: torch.dtype):
        self.shape, self.stride, self.dtype = shape, stride, dtype


def _module_names(pipeline: Any) -> dict[torch.nn.Module, str]:
    """Name each module from its component down, such as ``vae.decoder.conv_in``."""
    return {
        module: f"{component}.{path}".rstrip(".")
        for component in LOAD_ORDER
        if getattr(pipeline, component) is not None
        for path, module in getattr(pipeline, component).named_modules()
    }


def trace_call(
    pipeline: Any,
    request: GenerationRequest,
    *,
    memory: dict[Any, Any] | None = None,
) -> list[Event]:
    """Record the events of loading the pipeline's weights and calling it once for this request.

    The pipeline's parameters and buffers are on the meta device. Weights are born in the order in which the worker
    loads them; with offload they stay on the host until the call brings them over.
    """
    recorder = Recorder()
    components = [(name, getattr(pipeline, name)) for name in LOAD_ORDER if getattr(pipeline, name) is not None]
    apply_options(pipeline, request)
    # The scheduler is made anew, for one that has run keeps its tables on the device.
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    routines = Routines(recorder, memory)
    with ExitStack() as stack:
        routines.mark(stack, pipeline)
        _mark_stages(stack, pipeline, recorder)
        _mark_slices(stack, recorder)
        _leave_out_host_images(stack, pipeline, request)
        if request.offload == "model":
            _offload(stack, pipeline, recorder)
        _keep_thresholds(pipeline)
        with recorder.watching(_module_names(pipeline)), _no_collector():
            if request.offload == "none":
                for name, module in components:
                    recorder.load(name, module)
            recorder.events.append(Loaded())
            pipeline(**call_arguments(request, _SMALL_IMAGE))
    return list(recorder.events)


@contextmanager
def _no_collector() -> Generator[None]:
    """Run without Python's cycle collector.

    It would free storages at moments that depend on earlier code.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _leave_out_host_images(stack: ExitStack, pipeline: Any, request: GenerationRequest) -> None:
    """Replace the host's work on pixels, which takes gigabytes of host memory.

    It moves no allocation on the device. A preprocessed image is on the host and, coming from PIL by way of numpy,
    channels_last. Here it is on the meta device, in a dtype that no pipeline uses, so that moving it to the device
    still makes a copy.
    """
    shape = (request.batch, 3, request.effective_height, request.effective_width)
    given = torch.empty(shape, dtype=torch.float64, device=META, memory_format=torch.channels_last)
    # A decoded image may have any size, for the safety checker's processor resizes all images to one size.
    made = np.zeros((request.batch, 8, 8, 3), dtype=np.float32)
    processor = pipeline.image_processor
    stack.enter_context(mock.patch.object(processor, "preprocess", lambda *_, **__: given))
    stack.enter_context(mock.patch.object(processor, "pt_to_numpy", lambda _: made))


def _mark_stages(stack: ExitStack, pipeline: Any, recorder: Recorder) -> None:
    """Mark stages where the worker's begin.

    That is at a component's call, before offload brings its weights.
    """
    for component in ("text_encoder", "unet", "safety_checker"):
        module = getattr(pipeline, component)
        if module is not None:
            hook = module.register_forward_pre_hook(lambda *_, stage=component: recorder.events.append(Stage(stage)))
            stack.callback(hook.remove)
    for stage, method in (("vae_encoder", "encode"), ("vae_decoder", "decode")):
        call = getattr(pipeline.vae, method)

        def marked(*args: Any, stage: str = stage, call: Callable[..., Any] = call, **kwargs: Any) -> Any:
            recorder.events.append(Stage(stage))
            out = call(*args, **kwargs)
            recorder.events.append(Returned())
            return out

        stack.enter_context(mock.patch.object(pipeline.vae, method, marked))


def _mark_slices(stack: ExitStack, recorder: Recorder) -> None:
    """Mark the passes of sliced attention, which begin where scores are computed."""
    from diffusers.models.attention_processor import Attention as DiffusersAttention

    scores = DiffusersAttention.get_attention_scores

    def marked(*args: Any, **kwargs: Any) -> Any:
        recorder.events.append(Repeat())
        return scores(*args, **kwargs)

    stack.enter_context(mock.patch.object(DiffusersAttention, "get_attention_scores", marked))


def _offload(stack: ExitStack, pipeline: Any, recorder: Recorder) -> None:
    """Enable model offload with the meta device as the GPU, and record its flushes of the cache."""

    def flush(*_: Any) -> None:
        recorder.events.append(EmptyCache())

    stack.enter_context(mock.patch("accelerate.hooks.clear_device_cache", flush))
    stack.enter_context(mock.patch("diffusers.pipelines.pipeline_utils.empty_device_cache", flush))
    # The storages that the call frees as it returns reach no peak.
    stack.enter_context(mock.patch.object(pipeline, "maybe_free_model_hooks", lambda: None))
    with recorder.watching(_module_names(pipeline)):
        pipeline.enable_model_cpu_offload(device=META)
    recorder.events = [event for event in recorder.events if not isinstance(event, EmptyCache)]
    for hook in pipeline._all_hooks:
        # The hook has a device with an index. The meta device has none, so loaded weights would seem to be elsewhere.
        hook.hook.execution_device = META
    stack.callback(pipeline.remove_all_hooks)


def _keep_thresholds(pipeline: Any) -> None:
    """Set thresholds that no cosine exceeds, so that no picture is blacked out.

    The worker's synthetic weights do the same.
    """
    for name in ("concept_embeds_weights", "special_care_embeds_weights"):
        parameter = getattr(pipeline.safety_checker, name, None)
        if parameter is not None:
            keep_values(parameter, torch.ones(parameter.shape))


def trace_halves(
    pipeline: Any, request: GenerationRequest, latent_height: int, latent_width: int, layout: Layout
) -> list[Event]:
    """Record the events of encoding and decoding alone, on input of another layout.

    No whole pipeline gives the VAE such input.
    """
    recorder = Recorder()
    encoded = request.channels_last and request.task == "img2img"
    formats = not layout.is_planar, encoded
    with ExitStack() as stack:
        recorder.load("vae", pipeline.vae)
        recorder.events.clear()
        Routines(recorder).mark(stack, pipeline)
        with recorder.watching(_module_names(pipeline)), _no_collector():
            for call, channels, scale, in_rows in (
                (pipeline.vae._encode, 3, VAE_SCALE_FACTOR, formats[0]),
                (pipeline.vae._decode, 4, 1, formats[1]),
            ):
                height, width = scale * latent_height, scale * latent_width
                times = 2 if layout.is_cut else 1
                shape = (request.batch, channels, times * height, times * width)
                whole = torch.empty(shape, dtype=torch.float16, device=META)
                whole = whole.contiguous(memory_format=torch.channels_last if in_rows else torch.contiguous_format)
                call(whole[:, :, :height, :width] if layout.is_cut else whole)
                del whole
    return list(recorder.events)


def trace(request: GenerationRequest) -> list[Event]:
    """Record the events of this request on the real SD v1.5: weights, then the call."""
    modules = meta_modules(safety_checker=request.safety_checker, channels_last=request.channels_last)
    pipeline = assemble(modules, request.task)
    return trace_call(pipeline, request)
