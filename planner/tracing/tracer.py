"""Trace the allocations of a pipeline call by running the real pipeline on the meta device.

Calls that programs keep as routines are marked, stages begin where the worker's do, and model offload moves weights as
accelerate does. The compiler makes programs of the recorded events.
"""

import gc
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from planner.components import LOAD_ORDER
from planner.programs.names import Layout, in_rows
from planner.request import DEFAULT, MAX_PROMPT_TOKENS, VAE_SCALE_FACTOR, GenerationRequest
from planner.tracing.pipeline import IP_ADAPTER_TOKENS, apply_options, assemble, call_arguments, component_modules
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

# The calls that programs keep as routines: (name, the module on the pipeline, its method). `_blocks` lists those inside
# the UNet and the ControlNets.
ROUTINES = (
    ("text_encoder", "text_encoder", "forward"),
    ("image_encoder", "image_encoder", "forward"),
    ("vae._encode", "vae", "_encode"),
    ("vae.encoder", "vae.encoder", "forward"),
    ("vae.encoder.attention", "vae.encoder.mid_block.attentions.0", "forward"),
    ("vae._decode", "vae", "_decode"),
    ("vae.decoder", "vae.decoder", "forward"),
    ("vae.decoder.attention", "vae.decoder.mid_block.attentions.0", "forward"),
    # Every pass of these loops is like the others.
    ("vae.blend", "vae", "blend_v"),
    ("vae.blend", "vae", "blend_h"),
    ("unet", "unet", "forward"),
    ("unet.conv_in", "unet.conv_in", "forward"),
    ("ip_projection", "unet.encoder_hid_proj", "forward"),
    ("ip_embeddings", "", "prepare_ip_adapter_image_embeds"),
    ("control_image", "", "prepare_image"),
    ("control_image", "", "prepare_control_image"),
    ("check", "", "run_safety_checker"),
    ("safety_checker", "safety_checker", "forward"),
    # This runs on the whole batch, or image by image.
    ("denormalize", "image_processor", "denormalize"),
)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

# The pipeline takes an image, but never looks at its size, for the work on pixels is replaced.
_SMALL_IMAGE = Image.new("RGB", (8, 8))

# The routines that run each time: those that a trace without memory is about, and the small ones.
_ALWAYS = ("vae._encode", "vae._decode", "vae.blend", "denormalize")


def meta_modules(request: GenerationRequest) -> dict[str, Any]:
    """Build the SD v1.5 modules of this request on the meta device, in its data type and memory formats.

    Small buffers keep their values beside them.
    """
    modules = component_modules(request)
    for name, module in modules.items():
        module.to(DTYPES[request.dtype])
        if name in in_rows(request):
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


def _blocks(pipeline: Any) -> list[tuple[str, str, str]]:
    """List the routines inside the UNet and the ControlNets, once for a pipeline."""
    if not hasattr(pipeline, "_listed_blocks"):
        pipeline._listed_blocks = list(_listed_blocks(pipeline))
    return pipeline._listed_blocks


def _listed_blocks(pipeline: Any) -> Iterator[tuple[str, str, str]]:
    """List the routines inside the UNet and the ControlNets, as `ROUTINES` does.

    Blocks and attention layers of one depth allocate alike. A ControlNet's have names of their own, for neither a LoRA
    nor an IP-Adapter is on them.
    """
    control = getattr(pipeline, "controlnet", None)
    nets = list(getattr(control, "nets", [])) if control is not None else []
    paths = [f"controlnet.nets.{index}" for index in range(len(nets))] or (
        ["controlnet"] if control is not None else []
    )
    if nets:
        yield "controlnets", "controlnet", "forward"
    for path in paths:
        yield "controlnet", path, "forward"
    for prefix, path in (("", "unet"), *(("control.", path) for path in paths)):
        root = _found(pipeline, path)
        depth = len(root.down_blocks)
        blocks = [(f"{prefix}down.{i}", f"{path}.down_blocks.{i}", i) for i in range(depth)]
        blocks.append((f"{prefix}mid", f"{path}.mid_block", depth - 1))
        blocks += [
            (f"{prefix}up.{i}", f"{path}.up_blocks.{i}", depth - 1 - i)
            for i in range(len(getattr(root, "up_blocks", ())))
        ]
        for name, block, level in blocks:
            yield name, block, "forward"
            for inner, _ in _found(pipeline, block).named_modules():
                if inner.endswith((".attn1", ".attn2")):
                    yield f"{prefix}{inner[-5:]}.{level}", f"{block}.{inner}", "forward"


