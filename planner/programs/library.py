"""Memory programs: the allocation history of the pipeline, its sizes symbolic in batch, height and width.

A trace of the real modules (planner/tracing/tracer.py) costs a second and needs torch. But the order of allocations
does not depend on the image's size, except for the conditions in planner/programs/upsampling.py, and every size is a
whole number times one of a few areas. So a few traces compile (planner/tracing/compiler.py) into a program that numpy
evaluates for any size in microseconds. A `Routine` is the history of one call, such as the UNet's, for any batch and
size; a pipeline call is a routine that calls others.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from planner.errors import NoProgram

FORMAT = 1
SHIPPED = Path(__file__).with_name("sd15")

# More steps than this change no size: PNDM keeps four noise predictions, and has them by then.
MAX_TRACED_STEPS = 6


class Op(IntEnum):
    """What an event of a routine does; its operand is in brackets."""

    BIRTH = 0  # a storage is made [size]; its number is the count of births before it
    DEATH = 1  # a storage is gone [number]
    CONVOLUTION = 2  # a convolution runs [kernel]
    ATTENTION = 3  # a fused attention call runs [kernel]
    CALL = 4  # another routine runs [call]
    STAGE = 5  # a stage of the pipeline begins [index in STAGES]
    EMPTY_CACHE = 6  # torch.cuda.empty_cache()
    LOADED = 7  # weights are where they belong, and the call begins
    RETURNED = 8  # the VAE's encode or decode has returned
    PRODUCT = 9  # the first matrix product of a routine runs


# Areas that sizes are made of, by (latent_height, latent_width): of the latent and of its three halvings, of the VAE
# encoder's three padded images, and of sliced attention's scores. Larger scales are whole multiples of the latent's.
AREAS = (
    "1",
    "h*w",
    "h/2*w/2",
    "h/4*w/4",
    "h/8*w/8",
    "(8h+1)*(8w+1)",
    "(4h+1)*(4w+1)",
    "(2h+1)*(2w+1)",
    "(h*w)^2",
    "(h/2*w/2)^2",
    "(h/4*w/4)^2",
    "(h/8*w/8)^2",
)
LATENTS = AREAS.index("h*w")
TIMES_BATCH = len(AREAS)


def features(batch: int, latent_height: int, latent_width: int) -> np.ndarray:
    """The quantities that every size is a whole multiple of: each of `AREAS`, then each times the batch.

    Shape:
        (24,), int64. Halved sides round up, as a convolution of stride 2 and padding 1 does.
    """
    h, w = latent_height, latent_width
    latents = [-(-h // k) * -(-w // k) for k in (1, 2, 4, 8)]
    padded = [(k * h + 1) * (k * w + 1) for k in (8, 4, 2)]
    areas = [1, *latents, *padded, *(area**2 for area in latents)]
    return np.array([*areas, *(batch * area for area in areas)], dtype=np.int64)


# A batch factor: not the batch at once, but each image of it, one call after another.
EACH_IMAGE = 0


class Call(NamedTuple):
    """A call of another routine, on so many times the caller's batch; it leaves this many storages.

    Calls for `EACH_IMAGE` are one op, and what they leave has one number: it dies together.
    """

    routine: str
    batch_factor: int
    results: int


@dataclass(frozen=True)
class Routine:
    """The allocation history of one call.

    `ops` is (events, 3): what happens, its operand, and the module it is put down to. A size is
    ``coefficient * features[feature]`` bytes, `sizes` is (sizes, 2): feature, coefficient. A convolution's row in
    `kernels` holds sizes of its input, padded input, output, padded output and weight in elements, then whether it
    is channels_last; an attention call's those of its log-sum-exp and of its float32 accumulator in bytes, then its
    head dimension.
    """

    ops: np.ndarray
    sizes: np.ndarray
    kernels: np.ndarray
    calls: tuple[Call, ...] = ()

    @cached_property
    def results(self) -> np.ndarray:
        """The numbers of the storages that outlive the call, in the order of their birth."""
        births = int((self.ops[:, 0] == Op.BIRTH).sum()) + sum(call.results for call in self._called)
        dead = self.ops[self.ops[:, 0] == Op.DEATH, 1]
        return np.setdiff1d(np.arange(births), dead)

    @property
    def _called(self) -> list[Call]:
        return [self.calls[index] for index in self.ops[self.ops[:, 0] == Op.CALL, 1]]


@dataclass(frozen=True, eq=False)
class Library:
    """Every routine of one set of library versions, and the weights that they run with."""

    versions: Mapping[str, str]
    routines: Mapping[str, Routine]
    modules: tuple[str, ...]
    # Bytes of each tensor by component, in the order in which the worker loads them, and the modules they are in.
    weights: Mapping[str, tuple[tuple[int, int], ...]]
    source: str = ""
    # SHA-256 of its numbers; empty where it was never encoded.
    digest: str = ""

    def routine(self, name: str) -> Routine:
        """The routine of this name.

        Raises:
            NoProgram: there is none.
        """
        try:
            return self.routines[name]
        except KeyError:
            raise NoProgram(f"no memory program was compiled for {name!r} - 'python -m planner compile'") from None

    def weights_bytes(self, component: str) -> int:
        """The component's parameters and buffers."""
        return sum(size for size, _ in self.weights[component])


