"""Record what runs on the meta device: births and deaths of storages, and kernels.

Tensors on the meta device have shapes and no memory, so a whole pipeline call takes a second on any machine. The
recorder sees operations below autograd, where composite ones have been split into those that allocate, and gives
convolutions and attention the memory formats and results of CUDA's own kernels. So it records what CUDA would allocate,
and knows neither the size of a GPU nor the rules of an allocator.

Not recorded: scratch of less than 100 KiB inside normalisation kernels, and flash attention's split-KV accumulators.
"""

import weakref
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch._prims_common import suggest_memory_format
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

# Tensors up to this many elements keep their values beside them: timesteps and masks decide what runs next.
KEPT_NUMEL = 4096

META = torch.device("meta")

# Noise is drawn on the host, where the generator is, and no code depends on its values.
NOISE = {torch.ops.aten.randn.default, torch.ops.aten.randn.generator}

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
    """Record a new storage: its number, its bytes, and the module that made it."""

    slot: int
    size_bytes: int
    module: str


class Death(NamedTuple):
    """Record that the last reference to a storage is gone."""

    slot: int


class Convolution(NamedTuple):
    """Record a convolution whose output is already made.

    `weight_shape` is (out, in / groups, rows, columns).
    """

    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    channels_last: bool
    module: str


class Attention(NamedTuple):
    """Record a fused attention call whose output is already made."""

    batch: int
    heads: int
    tokens: int
    head_dim: int
    module: str


class Product(NamedTuple):
    """Record a matrix product.

    The first one makes cuBLAS's handle, and with it a workspace that stays.
    """


class Begin(NamedTuple):
    """Record the start of a call that programs keep as a routine, on a batch of this many.

    `module` is the path of the module that is called, such as ``unet.mid_block``. A call that is a stand-in makes its
    results and nothing else.
    """

    routine: str
    batch: int
    module: str = ""
    is_stand_in: bool = False


class End(NamedTuple):
    """Record the return of such a call; its storages that still live are its results."""

    routine: str


class Enter(NamedTuple):
    """Record the call of a module that has parameters of its own: sequential offload brings them now."""

    module: str


class Leave(NamedTuple):
    """Record the return of such a module: sequential offload takes them away again."""

    module: str


class Stage(NamedTuple):
    """Record the start of a pipeline stage."""

    name: str


class Returned(NamedTuple):
    """Record the return of the VAE's ``encode`` or ``decode``."""


class Repeat(NamedTuple):
    """Record the start of a pass of a loop over slices."""


class Loaded(NamedTuple):
    """Record that the weights are loaded and the call begins."""


class EmptyCache(NamedTuple):
    """Record a call of ``torch.cuda.empty_cache()``."""


Event = (
    Birth
    | Death
    | Convolution
    | Attention
    | Product
    | Begin
    | End
    | Enter
    | Leave
    | Stage
    | Returned
    | Repeat
    | Loaded
    | EmptyCache
)


