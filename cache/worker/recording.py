"""Record the allocations of a run in order, the module of each, and the workspace of each convolution.

As each module begins and ends, the allocator's own count of allocations says which entries of its history belong to
the module. That needs no clock, and raises no peak since it allocates nothing.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from cache.allocations import Convolution, Recording, grouped
from cache.worker.probes import Probe
from planner.replay.allocator import SMALL_SIZE


class _Call(NamedTuple):
    """Hold a convolution with the counts of allocations made before it and by its end."""

    convolution: Convolution
    begin: int
    end: int


class Recorder:
    """Record what runs inside ``with recorder.watching(...)``, as `recording` after it."""

    def __init__(self, probe: Probe):
        self._probe = probe
        # Each mark says from which count of allocations on which module is the innermost.
        self._marks: list[tuple[int, str]] = [(0, "")]
        self._stack: list[tuple[str, int]] = [("", 0)]
        self._calls: list[_Call] = []
        self.recording: Recording | None = None

    @contextmanager
    def watching(self, components: Mapping[str, torch.nn.Module]) -> Generator[None]:
        """Record all that runs inside, however it ends, and remove the hooks after it.

        Raises:
            RuntimeError: the device's history lost entries; the message says how many.
        """
        with ExitStack() as stack:
            for component, root in components.items():
                for path, module in root.named_modules():
                    name = f"{component}.{path}".rstrip(".")
                    for handle in self._hooks(module, name):
                        stack.callback(handle.remove)
            self._probe.begin_history()
            try:
                yield
            finally:
                made = self._probe.allocations()
                trace = self._probe.end_history()
                self.recording = self._put_together(trace, made)

    def _hooks(self, module: torch.nn.Module, name: str) -> list[Any]:
        def entered(_module: torch.nn.Module, _inputs: Any) -> None:
            count = self._probe.allocations()
            self._stack.append((name, count))
            self._marks.append((count, name))

        def left(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            count = self._probe.allocations()
            # An exception that left a module leaves its inner modules on the stack.
            while self._stack[-1][0] != name:
                self._stack.pop()
            _, begin = self._stack.pop()
            self._marks.append((count, self._stack[-1][0]))
            if isinstance(module, torch.nn.Conv2d) and isinstance(output, torch.Tensor) and inputs:
                self._calls.append(_Call(_shapes_of(module, name, inputs[0], output), begin, count))

        return [module.register_forward_pre_hook(entered), module.register_forward_hook(left)]

    def _put_together(self, trace: Sequence[Mapping[str, Any]], made: int) -> Recording:
        places = [place for place, entry in enumerate(trace) if entry["action"] == "alloc"]
        if len(places) < made:
            raise RuntimeError(f"the allocator's history has {len(places)} of the {made} allocations that were made")
        # A history may have entries from before the run, so only the last ones count.
        places = places[len(places) - made :]
        sizes, modules = [], []
        marks = iter([*self._marks, (made + 1, "")])
        name, (next_at, next_name) = "", next(marks)
        for number, place in enumerate(places):
            while next_at <= number:
                name, (next_at, next_name) = next_name, next(marks)
            if trace[place]["size"] > SMALL_SIZE:
                sizes.append(trace[place]["size"])
                modules.append(name)
        calls = grouped(_with_allocations(call, trace, places) for call in self._calls)
        return Recording(of=self._probe.history_of, sizes=tuple(sizes), modules=tuple(modules), convolutions=calls)


def _shapes_of(module: torch.nn.Conv2d, name: str, image: torch.Tensor, output: torch.Tensor) -> Convolution:
    return Convolution(
        module=name,
        input_shape=tuple(image.shape),
        weight_shape=tuple(module.weight.shape),
        output_shape=tuple(output.shape),
        dtype=str(image.dtype).removeprefix("torch."),
        # The output shows the layout of the kernel. A tensor of one channel or one pixel is in every layout.
        channels_last=not output.is_contiguous() and output.is_contiguous(memory_format=torch.channels_last),
    )


def _with_allocations(call: _Call, trace: Sequence[Mapping[str, Any]], places: Sequence[int]) -> Convolution:
    """Add the allocations between its begin and its end to a convolution."""
    workspaces, copies, refused = [], [], []
    first = places[call.begin - 1] + 1 if call.begin else 0
    after = places[call.end] if call.end < len(places) else len(trace)
    inside = trace[first:after]
    freed = {entry["addr"] for entry in inside if entry["action"] == "free_requested"}
    for at, entry in enumerate(inside):
        if entry["action"] == "oom":
            refused.append(entry["size"])
        if entry["action"] != "alloc" or entry["addr"] not in freed:
            continue
        following = inside[at + 1] if at + 1 < len(inside) else {}
        is_next = following.get("action") == "free_requested" and following["addr"] == entry["addr"]
        (workspaces if is_next else copies).append(entry["size"])
    return replace(call.convolution, workspaces=tuple(workspaces), copies=tuple(copies), refused=tuple(refused))
