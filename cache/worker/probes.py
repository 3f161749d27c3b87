"""Read a device's memory while a pipeline runs: one small interface for CUDA and for the CPU."""

import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import psutil
import pynvml
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from cache.allocations import CUDA, STORAGES, Recorded

# This is more than any run makes: 50 steps at batch 1 make about 200,000 entries.
MAX_HISTORY = 4_000_000


class Probe(Protocol):
    """Read the memory of one device: sizes are bytes, and None if the device does not say.

    `history_of` says what the entries of its history are.
    """

    history_of: Recorded

    def limit(self, capacity_bytes: int | None) -> None:
        """Refuse memory as a device of this capacity would; None lifts the limit.

        Raises:
            RuntimeError: this device cannot be limited; the message says why.
        """

    def start(self) -> None:
        """Begin a run: free what is cached, and reset the peaks."""

    def reset_peak(self) -> None:
        """Begin a stage."""

    def peak(self) -> tuple[int | None, int | None]:
        """Return the allocated and the reserved peak since `reset_peak`."""

    def now(self) -> tuple[int | None, int | None]:
        """Return the bytes that are allocated and reserved now."""

    def free_bytes(self) -> int | None:
        """Return what this process may use as a job begins: free bytes, and those it already holds."""

    def finish(self) -> None:
        """End a job: free what is only cached."""

    def peak_device_bytes(self) -> int | None:
        """Return the most bytes that all processes held on the device since `reset_peak`."""

    def context_bytes(self) -> int | None:
        """Return the bytes that this process holds on the device outside torch's allocator."""

    def retries(self) -> int | None:
        """Count how often the allocator flushed its cache and tried again since `start`."""

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""

    def begin_history(self) -> None:
        """Start a history of allocations."""

    def allocations(self) -> int:
        """Count the allocations made since `begin_history`."""

    def end_history(self) -> Sequence[Mapping[str, Any]]:
        """End the history and return its entries, each with torch's `action`, `addr` and `size`."""


class CudaProbe:
    """Read torch's own statistics, and the driver's for the whole card."""

    history_of = CUDA

    def __init__(self, device: torch.device):
        self.device = device
        self._retries_before = 0
        # This is read before this process has a context, to tell the context from what other processes hold.
        self._others_bytes = self._used_before_us()
        self._context_bytes: int | None = None
        self._capacity_bytes: int | None = None
        self._allowed_bytes: int | None = None
        self._made_before = 0
        torch.cuda.init()
        torch.zeros(1, device=device)
        if not torch.cuda.max_memory_allocated(device):
            raise RuntimeError(
                "torch counts nothing, since PYTORCH_NO_CUDA_MEMORY_CACHING switches its allocator off - unset it"
            )

    @staticmethod
    def _used_before_us() -> int | None:
        """Read the bytes in use before this process uses the card, None if the driver does not say."""
        # The parent names the card by UUID; asking torch for it here would already make a context.
        uuid = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if not uuid.startswith(("GPU-", "MIG-")):
            return None
        try:
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            return int(pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used)
        except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
            return None

    def _look_again(self) -> None:
        # Others may have come or gone since the last job; our context has not changed.
        if self._context_bytes is not None:
            # A process that ended may have been counted as context, so the difference may be negative.
            self._others_bytes = max(0, self.device_bytes() - self.now()[1] - self._context_bytes)

    def free_bytes(self) -> int:
        self._look_again()
        free_bytes = torch.cuda.mem_get_info(self.device)[0] + self.now()[1]
        return free_bytes if self._allowed_bytes is None else min(free_bytes, self._allowed_bytes)

    def limit(self, capacity_bytes: int | None) -> None:
        if capacity_bytes is None and self._capacity_bytes is not None:
            torch.cuda.set_per_process_memory_fraction(1.0)
            self._allowed_bytes = None
        self._capacity_bytes = capacity_bytes
        self._look_again()
        self._keep_to_limit()

    def _keep_to_limit(self) -> None:
        """Limit torch's allocator to the emulated capacity less this process's context.

        The context grows as kernels are loaded, so the limit is set again before each stage.
        """
        if self._capacity_bytes is None:
            return
        context = self.context_bytes()
        if context is None:
            raise RuntimeError("the driver does not say what the CUDA context takes, so no capacity can be emulated")
        total = torch.cuda.mem_get_info(self.device)[1]
        self._allowed_bytes = max(0, min(self._capacity_bytes - context, total))
        # torch multiplies by the total and rounds down: half a byte more keeps the last byte.
        torch.cuda.set_per_process_memory_fraction(min(1.0, (self._allowed_bytes + 0.5) / total))

    def start(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        self._retries_before = torch.cuda.memory_stats(self.device)["num_alloc_retries"]
        self.reset_peak()

    def finish(self) -> None:
        torch.cuda.empty_cache()

    def reset_peak(self) -> None:
        self._keep_to_limit()
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> tuple[int, int]:
        return torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)

    def now(self) -> tuple[int, int]:
        return torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device)

    def device_bytes(self) -> int:
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free

    def peak_device_bytes(self) -> int:
        free, total = torch.cuda.mem_get_info(self.device)
        # A flush of the cache since the peak freed the difference, and other processes may have taken part of it.
        return min(total, total - free + self.peak()[1] - self.now()[1])

    def context_bytes(self) -> int | None:
        if self._others_bytes is None:
            return None
        self._context_bytes = max(0, self.device_bytes() - self.now()[1] - self._others_bytes)
        return self._context_bytes

    def retries(self) -> int:
        return torch.cuda.memory_stats(self.device)["num_alloc_retries"] - self._retries_before

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def _made(self) -> int:
        return torch.cuda.memory_stats_as_nested_dict(self.device)["allocation"]["all"]["allocated"]

    def begin_history(self) -> None:
        # Call stacks would take longer than the run, and hooks already say which module allocates.
        torch.cuda.memory._record_memory_history(context=None, max_entries=MAX_HISTORY)
        self._made_before = self._made()

    def allocations(self) -> int:
        return self._made() - self._made_before

    def end_history(self) -> Sequence[Mapping[str, Any]]:
        try:
            # The history also needs the frees that wait for a running kernel.
            torch.cuda.synchronize(self.device)
            return torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)