@dataclass(frozen=True)
class Flat:
    """A history without calls, sizes still symbolic.

    `ops` is (events, 3) as in `Routine`; the operand of a birth is its own number. `births` is (births, 2) and
    `is_weight` says which of them are weights; `convolutions` is (convolutions, 6, 2) and `attentions`
    (attentions, 3, 2): feature and coefficient of each size.
    """

    ops: np.ndarray
    births: np.ndarray
    is_weight: np.ndarray
    convolutions: np.ndarray
    attentions: np.ndarray
    modules: tuple[str, ...]

    def at(self, batch: int, latent_height: int, latent_width: int) -> "Events":
        """The history of a request of this size."""
        quantities = features(batch, latent_height, latent_width)
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


def evaluated(sizes: np.ndarray, quantities: np.ndarray) -> np.ndarray:
    """``coefficient * features[feature]`` along the last axis."""
    return quantities[sizes[..., 0]] * sizes[..., 1]


@dataclass(frozen=True)
class Events:
    """The history of one request: what happens, one event after another.

    `kinds` is of `Op` without CALL. `values` are bytes for a birth, the number of the storage for a death, the row in
    `convolutions` or `attentions` for a kernel, the index in `STAGES` for a stage. `convolutions` is (n, 6): elements
    of input, padded input, output, padded output and weight, then channels_last. `attentions` is (n, 3): bytes of the
    log-sum-exp and of the float32 accumulator, then the head dimension. `is_weight` says of each storage whether it is
    a parameter or a buffer.
    """

    kinds: np.ndarray
    values: np.ndarray
    module_ids: np.ndarray
    is_weight: np.ndarray
    convolutions: np.ndarray
    attentions: np.ndarray
    modules: tuple[str, ...]

    def live_bytes(self) -> np.ndarray:
        """Bytes of living storages after each event, as requested: before any allocator rounds them."""
        return np.cumsum(self.deltas())

    def deltas(self) -> np.ndarray:
        """Bytes that each event adds to what lives."""
        born = self.kinds == Op.BIRTH
        sizes = self.values[born]
        died = self.kinds == Op.DEATH
        deltas = np.zeros(len(self.kinds), dtype=np.int64)
        deltas[born] = sizes
        deltas[died] = -sizes[self.values[died]]
        return deltas

    def stages(self) -> np.ndarray:
        """The index in `STAGES` of each event, -1 before the first stage."""
        begins = np.where(self.kinds == Op.STAGE, np.arange(len(self.kinds)), -1)
        latest = np.maximum.accumulate(begins)
        return np.where(latest < 0, -1, self.values[latest])

    def alive_at(self, event: int) -> np.ndarray:
        """The numbers of the storages that live after this event."""
        until = slice(None, event + 1)
        born = int((self.kinds[until] == Op.BIRTH).sum())
        dead = self.values[until][self.kinds[until] == Op.DEATH]
        return np.setdiff1d(np.arange(born), dead)

    def sizes(self) -> np.ndarray:
        """Bytes of each storage, in the order of their birth."""
        return self.values[self.kinds == Op.BIRTH]

    def birth_modules(self) -> np.ndarray:
        """The index in `modules` of what made each storage, in the order of their birth."""
        return self.module_ids[self.kinds == Op.BIRTH]


