"""The allocation history of a pipeline call, by running the real pipeline on the meta device.

Tensors on the meta device have shapes and no memory, so the whole call takes a second on any machine. Every storage is
seen when an operation makes it and when its last reference goes; each convolution and attention call is noted
with what a kernel for it would need. Nothing here knows the size of a card or the rules of an allocator.

Leaves out: scratch of less than 100 KiB inside normalisation kernels, and flash attention's split-KV accumulators.
"""

import gc
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch._prims_common import suggest_memory_format
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from planner.flatten import Layout
from planner.modules import LOADED_COMPONENTS, apply_options, assemble, call_arguments, component_modules
from planner.request import VAE_SCALE_FACTOR, GenerationRequest

# Tensors up to this many elements keep their values beside them: timesteps and masks decide what runs next.
KEPT_NUMEL = 4096

META = torch.device("meta")

POINTWISE = {
    torch.ops.aten.add.Tensor,
    torch.ops.aten.sub.Tensor,
    torch.ops.aten.mul.Tensor,
    torch.ops.aten.div.Tensor,
}
PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
}


class Birth(NamedTuple):
    """A storage was made: its number, its bytes, and the module that made it."""

    slot: int
    size_bytes: int
    module: str


class Death(NamedTuple):
    """The last reference to a storage went."""

    slot: int


class Convolution(NamedTuple):
    """A convolution ran, its output already made. Shapes are torch's, weight is (out, in / groups, rows, columns)."""

    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    channels_last: bool
    module: str


class Attention(NamedTuple):
    """A fused attention call ran, its output already made."""

    batch: int
    heads: int
    tokens: int
    head_dim: int
    module: str


class Product(NamedTuple):
    """A matrix product ran: the first one makes cuBLAS's handle, and with it a workspace that stays."""


class Begin(NamedTuple):
    """A call that a program keeps as a routine of its own begins, on a batch of so many."""

    routine: str
    batch: int


class End(NamedTuple):
    """That call has returned; what it made and still lives is its result."""

    routine: str


class Stage(NamedTuple):
    """Another stage of the pipeline begins."""

    name: str


class Returned(NamedTuple):
    """The VAE's ``encode`` or ``decode`` has returned."""


class Repeat(NamedTuple):
    """Another pass of a loop over slices begins."""


class Loaded(NamedTuple):
    """The weights are where they belong, and the call begins."""


class EmptyCache(NamedTuple):
    """``torch.cuda.empty_cache()``."""


Event = (
    Birth | Death | Convolution | Attention | Product | Begin | End | Stage | Returned | Repeat | Loaded | EmptyCache
)

# The calls that programs keep as routines: (name, the module on the pipeline, its method).
ROUTINES = (
    ("text_encoder", "text_encoder", "forward"),
    ("vae._encode", "vae", "_encode"),
    ("vae.encoder", "vae.encoder", "forward"),
    ("vae._decode", "vae", "_decode"),
    ("vae.decoder", "vae.decoder", "forward"),
    # One pass of these loops is like the next.
    ("vae.blend", "vae", "blend_v"),
    ("vae.blend", "vae", "blend_h"),
    ("unet", "unet", "forward"),
    ("safety_checker", "safety_checker", "forward"),
    # Of the whole batch, or image by image.
    ("denormalize", "image_processor", "denormalize"),
)
# Those that a memory may stand in for: modules, whose results are plain tensors.
REMEMBERED = ("text_encoder", "vae.encoder", "vae.decoder", "unet", "safety_checker")


