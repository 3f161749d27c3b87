"""Take a trace apart into the calls that programs keep as routines, and fold its loops."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from planner.components import STAGES
from planner.programs.library import EACH_IMAGE, EACH_NET, EACH_PROMPT, ONE_IMAGE, Call, CallSize, Op
from planner.request import TASKS
from planner.tracing.recorder import (
    Attention,
    Begin,
    Birth,
    Convolution,
    Death,
    EmptyCache,
    End,
    Enter,
    Event,
    Leave,
    Product,
    Repeat,
    Returned,
    Stage,
)


class CompileError(Exception):
    """Report a trace that programs cannot hold; the message says where."""


@dataclass
class Frame:
    """Hold one traced call of a routine, sizes in bytes and storages numbered within the call.

    An op is (`Op`, operand, module). The operand of a kernel is (sizes, plain number), as `kernel_of` gives it. `path`
    is the module that is called. Modules inside it are named from there on, with a leading dot, so that calls of
    several modules can be one routine.
    """

    name: str
    size: CallSize
    path: str = ""
    is_stand_in: bool = False
    ops: list[tuple[Op, Any, str]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    has_product: bool = False
    _numbers: dict[int, int] = field(default_factory=dict)
    _count: int = 0
    _dead: set[int] = field(default_factory=set)

    def birth(self, event: Birth) -> None:
        """Record the birth of a storage."""
        self.adopt([event.slot])
        self.ops.append((Op.BIRTH, event.size_bytes, self.module(event.module)))

    def module(self, path: str) -> str:
        """Name a module from this call's own on: ``.attn1`` for one inside, the whole path for any other."""
        if self.path and (path == self.path or path.startswith(f"{self.path}.")):
            return path[len(self.path) :] or "."
        return path

    def adopt(self, slots: list[int]) -> None:
        """Number the storages of these slots."""
        for slot in slots:
            self._numbers[slot] = self._count
            self._count += 1

    def call(self, call: Call, slots: list[int], path: str) -> None:
        """Record a call of the module at `path` that has returned, and the slots that it leaves."""
        if call not in self.calls:
            self.calls.append(call)
        op = (Op.CALL, self.calls.index(call), self.module(path))
        if call.batch_factor in _OF_EACH.values() and self.ops and self.ops[-1] == op:
            # One op stands for all of these calls, and one number for the storages that they leave together.
            self._numbers[slots[0]] = self._count - 1
            return
        self.ops.append(op)
        self.adopt(slots)

    def death(self, slot: int, where: str) -> None:
        """Record the death of a storage; `where` names the trace for the error.

        Raises:
            CompileError: the storage is not this call's own.
        """
        if slot not in self._numbers:
            raise CompileError(f"{where}: a storage of the caller dies inside {self.name}")
        self._dead.add(slot)
        op = (Op.DEATH, self._numbers[slot], "")
        together = [other for other, number in self._numbers.items() if number == self._numbers[slot]]
        if len(together) == 1 or self.ops[-1] != op:
            self.ops.append(op)

    @property
    def is_pipeline(self) -> bool:
        """Tell whether this is the call of a pipeline, whose name begins with its task."""
        return self.name.partition("/")[0] in TASKS

    def left(self) -> list[int]:
        """List the slots that still live, in the order of their birth."""
        return [slot for slot in self._numbers if slot not in self._dead]