# A line of JSON and a file of int32 numbers: plain, so that a recompile can be compared byte for byte.


def save(library: Library, path: Path) -> None:
    """Write the library as ``path.json`` and ``path.bin``, both or neither where the disk is full.

    Raises:
        OSError: they cannot be written.
    """
    header, numbers = encode(library)
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {".bin": numbers, ".json": header.encode()}
    parts = {suffix: path.with_suffix(f"{suffix}.{os.getpid()}") for suffix in contents}
    try:
        for suffix, content in contents.items():
            parts[suffix].write_bytes(content)
        for suffix, part in parts.items():
            os.replace(part, path.with_suffix(suffix))
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def encode(library: Library) -> tuple[str, bytes]:
    """The library as (JSON, little-endian int32 numbers)."""
    arrays: list[np.ndarray] = []
    start = 0

    def put(array: np.ndarray) -> list[int]:
        nonlocal start
        flat = np.ascontiguousarray(array, dtype="<i4").ravel()
        arrays.append(flat)
        begin, start = start, start + len(flat)
        return [begin, *array.shape]

    routines = {
        name: {
            "ops": put(routine.ops),
            "sizes": put(routine.sizes),
            "kernels": put(routine.kernels),
            "calls": [list(call) for call in routine.calls],
        }
        for name, routine in sorted(library.routines.items())
    }
    weights = {name: put(np.array(tensors)) for name, tensors in library.weights.items()}
    header = {
        "format": FORMAT,
        "versions": dict(library.versions),
        "modules": list(library.modules),
        "weights": weights,
        "routines": routines,
    }
    numbers = np.concatenate(arrays).tobytes()
    # A header that meets another program's numbers must not be taken for one.
    header["sha256"] = hashlib.sha256(numbers).hexdigest()
    return json.dumps(header, separators=(",", ":")) + "\n", numbers


def decode(header_text: str, numbers: bytes, source: str) -> Library:
    """The library that `encode` wrote.

    Raises:
        NoProgram: it was written in another format, or is damaged.
    """
    try:
        header = json.loads(header_text)
    except ValueError:
        header = {}
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise NoProgram(f"{source} is no memory program of format {FORMAT} - 'python -m planner compile'")
    if header.get("sha256") != hashlib.sha256(numbers).hexdigest():
        raise NoProgram(f"{source} is damaged: its numbers are not those of its header - 'python -m planner compile'")
    flat = np.frombuffer(numbers, dtype="<i4")

    def get(place: Sequence[int]) -> np.ndarray:
        begin, *shape = place
        return flat[begin : begin + int(np.prod(shape))].reshape(shape)

    routines = {
        name: Routine(
            ops=get(value["ops"]),
            sizes=get(value["sizes"]),
            kernels=get(value["kernels"]),
            calls=tuple(Call(*call) for call in value["calls"]),
        )
        for name, value in header["routines"].items()
    }
    weights = {name: tuple(map(tuple, get(place).tolist())) for name, place in header["weights"].items()}
    return Library(header["versions"], routines, tuple(header["modules"]), weights, source, header["sha256"])


@cache
def shipped() -> Library:
    """The library that ships with the planner, compiled for the pinned versions.

    Raises:
        NoProgram: its files are missing, or of another format.
    """
    try:
        return read(SHIPPED)
    except OSError as error:
        raise NoProgram(f"the shipped memory programs cannot be read ({error}) - 'python -m planner compile'") from None


def read(path: Path) -> Library:
    """The library that `save` wrote.

    Raises:
        NoProgram: it was written in another format.
        OSError: its files cannot be read.
    """
    return decode(path.with_suffix(".json").read_text(), path.with_suffix(".bin").read_bytes(), str(path))
