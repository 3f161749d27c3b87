"""Hold the history of a whole request without calls: symbolic, and in bytes."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from planner.programs.library import Op, Routine, areas, evaluated

# Which of many equal calls in a row are played in full: all, the first and the last, or the first, for a sketch.
Play = Literal["all", "ends", "first"]

# The position of each kernel's plain number in a row of `Routine.kernels`; all before it are sizes.
_KERNEL_SIZES = {Op.CONVOLUTION: 5, Op.ATTENTION: 2}


@dataclass(frozen=True)
class Events:
    """Hold the history of one request, one event after another, in bytes.

    `kinds` is (events,) of `Op` without CALL. `values` is (events,): bytes for a birth, the number of the storage for a
    death, the row in `convolutions` or `attentions` for a kernel, the index in `STAGES` for a stage. `convolutions` is
    (convolutions, 6): elements of input, padded input, output, padded output and weight, then 1 if channels_last.
    `attentions` is (attentions, 3): bytes of the log-sum-exp and of the float32 accumulator, then the head dimension.
    `is_weight` is (storages,): True for a parameter or a buffer.
    """

    kinds: np.ndarray
    values: np.ndarray
    module_ids: np.ndarray
    is_weight: np.ndarray
    convolutions: np.ndarray
    attentions: np.ndarray
    modules: tuple[str, ...]

    def live_bytes(self) -> np.ndarray:
        """Compute the bytes of living storages after each event.

        These are the bytes requested, before any allocator rounds them.
        """
        return np.cumsum(self.deltas())

    def deltas(self) -> np.ndarray:
        """Compute the bytes that each event adds to the living storages."""
        born = self.kinds == Op.BIRTH
        sizes = self.values[born]
        died = self.kinds == Op.DEATH
        deltas = np.zeros(len(self.kinds), dtype=np.int64)
        deltas[born] = sizes
        deltas[died] = -sizes[self.values[died]]
        return deltas

    def stages(self) -> np.ndarray:
        """Give the index in `STAGES` of each event, -1 before the first stage."""
        begins = np.where(self.kinds == Op.STAGE, np.arange(len(self.kinds)), -1)
        latest = np.maximum.accumulate(begins)
        return np.where(latest < 0, -1, self.values[latest])

    def alive_at(self, event: int) -> np.ndarray:
        """Give the numbers of the storages that live after this event."""
        until = slice(None, event + 1)
        born = int((self.kinds[until] == Op.BIRTH).sum())
        dead = self.values[until][self.kinds[until] == Op.DEATH]
        return np.setdiff1d(np.arange(born), dead)

    def sizes(self) -> np.ndarray:
        """Give the bytes of each storage, in the order of their birth."""
        return self.values[self.kinds == Op.BIRTH]

    def birth_modules(self) -> np.ndarray:
        """Give the index in `modules` of each storage's maker, in the order of birth."""
        return self.module_ids[self.kinds == Op.BIRTH]


@dataclass(frozen=True)
class Flat:
    """Hold a history without calls, its sizes symbolic.

    Births, convolutions and attentions are pairs of an index in `AREAS` and a coefficient, which includes the batch.
    `ops` is (events, 3) as in `Routine`; the operand of a birth is its own number. `births` is (storages, 2) and
    `is_weight` (storages,). `convolutions` is (convolutions, 6, 2) and `attentions` (attentions, 3, 2).
    """

    ops: np.ndarray
    births: np.ndarray
    is_weight: np.ndarray
    convolutions: np.ndarray
    attentions: np.ndarray
    modules: tuple[str, ...]

    def at(self, latent_height: int, latent_width: int) -> Events:
        """Evaluate the history for a request of this size."""
        quantities = areas(latent_height, latent_width)
        values = self.ops[:, 1].astype(np.int64)
        births = evaluated(self.births, quantities)
        values[self.ops[:, 0] == Op.BIRTH] = births
        return Events(
            kinds=self.ops[:, 0],
            values=values,
            module_ids=self.ops[:, 2],
            is_weight=self.is_weight,
            convolutions=evaluated(self.convolutions, quantities),
            attentions=evaluated(self.attentions, quantities),
            modules=self.modules,
        )