def kernel_of(event: Convolution | Attention) -> tuple[tuple[int, ...], int]:
    """Give the kernel's sizes and its plain number, in the order of `Routine.kernels`."""
    if isinstance(event, Attention):
        rows = event.batch * event.heads * event.tokens
        return (4 * rows, 4 * rows * event.head_dim), event.head_dim

    def elements(shape: tuple[int, ...], channels: int) -> int:
        return shape[0] * channels * shape[2] * shape[3]

    sizes = []
    for shape in (event.input_shape, event.output_shape):
        # NHWC kernels take channels in eights.
        sizes += [elements(shape, shape[1]), elements(shape, -(-shape[1] // 8) * 8)]
    return (*sizes, int(np.prod(event.weight_shape))), int(event.channels_last)


def frames_of(name: str, size: CallSize, events: Iterable[Event]) -> list[Frame]:
    """Take a call apart into frames: those of all calls inside it, then its own.

    Raises:
        CompileError: programs cannot hold an event.
    """
    stack, found = [Frame(name, size)], []
    for event in events:
        frame = stack[-1]
        match event:
            case Birth():
                frame.birth(event)
            case Death(slot):
                frame.death(slot, name)
            case Convolution() | Attention():
                op = Op.CONVOLUTION if isinstance(event, Convolution) else Op.ATTENTION
                frame.ops.append((op, kernel_of(event), frame.module(event.module)))
            case Enter(module) | Leave(module):
                frame.ops.append((Op.ENTER if isinstance(event, Enter) else Op.LEAVE, 0, frame.module(module)))
            case Product():
                if not frame.has_product:
                    frame.ops.append((Op.PRODUCT, 0, ""))
                frame.has_product = True
            case Begin(routine, batch, path, is_stand_in):
                stack.append(Frame(routine, size._replace(batch=batch), path, is_stand_in))
            case End():
                _return_from(stack.pop(), stack[-1], found)
            case Stage(stage):
                frame.ops.append((Op.STAGE, STAGES.index(stage), ""))
            case Returned():
                frame.ops.append((Op.RETURNED, 0, ""))
            case EmptyCache():
                frame.ops.append((Op.EMPTY_CACHE, 0, ""))
            case _:
                raise CompileError(f"{name}: {event} is left over")
    return [*found, stack[0]]


# Calls of the pipeline on its prompts and the images that come with them, and not on all images that it makes.
_OF_PROMPTS = ("text_encoder", "vae._encode")
# Calls that follow one another, once for each image or ControlNet.
_OF_EACH = {"denormalize_one": EACH_IMAGE, "control_image_of_many": EACH_NET}


def _return_from(frame: Frame, caller: Frame, found: list[Frame]) -> None:
    rest = 0
    if frame.name in _OF_EACH:
        factor = _OF_EACH[frame.name]
    elif frame.name in _OF_PROMPTS and caller.is_pipeline:
        factor, rest = EACH_PROMPT, frame.size.batch - frame.size.prompts
    elif frame.size.batch % caller.size.batch == 0:
        factor = frame.size.batch // caller.size.batch
    else:
        factor, rest = ONE_IMAGE, frame.size.batch - 1
    if rest:
        raise CompileError(f"{frame.name} runs on {frame.size.batch} of {caller.name}'s {caller.size.batch}")
    caller.call(Call(frame.name, factor, len(frame.left())), frame.left(), frame.path)
    found.append(frame)


def folded(events: list[Event]) -> list[Event]:
    """Cut loops short: sliced attention to its first and last pass, a blend to its first.

    A pass of attention frees what the pass before it made, and a pass of a blend frees all that it made. So the passes
    that are left out are like those that stay, and reach no peak of their own.
    """
    events = list(_without_blends(events))
    starts = [index for index, event in enumerate(events) if isinstance(event, Repeat)]
    dropped: set[int] = set()
    renamed: dict[int, int] = {}
    for loop in _loops(events, starts):
        if len(loop) < 3:
            continue
        first, *middle, last = loop
        length = last - middle[-1]
        births = [[e.slot for e in events[p : p + length] if isinstance(e, Birth)] for p in (first, middle[-1])]
        renamed |= dict(zip(births[1], births[0], strict=True))
        dropped |= set(range(middle[0], last))
    return [_renamed(e, renamed) for i, e in enumerate(events) if i not in dropped and not isinstance(e, Repeat)]


def _without_blends(events: list[Event]) -> Iterator[Event]:
    """Cut each blend to its first pass, which must be like all others."""
    blend: list[Event] | None = None
    for event in events:
        if isinstance(event, Begin) and event.routine == "vae.blend":
            blend = []
        elif isinstance(event, End) and event.routine == "vae.blend":
            yield from _first_pass(blend or [])
            blend = None
        elif blend is None:
            yield event
        else:
            blend.append(event)


def _first_pass(blend: list[Event]) -> list[Event]:
    sizes = {event.slot: event.size_bytes for event in blend if isinstance(event, Birth)}
    steps = [sizes[e.slot] if isinstance(e, Birth) else -sizes[e.slot] for e in blend if isinstance(e, (Birth, Death))]
    length = next((n for n in range(1, len(steps) + 1) if not sum(steps[:n])), 0)
    if length and (len(steps) % length or steps != steps[:length] * (len(steps) // length)):
        raise CompileError("the passes of a blend are not alike")
    return blend[:length]


def _renamed(event: Event, renamed: dict[int, int]) -> Event:
    return Death(renamed[event.slot]) if isinstance(event, Death) and event.slot in renamed else event


def _loops(events: list[Event], starts: list[int]) -> Iterable[list[int]]:
    """Group the starts of passes by loop.

    Between the passes of one loop, no other module makes a storage.
    """
    loop: list[int] = []
    for start in starts:
        made = {e.module for e in events[loop[-1] : start] if isinstance(e, (Birth, Convolution))} if loop else set()
        if len(made) > 1:
            yield loop
            loop = []
        loop.append(start)
    if loop:
        yield loop
