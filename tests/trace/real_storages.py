"""A pipeline run for real on the CPU, and every storage that would be on a card counted as it is born and dies.

A CPU has no second memory, so what would be on the card is told from what would stay on the host by how it is made:
a ``torch.device`` as a device means the card, no device or the text "cpu" the host, and what is computed from something
on the card is on the card.
"""

import weakref
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch._prims_common import suggest_memory_format
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor)]


class RealStorages(TorchDispatchMode):
    """`deltas` is bytes born, or minus bytes gone, one after another."""

    def __init__(self):
        super().__init__()
        self.deltas: list[int] = []
        self.sizes: dict[int, int] = {}
        self.place: str | None = None
        self.paused = False

    def on_card(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.sizes

    def count(self, tensor: torch.Tensor) -> None:
        if tensor.is_meta:
            # Offload by layers leaves these stand-ins in the place of weights.
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes and storage.nbytes():
            self.sizes[key] = storage.nbytes()
            self.deltas.append(storage.nbytes())
            weakref.finalize(storage, self._die, key).atexit = False

    def _die(self, key: int) -> None:
        self.deltas.append(-self.sizes.pop(key))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten.convolution.default and not self.paused:
            return self._convolution(*args)
        out = func(*args, **kwargs)
        if not self.paused:
            read = tensors((args, kwargs))
            place = self.place or ("card" if any(map(self.on_card, read)) else "host")
            if place == "card":
                for tensor in tensors(out):
                    self.count(tensor)
        return out

    def _convolution(self, image, weight, *rest):
        """In the layout and with the copies that CUDA makes; a CPU has kernels for every layout."""
        layout = torch.contiguous_format
        if torch.channels_last in (suggest_memory_format(image), suggest_memory_format(weight)):
            layout = torch.channels_last
        image = image.contiguous(memory_format=layout)
        self.count(image)
        out = torch.ops.aten.convolution.default(image, weight, *rest).contiguous(memory_format=layout)
        self.count(out)
        weight = weight.contiguous(memory_format=layout)
        self.count(weight)
        return out


class Transfers(TorchFunctionMode):
    """Makes the copies between host and card that a CPU does not need, and attention in the fused kernels' layout."""

    def __init__(self, storages: RealStorages):
        super().__init__()
        self.storages = storages

    @contextmanager
    def _to(self, place: str):
        before, self.storages.place = self.storages.place, place
        try:
            yield
        finally:
            self.storages.place = before

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func in (F.group_norm, torch.group_norm):
            # ATen asks for a contiguous input on a card, and for one in its own memory format on a CPU.
            return func(args[0].contiguous(), *args[1:], **kwargs)
        device = kwargs.get("device", next((a for a in args if isinstance(a, torch.device)), None))
        if func is torch.Tensor.cpu or (func is torch.Tensor.to and device == "cpu"):
            with self._to("host"):
                return args[0].detach().clone()
        if not isinstance(device, torch.device):
            return func(*args, **kwargs)
        if func is torch.Tensor.to:
            if self.storages.on_card(args[0]):
                return func(*args, **kwargs)
            with self._to("card"):
                moved = func(*args, **kwargs)
                return moved if self.storages.on_card(moved) else moved.clone()
        with self._to("card"):
            return func(*args, **kwargs)

    def _attention(self, query, key, value, **kwargs):
        self.storages.paused = True
        real = F.scaled_dot_product_attention(query, key, value, **kwargs)
        self.storages.paused = False
        batch, heads, tokens, width = real.shape
        with self._to("card"):
            out = torch.empty((batch, tokens, heads, width), dtype=query.dtype)
        self.storages.paused = True
        out.copy_(real.transpose(1, 2))
        self.storages.paused = False
        return out.transpose(1, 2)