class Place(NamedTuple):
    """Say where a growing history has come to: lengths of its lists, storages, and rows of kernels."""

    ops: int
    births: int
    storages: int
    kernels: dict[Op, int]
    rows: dict[Op, int]


class Piece(NamedTuple):
    """Hold a part of a history that can be appended again; see `FlatBuilder.since`."""

    ops: np.ndarray
    births: np.ndarray
    kernels: dict[Op, np.ndarray]


class FlatBuilder:
    """Grow a `Flat` history, one event or one routine at a time.

    With `owned`, the weights of each module by its path, a module's weights come as it is called and go as it returns,
    as they do under sequential offload.
    """

    def __init__(self, modules: Sequence[str], owned: Mapping[str, Sequence[tuple[int, int]]] | None = None):
        self._ops: list[np.ndarray] = []
        self._births: list[np.ndarray] = []
        # Single events wait in lists, for an array of its own is dear for each.
        self._waiting_ops: list[tuple[int, int, int]] = []
        self._waiting_births: list[tuple[int, int]] = []
        self._weights: list[np.ndarray] = []
        self._kernels: dict[Op, list[np.ndarray]] = {
            op: [np.zeros((0, sizes + 1, 2), np.int64)] for op, sizes in _KERNEL_SIZES.items()
        }
        self._storages = 0
        self._rows = dict.fromkeys(_KERNEL_SIZES, 0)
        self._names = list(modules)
        self._modules = {name: index for index, name in enumerate(modules)}
        self._owned = owned
        self._brought: list[list[int]] = []

    def __len__(self) -> int:
        return sum(map(len, self._ops)) + len(self._waiting_ops)

    def _settle(self) -> None:
        """Make arrays of the single events that wait."""
        if self._waiting_ops:
            self._ops.append(np.array(self._waiting_ops, dtype=np.int64))
            self._waiting_ops = []
        if self._waiting_births:
            self._births.append(np.array(self._waiting_births, dtype=np.int64))
            self._waiting_births = []

    def module(self, name: str) -> int:
        """Give the number of this module, a new one where the library has none of this name."""
        if name not in self._modules:
            self._modules[name] = len(self._names)
            self._names.append(name)
        return self._modules[name]

    def modules_of(self, routine: Routine, path: str) -> list[int]:
        """Give the number here of each op's module, where the routine is a call of the module at `path`."""
        return self._numbers_of(routine, path)[routine.modules[1]].tolist()

    def _numbers_of(self, routine: Routine, path: str) -> np.ndarray:
        """Give the number here of each distinct module of the routine.

        Names with a leading dot are inside `path`.
        """
        names = self._names
        found = routine.modules[0].tolist()
        if not path:
            return np.array(found, dtype=np.int64)
        return np.array(
            [
                self.module(path if names[one] == "." else path + names[one]) if names[one].startswith(".") else one
                for one in found
            ],
            dtype=np.int64,
        )

    def path(self, number: int) -> str:
        """Give the path of the module of this number."""
        return self._names[number]

    def event(self, op: Op, value: int, module: int = 0) -> None:
        """Append an event that makes no storage and runs no kernel."""
        self._waiting_ops.append((op, value, module))

    def birth(self, size: tuple[int, int], module: int) -> int:
        """Make a storage of this symbolic size, and return its number."""
        number = self._storages
        self.event(Op.BIRTH, number, module)
        self._waiting_births.append(size)
        self._storages += 1
        return number

    def die(self, numbers: list[int]) -> None:
        """Free these storages and empty the list, as Python frees a list: from its last item on."""
        while numbers:
            self.event(Op.DEATH, numbers.pop())

    def load(self, weights: np.ndarray | Sequence[tuple[int, int]]) -> list[int]:
        """Make the storages of these rows of (bytes, module), and return their numbers."""
        self._settle()
        tensors = np.array(weights, dtype=np.int64).reshape(-1, 2)
        count = len(tensors)
        numbers = np.arange(self._storages, self._storages + count)
        self._ops.append(np.stack([np.full(count, Op.BIRTH), numbers, tensors[:, 1]], axis=1))
        self._births.append(np.stack([np.zeros(count, dtype=np.int64), tensors[:, 0]], axis=1))
        self._storages += count
        self._weights.append(numbers)
        return numbers.tolist()

    def routine(self, routine: Routine, sizes: np.ndarray, path: str = "") -> list[int]:
        """Append a routine without calls, and return the numbers of its results.

        `sizes` are its symbolic sizes in this history, `path` is the module that it is a call of.
        """
        if self._owned is not None:
            return self._with_weights(routine, sizes, path)
        self._settle()
        ops = routine.plain_ops.astype(np.int64)
        ops[:, 2] = self._numbers_of(routine, path)[routine.plain_modules]
        born = ops[:, 0] == Op.BIRTH
        first, count = self._storages, int(born.sum())
        self._births.append(sizes[ops[born, 1]])
        ops[born, 1] = np.arange(first, first + count)
        ops[ops[:, 0] == Op.DEATH, 1] += first
        self._add_kernels(ops, routine, sizes)
        self._ops.append(ops)
        self._storages += count
        return [first + int(index) for index in routine.results]

    def _with_weights(self, routine: Routine, sizes: np.ndarray, path: str) -> list[int]:
        """Append a routine as `routine` does, with the weights that come and go."""
        numbers: list[int] = []
        for (op, value, _), here in zip(routine.ops.tolist(), self.modules_of(routine, path), strict=True):
            if op == Op.BIRTH:
                numbers.append(self.birth(tuple(sizes[value]), here))
            elif op == Op.DEATH:
                self.event(Op.DEATH, numbers[value])
            elif op in (Op.ENTER, Op.LEAVE):
                self.step(Op(op), here)
            elif op in (Op.CONVOLUTION, Op.ATTENTION):
                self.kernel(Op(op), value, here, routine, sizes)
            else:
                self.event(Op(op), value, here)
        return [numbers[index] for index in routine.results]

    def step(self, op: Op, module: int) -> None:
        """Bring the weights of the module that is entered, or free those of the one that is left."""
        if self._owned is None:
            return
        if op == Op.ENTER:
            self._brought.append(self.load(self._owned.get(self.path(module), ())))
        else:
            for number in self._brought.pop():
                self.event(Op.DEATH, number)

    def kernel(self, op: Op, row: int, module: int, routine: Routine, sizes: np.ndarray) -> None:
        """Append one kernel of a routine, with these symbolic sizes."""
        self._settle()
        ops = np.array([[op, row, module]], dtype=np.int64)
        self._add_kernels(ops, routine, sizes)
        self._ops.append(ops)

    def _add_kernels(self, ops: np.ndarray, routine: Routine, sizes: np.ndarray) -> None:
        """Keep the kernels that these ops run, and make their operands rows of this history."""
        for op, width in _KERNEL_SIZES.items():
            rows = ops[:, 0] == op
            count = int(rows.sum())
            if not count:
                continue
            kernels = routine.kernels[ops[rows, 1]]
            plain = np.stack([np.zeros(count, dtype=np.int64), kernels[:, width].astype(np.int64)], axis=-1)
            self._kernels[op].append(np.concatenate([sizes[kernels[:, :width]], plain[:, None, :]], axis=1))
            ops[rows, 1] = np.arange(self._rows[op], self._rows[op] + count)
            self._rows[op] += count

    def place(self) -> Place:
        """Say where the history has come to."""
        self._settle()
        kernels = {op: len(rows) for op, rows in self._kernels.items()}
        return Place(len(self._ops), len(self._births), self._storages, kernels, dict(self._rows))

    def since(self, begin: Place, results: Sequence[int]) -> tuple[Piece, list[int]]:
        """Give what was appended since that place, storages counted from there, and so the results.

        What was appended frees no storage from before.
        """
        self._settle()
        ops = np.concatenate([np.zeros((0, 3), np.int64), *self._ops[begin.ops :]])
        births = np.concatenate([np.zeros((0, 2), np.int64), *self._births[begin.births :]])
        ops[(ops[:, 0] == Op.BIRTH) | (ops[:, 0] == Op.DEATH), 1] -= begin.storages
        kernels = {}
        for op, rows in self._kernels.items():
            kernels[op] = np.concatenate([rows[0][:0], *rows[begin.kernels[op] :]])
            ops[ops[:, 0] == op, 1] -= begin.rows[op]
        return Piece(ops, births, kernels), [number - begin.storages for number in results]

    def again(self, piece: Piece, results: Sequence[int]) -> list[int]:
        """Append a piece of history once more, and return the numbers of its results."""
        self._settle()
        first = self._storages
        ops = piece.ops.copy()
        ops[(ops[:, 0] == Op.BIRTH) | (ops[:, 0] == Op.DEATH), 1] += first
        for op, rows in piece.kernels.items():
            ops[ops[:, 0] == op, 1] += self._rows[op]
            self._kernels[op].append(rows)
            self._rows[op] += len(rows)
        self._ops.append(ops)
        self._births.append(piece.births)
        self._storages += len(piece.births)
        return [first + number for number in results]

    def flat(self) -> Flat:
        """Give the history so far."""
        self._settle()
        return Flat(
            ops=np.concatenate(self._ops),
            births=np.concatenate(self._births),
            is_weight=np.isin(np.arange(self._storages), np.concatenate([np.zeros(0, np.int64), *self._weights])),
            convolutions=np.concatenate(self._kernels[Op.CONVOLUTION]),
            attentions=np.concatenate(self._kernels[Op.ATTENTION]),
            modules=tuple(self._names),
        )