def _found(pipeline: Any, path: str) -> Any:
    """Give the object at this path of attributes; None where the pipeline has none."""
    found = pipeline
    for name in filter(None, path.split(".")):
        found = found[int(name)] if name.isdigit() else getattr(found, name, None)
        if found is None:
            return None
    return found


class Routines:
    """Mark the calls of routines in a recording, and remember their results.

    With a memory, each of them runs only once a shape. `name_of` gives the compiled name of a routine on a batch, and
    the memory maps (name, shapes) to a description of the result. The allocations of such a call were recorded when it
    ran; later calls only make its results, so that a pipeline with stand-ins takes a tenth of the time.
    """

    def __init__(
        self,
        recorder: Recorder,
        memory: dict[Any, Any] | None = None,
        name_of: Callable[[str, int], str] = lambda name, _: name,
        request: GenerationRequest = DEFAULT,
    ):
        self.recorder, self.memory, self.name_of = recorder, memory, name_of
        self.controlnets, self.images = request.controlnets, request.images
        self.side = request.latent_height, request.latent_width

    def mark(self, stack: ExitStack, pipeline: Any) -> None:
        """Mark every routine of this pipeline until the stack unwinds."""
        for routine, path, method in (*ROUTINES, *_blocks(pipeline)):
            module = _found(pipeline, path)
            if module is not None and hasattr(module, method):
                marked = self.wrap(routine, path, method, getattr(module, method))
                stack.enter_context(mock.patch.object(module, method, marked))

    def wrap(self, routine: str, path: str, method: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `forward` so that its calls are marked and remembered.

        The storages that a method other than ``forward`` makes are attributed to its component.
        """

        def marked(*args: Any, **kwargs: Any) -> Any:
            inputs = tensors_in((args, kwargs))
            name, batch = self._called(routine, inputs, kwargs)
            memory = None if routine in _ALWAYS else self.memory
            key = self.name_of(name, batch), batch, self.side, tuple((tuple(t.shape), t.stride()) for t in inputs)
            known = memory is not None and key in memory
            if method != "forward":
                self.recorder.enter(path)
            self.recorder.events.append(Begin(name, batch, path, known))
            if memory is not None and known:
                out = self._made_anew(memory[key], inputs)
            else:
                born = self.recorder.born
                out = forward(*args, **kwargs)
                if memory is not None:
                    memory[key] = self._described(out, inputs, born)
            del inputs
            if method != "forward":
                self.recorder.leave()
            self.recorder.events.append(End(name))
            return out

        return marked

    def _called(self, routine: str, inputs: list[torch.Tensor], arguments: Mapping[str, Any]) -> tuple[str, int]:
        """Name the routine that is called, and count the images that it is called on."""
        if routine == "denormalize" and inputs[0].dim() == 3:
            # A call on one image has no axis for the batch.
            return "denormalize_one", 1
        if routine == "control_image":
            return ("control_image_of_many" if self.controlnets > 1 else routine), arguments["batch_size"]
        if routine == "ip_embeddings":
            return routine, self.images
        return routine, inputs[0].shape[0]

    def _described(self, out: Any, inputs: list[torch.Tensor], born: int) -> Any:
        """Describe the storages of the result that were made since `born`, and its tensors on them.

        Raises:
            ValueError: the result is on a storage that is neither new nor an input's.
        """
        known = {tensor.untyped_storage()._cdata: index for index, tensor in enumerate(inputs)}
        new = sorted({slot for t in tensors_in(out) if (slot := self.recorder.slot_of(t)) is not None and slot >= born})
        numbers = {slot: number for number, slot in enumerate(new)}
        sizes: dict[int, int] = {}

        def describe(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            storage = leaf.untyped_storage()
            if storage._cdata in known:
                return _Passed(known[storage._cdata])
            slot = self.recorder.slot_of(leaf)
            if slot not in numbers:
                raise ValueError("a result is on a storage that the call did not make")
            sizes[numbers[slot]] = storage.nbytes()
            return _Like(numbers[slot], leaf.shape, leaf.stride(), leaf.storage_offset(), leaf.dtype)

        described = tree_map(describe, out)
        return [sizes[number] for number in range(len(new))], described

    @staticmethod
    def _made_anew(described: Any, inputs: list[torch.Tensor]) -> Any:
        sizes, tree = described
        made = [torch.empty(size, dtype=torch.uint8, device=META) for size in sizes]

        def make(leaf: Any) -> Any:
            if isinstance(leaf, _Passed):
                return inputs[leaf.index]
            if isinstance(leaf, _Like):
                # The recorder has seen the storage, and must not look for values in it.
                with _disable_current_modes():
                    tensor = torch.empty(0, dtype=leaf.dtype, device=META)
                    return tensor.set_(made[leaf.number].untyped_storage(), leaf.offset, leaf.shape, leaf.stride)
            return leaf

        return tree_map(make, tree, is_leaf=lambda leaf: isinstance(leaf, (_Passed, _Like)))


class _Passed:
    """Stand for a result that is one of the call's inputs."""

    def __init__(self, index: int):
        self.index = index


class _Like:
    """Describe a result by the number of its storage, its place there and its dtype."""

    def __init__(self, number: int, shape: Any, stride: Any, offset: int, dtype: torch.dtype):
        self.number, self.shape, self.stride, self.offset, self.dtype = number, shape, stride, offset, dtype


def _module_names(pipeline: Any) -> dict[torch.nn.Module, str]:
    """Name each module from its component down, such as ``vae.decoder.conv_in``, once for a pipeline."""
    if not hasattr(pipeline, "_listed_names"):
        pipeline._listed_names = _listed_names(pipeline)
    return pipeline._listed_names


def _weight_storages(pipeline: Any) -> frozenset[int]:
    """Give the storages of all parameters and buffers, listed once for a pipeline."""
    if not hasattr(pipeline, "_listed_storages"):
        modules = [module for name in LOAD_ORDER if (module := getattr(pipeline, name, None)) is not None]
        tensors = (t for module in modules for t in (*module.parameters(), *module.buffers()))
        pipeline._listed_storages = frozenset(t.untyped_storage()._cdata for t in tensors)
    return pipeline._listed_storages


def _listed_names(pipeline: Any) -> dict[torch.nn.Module, str]:
    return {
        module: f"{component}.{path}".rstrip(".")
        for component in LOAD_ORDER
        if getattr(pipeline, component, None) is not None
        for path, module in getattr(pipeline, component).named_modules()
    }


def trace_call(
    pipeline: Any,
    request: GenerationRequest,
    *,
    memory: dict[Any, Any] | None = None,
    name_of: Callable[[str, int], str] = lambda name, _: name,
    with_weights: bool = True,
) -> list[Event]:
    """Record the events of loading the pipeline's weights and calling it once for this request.

    The pipeline's parameters and buffers are on the meta device. Weights are born in the order in which the worker
    loads them; with offload they stay on the host until the call brings them over. With a `memory`, see `Routines`.
    """
    recorder = Recorder()
    components = [(name, module) for name in LOAD_ORDER if (module := getattr(pipeline, name, None)) is not None]
    apply_options(pipeline, request)
    # The scheduler is made anew, for one that has run keeps its tables on the device.
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    routines = Routines(recorder, memory, name_of, request)
    with ExitStack() as stack:
        routines.mark(stack, pipeline)
        _mark_stages(stack, pipeline, recorder)
        _mark_slices(stack, recorder)
        _leave_out_host_images(stack, pipeline, request)
        if request.offload == "model":
            _offload(stack, pipeline, recorder)
        _keep_thresholds(pipeline)
        with recorder.watching(_module_names(pipeline)), _no_collector():
            if not with_weights:
                recorder.ignored = _weight_storages(pipeline)
            elif request.offload == "none":
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
    channels_last. Here the one of img2img is on the meta device, in a dtype that no pipeline uses, so that moving it to
    the device still makes a copy. Masks and control images are computed with before they move, and so stay real.
    """
    processor = pipeline.image_processor
    if request.task == "img2img" and not request.controlnets:
        shape = (request.batch, 3, request.effective_height, request.effective_width)
        given = torch.empty(shape, dtype=torch.float64, device=META, memory_format=torch.channels_last)
        stack.enter_context(mock.patch.object(processor, "preprocess", lambda *_, **__: given))
    # A decoded image may have any size, for the safety checker's processor resizes all images to one size.
    made = np.zeros((request.images, 8, 8, 3), dtype=np.float32)
    stack.enter_context(mock.patch.object(processor, "pt_to_numpy", lambda _: made))


def _mark_stages(stack: ExitStack, pipeline: Any, recorder: Recorder) -> None:
    """Mark stages where the worker's begin.

    That is at a component's call, before offload brings its weights.
    """
    for component in ("text_encoder", "image_encoder", "controlnet", "unet", "safety_checker"):
        module = getattr(pipeline, component, None)
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
        recorder.ignored = _weight_storages(pipeline)
        Routines(recorder).mark(stack, pipeline)
        with recorder.watching(_module_names(pipeline)), _no_collector():
            for call, channels, scale, in_rows in (
                (pipeline.vae._encode, 3, VAE_SCALE_FACTOR, formats[0]),
                (pipeline.vae._decode, 4, 1, formats[1]),
            ):
                height, width = scale * latent_height, scale * latent_width
                times = 2 if layout.is_cut else 1
                shape = (request.batch, channels, times * height, times * width)
                whole = torch.empty(shape, dtype=DTYPES[request.dtype], device=META)
                whole = whole.contiguous(memory_format=torch.channels_last if in_rows else torch.contiguous_format)
                call(whole[:, :, :height, :width] if layout.is_cut else whole)
                del whole
    return list(recorder.events)


def trace_attention(pipeline: Any, request: GenerationRequest) -> list[Event]:
    """Record the events of one self-attention and one cross-attention layer of each depth alone.

    They are called as `BasicTransformerBlock` calls them: on contiguous features of (images, tokens, channels), and on
    the prompt's embeddings with those of an IP-Adapter.
    """
    recorder = Recorder()
    recorder.ignored = _weight_storages(pipeline)
    done: set[str] = set()
    dtype = DTYPES[request.dtype]
    embeddings: Any = torch.empty(
        (request.unet_batch, MAX_PROMPT_TOKENS, _prompt_width(pipeline)), dtype=dtype, device=META
    )
    tokens = IP_ADAPTER_TOKENS.get(request.ip_adapter)
    pictures = torch.empty((request.unet_batch, 1, tokens or 1, embeddings.shape[-1]), dtype=dtype, device=META)
    with ExitStack() as stack:
        Routines(recorder).mark(stack, pipeline)
        _mark_slices(stack, recorder)
        with recorder.watching(_module_names(pipeline)), _no_collector():
            recorder.see(embeddings)
            recorder.see(pictures)
            for name, path, _ in _blocks(pipeline):
                if name in done or ".attn" not in path:
                    continue
                done.add(name)
                layer, depth = _found(pipeline, path), int(name[-1])
                side = [-(-latent // 2**depth) for latent in (request.latent_height, request.latent_width)]
                shape = (request.unet_batch, side[0] * side[1], layer.to_q.in_features)
                features = torch.empty(shape, dtype=dtype, device=META)
                recorder.see(features)
                given = None if path.endswith("attn1") else embeddings
                if given is not None and tokens and not name.startswith("control"):
                    given = (embeddings, [pictures])
                out = layer(features, encoder_hidden_states=given)
                del out
                del features
    return list(recorder.events)


def _prompt_width(pipeline: Any) -> int:
    return pipeline.unet.config.cross_attention_dim


def trace(request: GenerationRequest) -> list[Event]:
    """Record the events of this request on the real SD v1.5: weights, then the call."""
    return trace_call(assemble(meta_modules(request), request), request)
