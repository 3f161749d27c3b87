"""Hold memory programs: routines whose sizes are symbolic in batch, height and width.

A trace of the real modules (planner/tracing/tracer.py) costs a second and needs torch. But the order of allocations
does not depend on the image's size, except for the conditions in planner/programs/upsampling.py, and every size is a
whole number times one of a few areas. So a few traces compile (planner/tracing/compiler.py) into programs that numpy
evaluates for any size in microseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np

from planner.errors import NoProgram


class Op(IntEnum):
    """Name what an event of a routine does; its operand is in brackets."""

    BIRTH = 0  # a storage is made [size]; its number is the count of births before it
    DEATH = 1  # a storage is freed [number]
    CONVOLUTION = 2  # a convolution runs [kernel]
    ATTENTION = 3  # a fused attention call runs [kernel]
    CALL = 4  # another routine runs [call]
    STAGE = 5  # a stage of the pipeline begins [index in STAGES]
    EMPTY_CACHE = 6  # torch.cuda.empty_cache()
    LOADED = 7  # the weights are loaded, and the pipeline call begins
    RETURNED = 8  # the VAE's encode or decode has returned
    PRODUCT = 9  # the first matrix product of a routine runs


# The areas that sizes are made of, in terms of the latent's height and width: the latent and its three halvings, the
# VAE encoder's three padded images, and sliced attention's scores. Larger scales are whole multiples of the latent's.
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
    """Compute the quantities of which every size is a whole multiple.

    They are each of `AREAS`, then each times the batch. Halved sides round up, as a convolution of stride 2 and padding
    1 does.

    Shape:
        (24,), int64.
    """
    h, w = latent_height, latent_width
    latents = [-(-h // k) * -(-w // k) for k in (1, 2, 4, 8)]
    padded = [(k * h + 1) * (k * w + 1) for k in (8, 4, 2)]
    areas = [1, *latents, *padded, *(area**2 for area in latents)]
    return np.array([*areas, *(batch * area for area in areas)], dtype=np.int64)


def evaluated(sizes: np.ndarray, quantities: np.ndarray) -> np.ndarray:
    """Evaluate (feature, coefficient) pairs along the last axis.

    The result is ``coefficient * quantities[feature]``.
    """
    return quantities[sizes[..., 0]] * sizes[..., 1]


class CallSize(NamedTuple):
    """Give the batch and the latent size that a routine is called at."""

    batch: int
    height: int
    width: int


# A batch factor: the routine is called on each image of the batch, one call after another.
EACH_IMAGE = 0


class Call(NamedTuple):
    """Describe a call of another routine on `batch_factor` times the caller's batch.

    It leaves `results` storages. Calls for `EACH_IMAGE` are one op. The storages that they leave share one number, and
    die together.
    """

    routine: str
    batch_factor: int
    results: int


@dataclass(frozen=True)
class Routine:
    """Hold the allocation history of one call, such as the UNet's, for any batch and size.

    `ops` is (events, 3): `Op`, operand, and the index in `Library.modules` of the module that ran. `sizes` is
    (sizes, 2): feature and coefficient; a size is ``coefficient * features[feature]`` bytes. `kernels` is (kernels, 6).
    The row of a convolution has indices in `sizes` of its input, padded input, output, padded output and weight, all
    in elements, then 1 if it is channels_last. The row of an attention call has those of its log-sum-exp and of its
    float32 accumulator in bytes, then its head dimension and zeros.
    """

    ops: np.ndarray
    sizes: np.ndarray
    kernels: np.ndarray
    calls: tuple[Call, ...] = ()

    @cached_property
    def results(self) -> np.ndarray:
        """Number the storages that outlive the call, in the order of their birth."""
        births = int((self.ops[:, 0] == Op.BIRTH).sum()) + sum(call.results for call in self.called)
        dead = self.ops[self.ops[:, 0] == Op.DEATH, 1]
        return np.setdiff1d(np.arange(births), dead)

    @cached_property
    def called(self) -> list[Call]:
        """List the calls in the order in which they happen, one entry for each time."""
        return [self.calls[index] for index in self.ops[self.ops[:, 0] == Op.CALL, 1]]


@dataclass(frozen=True, eq=False)
class Library:
    """Hold every routine of one set of library versions, and the weights that they run with.

    `weights` has (bytes, index in `modules`) of each tensor by component, in the order in which the worker loads them.
    `digest` is the SHA-256 of its numbers, empty where it was never encoded.
    """

    versions: Mapping[str, str]
    routines: Mapping[str, Routine]
    modules: tuple[str, ...]
    weights: Mapping[str, tuple[tuple[int, int], ...]]
    source: str = ""
    digest: str = ""

    def routine(self, name: str) -> Routine:
        """Find the routine of this name.

        Raises:
            NoProgram: there is none.
        """
        try:
            return self.routines[name]
        except KeyError:
            raise NoProgram(f"no memory program was compiled for {name!r} - 'python -m planner compile'") from None

    def weights_bytes(self, component: str) -> int:
        """Compute the bytes of the component's parameters and buffers."""
        return sum(size for size, _ in self.weights[component])