def joined(first: Events, second: Events) -> Events:
    """Join the histories of two calls in one process, on the same weights.

    The storages that are born before the first call are those of the second too, and live throughout. What else is left
    of the first call dies before the second begins, whose own loading is left out.
    """
    begin = int(np.argmax(second.kinds == Op.LOADED)) + 1
    kept = int((second.kinds[:begin] == Op.BIRTH).sum())
    kinds, values = second.kinds[begin:], second.values[begin:].copy()
    deaths = kinds == Op.DEATH
    values[deaths] = np.where(values[deaths] < kept, values[deaths], values[deaths] - kept + len(first.sizes()))
    values[kinds == Op.CONVOLUTION] += len(first.convolutions)
    values[kinds == Op.ATTENTION] += len(first.attentions)
    left = first.alive_at(len(first.kinds) - 1)
    left = left[left >= kept][::-1]
    # What model offload leaves on the GPU as the first call ends goes back to the host, and its memory is given back.
    is_moved = bool(np.isin(left, np.flatnonzero(first.is_weight)).any())
    middle = np.array([(Op.DEATH, int(number)) for number in left] + [(Op.EMPTY_CACHE, 0)] * is_moved, dtype=np.int64)
    middle = middle.reshape(-1, 2)
    numbers = {name: number for number, name in enumerate(first.modules)}
    table = np.array([numbers.setdefault(name, len(numbers)) for name in second.modules], dtype=np.int64)
    return Events(
        kinds=np.concatenate([first.kinds, middle[:, 0], kinds]),
        values=np.concatenate([first.values, middle[:, 1], values]),
        module_ids=np.concatenate(
            [first.module_ids, np.zeros(len(middle), np.int64), table[second.module_ids[begin:]]]
        ),
        is_weight=np.concatenate([first.is_weight, second.is_weight[kept:]]),
        convolutions=np.concatenate([first.convolutions, second.convolutions]),
        attentions=np.concatenate([first.attentions, second.attentions]),
        modules=tuple(numbers),
    )


def played_in_full(calls: Sequence[Hashable], play: Play) -> Iterator[bool]:
    """Tell of each call in a row whether to play it in full.

    Calls are told apart by kind. A call that is not played in full leaves only its results. The calls between the first
    and the last of a kind leave nothing but their results, so they reach no peak that the last one does not.
    """
    first = {call: index for index, call in reversed(list(enumerate(calls)))}
    last = {call: index for index, call in enumerate(calls)} if play == "ends" else first
    played = {*first.values(), *last.values()}
    return iter([play == "all" or index in played for index in range(len(calls))])