class _LiveStorages(TorchDispatchMode):
    """Count the bytes of every living storage that an operation made."""

    def __init__(self):
        super().__init__()
        self.live: dict[int, int] = {}
        self.allocated = self.peak = 0
        # Allocations and frees are listed in the form of CUDA's history, if a recorder asked for them.
        self.history: list[dict[str, Any]] | None = None
        self.made = 0

    def see(self, tensor: torch.Tensor) -> None:
        if tensor.is_meta:
            # Offload by layers leaves such stand-ins without memory in the place of weights.
            return
        storage = tensor.untyped_storage()
        key, size_bytes = storage._cdata, storage.nbytes()
        if key in self.live or not size_bytes:
            return
        self.live[key] = size_bytes
        self.allocated += size_bytes
        self.peak = max(self.peak, self.allocated)
        self.made += 1
        if self.history is not None:
            self.history.append({"action": "alloc", "addr": key, "size": size_bytes})
        weakref.finalize(storage, self._die, key)

    def _die(self, key: int) -> None:
        size_bytes = self.live.pop(key)
        self.allocated -= size_bytes
        if self.history is not None:
            self.history.append({"action": "free_requested", "addr": key, "size": size_bytes})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf)
        return out


class CpuProbe:
    """Count living tensors: the CPU has neither a caching allocator nor a context."""

    history_of = STORAGES

    def __init__(self):
        self.storages = _LiveStorages()
        self._made_before = 0
        self._process = psutil.Process()

    def count(self, module: torch.nn.Module) -> None:
        """Count a module's weights as living tensors."""
        for tensor in (*module.parameters(), *module.buffers()):
            self.storages.see(tensor.data)

    def count_buffers(self, module: torch.nn.Module) -> None:
        """Count a module's buffers alone as living tensors."""
        for tensor in module.buffers():
            self.storages.see(tensor.data)

    def limit(self, capacity_bytes: int | None) -> None:
        if capacity_bytes is not None:
            raise RuntimeError("the CPU has no CUDA allocator to limit")

    def start(self) -> None:
        self.reset_peak()

    def reset_peak(self) -> None:
        self.storages.peak = self.storages.allocated

    def peak(self) -> tuple[int, None]:
        return self.storages.peak, None

    def now(self) -> tuple[int, None]:
        return self.storages.allocated, None

    def free_bytes(self) -> None:
        return None

    def finish(self) -> None:
        pass

    def peak_device_bytes(self) -> int:
        """Return the resident set of this process as the stage ends."""
        return self._process.memory_info().rss

    def context_bytes(self) -> None:
        return None

    def retries(self) -> None:
        return None

    def synchronize(self) -> None:
        pass

    def begin_history(self) -> None:
        self.storages.history, self._made_before = [], self.storages.made

    def allocations(self) -> int:
        return self.storages.made - self._made_before

    def end_history(self) -> Sequence[Mapping[str, Any]]:
        history, self.storages.history = self.storages.history, None
        return history or []
