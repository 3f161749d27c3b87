"""Rehearse offload on the CPU: what a GPU would get over PCIe is copied, so that it lives and dies as it does there.

On the CPU accelerate's hooks have nothing to move, for weights on the host are on the device as well. Here they bring
copies of the weights and drop them again; the originals are the host's.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from accelerate.hooks import AlignDevicesHook, CpuOffload, SequentialHook
from torch.utils._python_dispatch import _disable_current_modes

CPU = torch.device("cpu")
_ORIGINALS = "_rehearsed_originals"


class _Copies(Mapping[str, torch.Tensor]):
    """Give a copy of a weight each time that it is asked for."""

    def __init__(self, originals: Mapping[str, torch.Tensor]):
        self._originals = originals

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._originals[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._originals)

    def __len__(self) -> int:
        return len(self._originals)


def _hooks_in(module: torch.nn.Module) -> Iterator[AlignDevicesHook]:
    """List accelerate's hooks on the module and on those inside it."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in hook.hooks if isinstance(hook, SequentialHook) else [hook]:
            if isinstance(one, AlignDevicesHook):
                yield one


def bring_layers_as_copies(modules: Mapping[str, torch.nn.Module]) -> None:
    """Let the hooks of sequential offload bring copies of the weights of each layer."""
    for module in modules.values():
        for hook in _hooks_in(module):
            if hook.execution_device is not None:
                # The hooks have ``cpu:0``, to which torch copies every tensor that is on ``cpu``.
                hook.execution_device = CPU
            if hook.offload and hook.weights_map is not None:
                hook.weights_map = _Copies(hook.weights_map)


def _tensors_of(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """List parameters and buffers in the order in which ``module.to`` moves them."""
    for child in module.children():
        yield from _tensors_of(child)
    for tensors in (module._parameters, module._buffers):
        yield from (tensor for tensor in tensors.values() if tensor is not None)


def _bring(module: torch.nn.Module) -> None:
    if hasattr(module, _ORIGINALS):
        return
    # Whoever counts storages must see the copies alone, and not the originals on the host.
    with _disable_current_modes():
        originals = [(tensor, tensor.data) for tensor in _tensors_of(module)]
    for tensor, data in originals:
        copied = data.clone()
        with _disable_current_modes():
            tensor.data = copied
    setattr(module, _ORIGINALS, originals)


def _take_back(module: torch.nn.Module) -> None:
    with _disable_current_modes():
        for tensor, data in module.__dict__.pop(_ORIGINALS, ()):
            tensor.data = data


def _before_forward(hook: CpuOffload, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Evict the component before this one and bring this one, as ``CpuOffload.pre_forward`` does."""
    if hook.prev_module_hook is not None:
        hook.prev_module_hook.offload()
    _bring(module)
    return args, kwargs


def _at_home(hook: CpuOffload, module: torch.nn.Module) -> torch.nn.Module:
    # The hook has ``cpu:0``, to which torch copies every tensor that is on ``cpu``.
    hook.execution_device = CPU
    _take_back(module)
    return module


@contextmanager
def components_brought_as_copies() -> Generator[None]:
    """Let the hooks of model offload bring copies of a component's weights inside this block."""
    with (
        mock.patch.object(CpuOffload, "pre_forward", _before_forward),
        mock.patch.object(CpuOffload, "init_hook", _at_home),
    ):
        yield