class Recorder:
    """Collect the events of what runs inside ``with recorder.watching(...)``."""

    def __init__(self):
        self.events: list[Event] = []
        self._slots: dict[int, int] = {}
        # Storages that live throughout and are not recorded.
        self.ignored: frozenset[int] = frozenset()
        # How many storages were born so far.
        self.born = 0
        self._modules: list[str] = [""]

    def see(self, tensor: torch.Tensor) -> None:
        """Record the tensor's storage, unless it is known or not on the device."""
        if not on_device(tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._slots or key in self.ignored or not storage.nbytes():
            return
        slot, self.born = self.born, self.born + 1
        self._slots[key] = slot
        self.events.append(Birth(slot, storage.nbytes(), self._modules[-1]))
        weakref.finalize(storage, self._die, key).atexit = False

    def slot_of(self, tensor: torch.Tensor) -> int | None:
        """Give the number of the tensor's storage; None where it was never recorded."""
        return self._slots.get(tensor.untyped_storage()._cdata)

    def _die(self, key: int) -> None:
        self.events.append(Death(self._slots.pop(key)))

    def enter(self, module: str) -> None:
        """Attribute the storages made from now on to this module."""
        self._modules.append(module)

    def leave(self) -> None:
        """Return to the module before the last `enter`."""
        self._modules.pop()

    def load(self, component: str, module: torch.nn.Module) -> None:
        """Record the module's weights in the order of ``module.to(device)``, that of ``_apply``."""
        self.enter(component)
        for child in module.children():
            self.load(component, child)
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                self.see(tensor)
        self.leave()

    @contextmanager
    def watching(self, names: Mapping[torch.nn.Module, str]) -> Generator[None]:
        """Record everything that runs inside; `names` are the modules that births are attributed to."""

        def entered(module: torch.nn.Module, _inputs: Any) -> None:
            self.enter(names.get(module, self._modules[-1]))
            if module in names and _has_own(module):
                self.events.append(Enter(names[module]))

        def left(module: torch.nn.Module, _inputs: Any, _output: Any) -> None:
            if module in names and _has_own(module):
                self.events.append(Leave(names[module]))
            self.leave()

        with ExitStack() as stack:
            hooks = register_module_forward_pre_hook(entered), register_module_forward_hook(left, always_call=True)
            for hook in hooks:
                stack.callback(hook.remove)
            apply = torch.nn.Module._apply

            def moving(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
                # Weights are attributed to their component, as in `load`.
                self.enter(names.get(module, self._modules[-1]).partition(".")[0])
                try:
                    return apply(module, *args, **kwargs)
                finally:
                    self.leave()

            stack.enter_context(mock.patch.object(torch.nn.Module, "_apply", moving))
            stack.enter_context(_FusedAttention(self))
            stack.enter_context(mock.patch("diffusers.models.attention_processor.xformers", self._xformers()))
            stack.enter_context(_Storages(self))
            stack.enter_context(torch.no_grad())
            yield

    def note_convolution(
        self, image: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, channels_last: bool
    ) -> None:
        """Record a convolution whose output is already made."""
        shapes = (tuple(image.shape), tuple(weight.shape), tuple(out.shape))
        self.events.append(Convolution(*shapes, channels_last, self._modules[-1]))

    def note_attention(self, batch: int, heads: int, tokens: int, head_dim: int) -> None:
        """Record a call of a fused kernel."""
        self.events.append(Attention(batch, heads, tokens, head_dim, self._modules[-1]))

    def _xformers(self) -> Any:
        """Stand in for the xformers package, whose kernels run on a GPU alone.

        Its attention takes (batch * heads, tokens, head_dim) and makes one output of that shape.
        """

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> torch.Tensor:
            out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
            rows, tokens, head_dim = query.shape
            self.note_attention(rows, 1, tokens, head_dim)
            return out

        return SimpleNamespace(ops=SimpleNamespace(memory_efficient_attention=attend))


def _has_own(module: torch.nn.Module) -> bool:
    """Tell whether the module has parameters of its own, apart from those of its children."""
    return any(parameter is not None for parameter in module._parameters.values())


def on_device(tensor: torch.Tensor) -> bool:
    """Tell whether the tensor is on the device that stands for a GPU."""
    return tensor.device.type == "meta"


def _with_strides_of(first: Any, out: torch.Tensor) -> torch.Tensor:
    """Give a result of one image the strides of the first operand, as CUDA's kernel does.

    The stride of an axis of length one does not matter to the layout, but `suggest_memory_format` reads it. On the meta
    device some operations fall back to a Python reference, which sets it to another value than CPU and CUDA do.
    """
    if not isinstance(first, torch.Tensor) or first.dim() != 4 or first.shape != out.shape or first.shape[0] != 1:
        return out
    if first.stride() == out.stride() or first.stride()[1:] != out.stride()[1:]:
        return out
    return torch.empty_strided(out.shape, first.stride(), dtype=out.dtype, device=out.device)


def keep_values(tensor: Any, value: torch.Tensor) -> None:
    """Keep a small tensor's values beside it: meta tensors have none, and pipelines read a few."""
    tensor._value = value


def _value_of(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return getattr(leaf, "_value", leaf)
    return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == "meta" else leaf


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """List all tensors among nested arguments or results."""
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor)]


class _Storages(TorchDispatchMode):
    """Record every operation below autograd.

    There, composite operations have been split into those that allocate.
    """

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in NOISE and str(kwargs.get("device", "cpu")) == "cpu":
            return torch.zeros(args[0], dtype=kwargs.get("dtype"))
        on_host, result = self._to_host(func, args, kwargs)
        if on_host:
            return result
        if func is torch.ops.aten.convolution.default and on_device(args[0]):
            return self._convolution(args, kwargs)
        out = func(*args, **kwargs)
        if func in POINTWISE:
            out = _with_strides_of(args[0], out)
        self._keep_values(func, args, kwargs, out)
        for tensor in tensors_in(out):
            self.recorder.see(tensor)
        if func in PRODUCTS and on_device(out):
            self.recorder.events.append(Product())
        return out

    def _convolution(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """Run a convolution as CUDA does: channels_last if input or weight is.

        The other of the two is copied into that layout.

        Source: ATen/native/ConvUtils.h, cudnn_conv_suggest_memory_format; Convolution.cpp, where the input is made
        contiguous before, and cudnn/ConvShared.cpp, where the weight is after the output was made.
        """
        image, weight, *rest = args
        either = torch.channels_last in (suggest_memory_format(image), suggest_memory_format(weight))
        layout = torch.channels_last if either else torch.contiguous_format
        image = image.contiguous(memory_format=layout)
        self.recorder.see(image)
        out = torch.ops.aten.convolution.default(image, weight, *rest, **kwargs)
        # On the meta device only the input decides the layout, and not always.
        out = torch.empty_like(out, memory_format=layout)
        self.recorder.see(out)
        weight = weight.contiguous(memory_format=layout)
        self.recorder.see(weight)
        self.recorder.note_convolution(image, weight, out, either)
        return out

    @staticmethod
    def _to_host(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
        """Copy values off the device: those that were kept, else zeros.

        Nothing in a pipeline depends on values that were not kept.

        Returns:
            Whether the operation leaves the device, and its result.

        Raises:
            RuntimeError: the pipeline reads a number that was not kept.
        """
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
                # Offloaded weights are never read, so their memory pages are never touched.
                return True, torch.empty_like(source, device="cpu", dtype=dtype)
            return True, torch.zeros_like(source, device="cpu", dtype=dtype)
        return False, None

    @staticmethod
    def _keep_values(func: Any, args: Any, kwargs: Any, out: Any) -> None:
        made = [tensor for tensor in tensors_in(out) if on_device(tensor)]
        if not made:
            return
        read = tensors_in((args, kwargs))
        known = all(hasattr(t, "_value") or (not on_device(t) and t.numel() <= KEPT_NUMEL) for t in read)
        if known and all(tensor.numel() <= KEPT_NUMEL for tensor in made):
            values = func(*tree_map(_value_of, args), **tree_map(_value_of, kwargs))
            for tensor, value in zip(tensors_in(out), tensors_in(values), strict=True):
                keep_values(tensor, value)
        else:
            for tensor in made:
                if hasattr(tensor, "_value"):
                    del tensor._value


class _FusedAttention(TorchFunctionMode):
    """Run attention as the fused kernels do.

    It makes one output, laid out as (batch, tokens, heads, head_dim).
    """

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
        self.recorder.note_attention(*query.shape)
        return out.transpose(1, 2)