class Recorder:
    """Collects the events of what runs inside ``with recorder.watching(...)``."""

    def __init__(self):
        self.events: list[Event] = []
        self._slots: dict[int, int] = {}
        self._born = 0
        self._modules: list[str] = [""]

    def see(self, tensor: torch.Tensor) -> None:
        """Note the tensor's storage, unless it is known or not on the device."""
        if not on_device(tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._slots or not storage.nbytes():
            return
        slot, self._born = self._born, self._born + 1
        self._slots[key] = slot
        self.events.append(Birth(slot, storage.nbytes(), self._modules[-1]))
        weakref.finalize(storage, self._die, key).atexit = False

    def _die(self, key: int) -> None:
        self.events.append(Death(self._slots.pop(key)))

    def enter(self, module: str) -> None:
        """Put what is born from now on down to this module."""
        self._modules.append(module)

    def leave(self) -> None:
        """Back to the module before."""
        self._modules.pop()

    def load(self, component: str, module: torch.nn.Module) -> None:
        """Note the module's weights in the order in which ``module.to(device)`` makes them, as ``_apply`` walks."""
        self.enter(component)
        for child in module.children():
            self.load(component, child)
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                self.see(tensor)
        self.leave()

    @contextmanager
    def watching(self, names: Mapping[torch.nn.Module, str]) -> Generator[None]:
        """Everything that runs inside is recorded; `names` are the modules that births are put down to."""

        def entered(module: torch.nn.Module, _inputs: Any) -> None:
            self.enter(names.get(module, self._modules[-1]))

        def left(_module: torch.nn.Module, _inputs: Any, _output: Any) -> None:
            self.leave()

        with ExitStack() as stack:
            hooks = register_module_forward_pre_hook(entered), register_module_forward_hook(left, always_call=True)
            for hook in hooks:
                stack.callback(hook.remove)
            apply = torch.nn.Module._apply

            def moving(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
                # Weights are put down to their component, as in `load`.
                self.enter(names.get(module, self._modules[-1]).partition(".")[0])
                try:
                    return apply(module, *args, **kwargs)
                finally:
                    self.leave()

            stack.enter_context(mock.patch.object(torch.nn.Module, "_apply", moving))
            stack.enter_context(_FusedAttention(self))
            stack.enter_context(_Storages(self))
            stack.enter_context(torch.no_grad())
            yield

    def note_convolution(
        self, image: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, channels_last: bool
    ) -> None:
        """Note a convolution whose output is already made."""
        shapes = (tuple(image.shape), tuple(weight.shape), tuple(out.shape))
        self.events.append(Convolution(*shapes, channels_last, self._modules[-1]))

    def note_attention(self, query: torch.Tensor) -> None:
        """Note a call of ``scaled_dot_product_attention``."""
        batch, heads, tokens, head_dim = query.shape
        self.events.append(Attention(batch, heads, tokens, head_dim, self._modules[-1]))


def on_device(tensor: torch.Tensor) -> bool:
    """Whether the tensor is on the device that stands for a card."""
    return tensor.device.type == "meta"


def _with_strides_of(first: Any, out: torch.Tensor) -> torch.Tensor:
    """A new result with the strides that its kernel gives it: those of the first operand where it has only one image.

    The stride of an axis of length one says nothing of the layout, but decides what `suggest_memory_format` says. On
    meta some operations fall back to a Python reference, which fills it in otherwise than CPU and CUDA do.
    """
    if not isinstance(first, torch.Tensor) or first.dim() != 4 or first.shape != out.shape or first.shape[0] != 1:
        return out
    if first.stride() == out.stride() or first.stride()[1:] != out.stride()[1:]:
        return out
    return torch.empty_strided(out.shape, first.stride(), dtype=out.dtype, device=out.device)


def _keep(tensor: Any, value: torch.Tensor) -> None:
    """Keep a small tensor's values beside it: meta tensors have none, and pipelines read some."""
    tensor._value = value


def _value_of(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return getattr(leaf, "_value", leaf)
    return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == "meta" else leaf


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor)]


class _Storages(TorchDispatchMode):
    """Sees every operation below autograd, where composite ones have fallen apart into what allocates."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_host, result = self._to_host(func, args, kwargs)
        if on_host:
            return result
        if func is torch.ops.aten.convolution.default and on_device(args[0]):
            return self._convolution(args, kwargs)
        out = func(*args, **kwargs)
        if func in POINTWISE:
            out = _with_strides_of(args[0], out)
        self._keep_values(func, args, kwargs, out)
        for tensor in _tensors(out):
            self.recorder.see(tensor)
        if func in PRODUCTS and on_device(out):
            self.recorder.events.append(Product())
        return out

    def _convolution(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """A convolution as CUDA does it: channels_last when input *or* weight is, the other copied into that layout.

        Source: ATen/native/ConvUtils.h, cudnn_conv_suggest_memory_format; Convolution.cpp, where the input is made
        contiguous before, and cudnn/ConvShared.cpp, where the weight is after the output was made.
        """
        image, weight, *rest = args
        either = torch.channels_last in (suggest_memory_format(image), suggest_memory_format(weight))
        layout = torch.channels_last if either else torch.contiguous_format
        image = image.contiguous(memory_format=layout)
        self.recorder.see(image)
        out = torch.ops.aten.convolution.default(image, weight, *rest, **kwargs)
        # On meta the input alone decides, and not always.
        out = torch.empty_like(out, memory_format=layout)
        self.recorder.see(out)
        weight = weight.contiguous(memory_format=layout)
        self.recorder.see(weight)
        self.recorder.note_convolution(image, weight, out, either)
        return out

    @staticmethod
    def _to_host(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
        """What leaves the device: real numbers where they were kept, else zeros, which decide nothing in a pipeline."""
        source = next((a for a in args if isinstance(a, torch.Tensor) and on_device(a)), None)
        if source is None:
            return False, None
        if func is torch.ops.aten._local_scalar_dense.default:
            if not hasattr(source, "_value"):
                raise RuntimeError("the pipeline reads a number off the device that a trace cannot know")
            return True, source._value.item()
        if func is torch.ops.aten._to_copy.default and str(kwargs.get("device")) == "cpu":
            dtype = kwargs.get("dtype") or source.dtype
            if hasattr(source, "_value"):
                return True, source._value.to(dtype, copy=True)
            if isinstance(source, torch.nn.Parameter):
                # Offloaded weights: never read, so their pages are never touched.
                return True, torch.empty_like(source, device="cpu", dtype=dtype)
            return True, torch.zeros_like(source, device="cpu", dtype=dtype)
        return False, None

    @staticmethod
    def _keep_values(func: Any, args: Any, kwargs: Any, out: Any) -> None:
        made = [tensor for tensor in _tensors(out) if on_device(tensor)]
        if not made:
            return
        read = _tensors((args, kwargs))
        known = all(hasattr(t, "_value") or (not on_device(t) and t.numel() <= KEPT_NUMEL) for t in read)
        if known and all(tensor.numel() <= KEPT_NUMEL for tensor in made):
            values = func(*tree_map(_value_of, args), **tree_map(_value_of, kwargs))
            for tensor, value in zip(_tensors(out), _tensors(values), strict=True):
                _keep(tensor, value)
        else:
            for tensor in made:
                if hasattr(tensor, "_value"):
                    del tensor._value


class _FusedAttention(TorchFunctionMode):
    """Attention as the fused kernels do it: one output, laid out (batch, tokens, heads, head_dim)."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        query, value = named["query"], named["value"]
        batch, heads, tokens, _ = query.shape
        out = torch.empty((batch, tokens, heads, value.shape[-1]), dtype=query.dtype, device=query.device)
        self.recorder.note_attention(query)
        return out.transpose(1, 2)


def meta_modules(*, safety_checker: bool = True, channels_last: bool = False) -> dict[str, Any]:
    """The real SD v1.5 modules in float16 on the meta device; small buffers keep their values beside them."""
    modules = component_modules(safety_checker=safety_checker)
    for name, module in modules.items():
        module.to(torch.float16)
        if channels_last and name in ("unet", "vae"):
            module.to(memory_format=torch.channels_last)
        move_buffers(module)
    return modules


def move_buffers(module: torch.nn.Module) -> None:
    """Put the module's real buffers on the meta device, their values beside them where they are small."""
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and not on_device(buffer):
                moved = buffer.to(META)
                if buffer.numel() <= KEPT_NUMEL:
                    _keep(moved, buffer)
                part._buffers[name] = moved


class Routines:
    """Marks the calls of `ROUTINES` in a recording and, with a memory, runs each of them only once a shape.

    The memory maps (routine, shapes) to how the result looked. What such a call allocates was recorded when
    it ran; later only its results are made, so that a pipeline with stand-ins takes a tenth of the time.
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
        """`forward`, marked and remembered. What a method other than `forward` makes is put down to its component."""

        def marked(*args: Any, **kwargs: Any) -> Any:
            inputs = _tensors((args, kwargs))
            if method != "forward":
                self.recorder.enter(component)
            # Per image, the axis of the batch is gone.
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
        """The result with each new tensor replaced by (shape, strides, dtype), in the order they were born."""
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
    """A result that is one of the call's inputs."""

    def __init__(self, index: int):
        self.index = index


class _Like:
    """How a result looked."""

    def __init__(self, shape: Any, stride: Any, dtype: torch.dtype):
        self.shape, self.stride, self.dtype = shape, stride, dtype


def _module_names(pipeline: Any) -> dict[torch.nn.Module, str]:
    """The name of each module from its component down, such as ``vae.decoder.up_blocks.3.resnets.0.conv1``."""
    return {
        module: f"{component}.{path}".rstrip(".")
        for component in LOADED_COMPONENTS
        if getattr(pipeline, component) is not None
        for path, module in getattr(pipeline, component).named_modules()
    }


def trace_call(
    pipeline: Any,
    request: GenerationRequest,
    *,
    memory: dict[Any, Any] | None = None,
) -> list[Event]:
    """The events of loading the pipeline's weights and calling it once for this request.

    The pipeline's parameters and buffers are on the meta device. Weights are born in the order in which the worker
    loads them; with offload they stay on the host until the call brings them over.
    """
    recorder = Recorder()
    components = [(name, getattr(pipeline, name)) for name in LOADED_COMPONENTS if getattr(pipeline, name) is not None]
    apply_options(pipeline, request)
    # A scheduler remembers its last call: its tables stay on the device.
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    routines = Routines(recorder, memory)
    with ExitStack() as stack:
        routines.mark(stack, pipeline)
        _mark_stages(stack, pipeline, recorder)
        _mark_slices(stack, recorder)
        if request.offload == "model":
            _offload(stack, pipeline, recorder)
        _keep_thresholds(pipeline)
        with recorder.watching(_module_names(pipeline)), _no_collector():
            if request.offload == "none":
                for name, module in components:
                    recorder.load(name, module)
            recorder.events.append(Loaded())
            pipeline(**call_arguments(request))
    return list(recorder.events)


@contextmanager
def _no_collector() -> Generator[None]:
    """Without Python's cycle collector, which would end storages at moments that depend on all that ran before."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _mark_stages(stack: ExitStack, pipeline: Any, recorder: Recorder) -> None:
    """Stages begin where the worker's do: at a component's call, before offload brings its weights."""
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
    """A pass of sliced attention begins where its scores are computed."""
    from diffusers.models.attention_processor import Attention as DiffusersAttention

    scores = DiffusersAttention.get_attention_scores

    def marked(*args: Any, **kwargs: Any) -> Any:
        recorder.events.append(Repeat())
        return scores(*args, **kwargs)

    stack.enter_context(mock.patch.object(DiffusersAttention, "get_attention_scores", marked))


def _offload(stack: ExitStack, pipeline: Any, recorder: Recorder) -> None:
    """``enable_model_cpu_offload`` with the meta device as the card, its flushes of the cache noted."""

    def flush(*_: Any) -> None:
        recorder.events.append(EmptyCache())

    stack.enter_context(mock.patch("accelerate.hooks.clear_device_cache", flush))
    stack.enter_context(mock.patch("diffusers.pipelines.pipeline_utils.empty_device_cache", flush))
    # What the call gives back as it returns reaches no peak.
    stack.enter_context(mock.patch.object(pipeline, "maybe_free_model_hooks", lambda: None))
    with recorder.watching(_module_names(pipeline)):
        pipeline.enable_model_cpu_offload(device=META)
    recorder.events = [event for event in recorder.events if not isinstance(event, EmptyCache)]
    for hook in pipeline._all_hooks:
        # It is given an index, which the meta device has none of: weights in place would seem to be elsewhere.
        hook.hook.execution_device = META
    stack.callback(pipeline.remove_all_hooks)


def _keep_thresholds(pipeline: Any) -> None:
    """Thresholds that no cosine exceeds, as with the worker's synthetic weights: no picture is blacked out."""
    for name in ("concept_embeds_weights", "special_care_embeds_weights"):
        parameter = getattr(pipeline.safety_checker, name, None)
        if parameter is not None:
            _keep(parameter, torch.ones(parameter.shape))


def trace_halves(
    pipeline: Any, request: GenerationRequest, latent_height: int, latent_width: int, layout: Layout
) -> list[Event]:
    """The events of encoding and decoding alone, of input that lies in memory as it does not in a whole pipeline."""
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
    """The events of this request on the real SD v1.5: weights, then the call."""
    modules = meta_modules(safety_checker=request.safety_checker, channels_last=request.channels_last)
    pipeline = assemble(modules, request.task)
    return trace_call(pipeline, request)
