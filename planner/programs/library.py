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
    ENTER = 10  # a module with parameters of its own is called: sequential offload brings them
    LEAVE = 11  # it returns: sequential offload takes them away


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
# What an area may be multiplied by: nothing, the batch of the call, the prompts of the pipeline's call, the rank of a
# LoRA, or rank and batch.
MULTIPLIERS = ("1", "batch", "prompts", "rank", "rank*batch")


def areas(latent_height: int, latent_width: int) -> np.ndarray:
    """Compute each of `AREAS`.

    Halved sides round up, as a convolution of stride 2 and padding 1 does.

    Shape:
        (12,), int64.
    """
    h, w = latent_height, latent_width
    latents = [-(-h // k) * -(-w // k) for k in (1, 2, 4, 8)]
    padded = [(k * h + 1) * (k * w + 1) for k in (8, 4, 2)]
    return np.array([1, *latents, *padded, *(area**2 for area in latents)], dtype=np.int64)


def evaluated(sizes: np.ndarray, quantities: np.ndarray) -> np.ndarray:
    """Evaluate (index, coefficient) pairs along the last axis.

    The result is ``coefficient * quantities[index]``.
    """
    return quantities[sizes[..., 0]] * sizes[..., 1]


class CallSize(NamedTuple):
    """Give the batch, the latent size, the pipeline's prompts and the LoRA's rank of a call."""

    batch: int
    height: int
    width: int
    prompts: int = 0
    rank: int = 0

    def multipliers(self) -> np.ndarray:
        """Compute each of `MULTIPLIERS`.

        Shape:
            (5,), int64.
        """
        return np.array([1, self.batch, self.prompts, self.rank, self.rank * self.batch], dtype=np.int64)

    def features(self) -> np.ndarray:
        """Compute the quantities of which every size is a whole multiple: each area times each multiplier.

        The index of an area times a multiplier is ``multiplier * len(AREAS) + area``.

        Shape:
            (60,), int64.
        """
        return np.outer(self.multipliers(), areas(self.height, self.width)).ravel()


# Batch factors: the routine is called on each image of the batch, one call after another; on as many images as there
# are prompts; on one alone; once for each ControlNet, on the whole batch.
EACH_IMAGE, EACH_PROMPT, ONE_IMAGE, EACH_NET = 0, -1, -2, -3


class Call(NamedTuple):
    """Describe a call of another routine on `batch_factor` times the caller's batch.

    It leaves `results` storages. Calls for `EACH_IMAGE` or `EACH_NET` are one op. The storages that they leave share
    one number, and die together. The op's module is the one that is called, and modules of the routine whose names
    begin with a dot are inside it.
    """

    routine: str
    batch_factor: int
    results: int


@dataclass(frozen=True)
class Routine:
    """Hold the allocation history of one call, such as the UNet's, for any batch and size.

    `ops` is (events, 3): `Op`, operand, and the index in `Library.modules` of the module that ran. `sizes` is
    (sizes, 2): feature and coefficient; a size is ``coefficient * features[feature]`` bytes, see
    `CallSize.features`. `kernels` is (kernels, 6).
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
        births = int((self.ops[:, 0] == Op.BIRTH).sum()) + sum(call.results for call, _ in self.called)
        dead = self.ops[self.ops[:, 0] == Op.DEATH, 1]
        return np.setdiff1d(np.arange(births), dead)

    @cached_property
    def modules(self) -> tuple[np.ndarray, np.ndarray]:
        """Give the distinct modules of `ops`, and for each op the place of its own among them."""
        return np.unique(self.ops[:, 2], return_inverse=True)

    @cached_property
    def plain_modules(self) -> np.ndarray:
        """Give the place among the distinct modules for each of `plain_ops`."""
        return self.modules[1][self.ops[:, 0] < Op.ENTER]

    @cached_property
    def plain_ops(self) -> np.ndarray:
        """Give `ops` without those that only sequential offload needs.

        Shape:
            (events, 3), int32.
        """
        return self.ops[self.ops[:, 0] < Op.ENTER]

    @cached_property
    def called(self) -> list[tuple[Call, int]]:
        """List the calls in their order, one entry for each time, with the module that is called."""
        return [(self.calls[index], module) for op, index, module in self.ops.tolist() if op == Op.CALL]


# The columns of a table of weights. Bytes are those of two-byte elements, of an adapter those of a LoRA of rank 1. The
# module and the owner are indices in `Library.modules`: of the component, and of the module that has the tensor.
BYTES, MODULE, OWNER, IS_BUFFER, IS_ADAPTER = range(5)


@dataclass(frozen=True, eq=False)
class Library:
    """Hold every routine of one set of library versions, and the weights that they run with.

    `weights` has the tensors of each component and variant, in the order in which the worker loads them: (tensors, 5),
    with the columns `BYTES` to `IS_ADAPTER`.
    `digest` is the SHA-256 of its numbers, empty where it was never encoded.
    """

    versions: Mapping[str, str]
    routines: Mapping[str, Routine]
    modules: tuple[str, ...]
    weights: Mapping[str, np.ndarray]
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

    def weights_of(self, name: str, *, element_bytes: int = 2, rank: int = 0) -> np.ndarray:
        """Give the weights of this component and variant, in a data type and with a LoRA of this rank.

        Shape:
            (tensors, 5), int64.

        Raises:
            NoProgram: there are none.
        """
        try:
            rows = self.weights[name].astype(np.int64)
        except KeyError:
            raise NoProgram(f"no weights were listed for {name!r} - 'python -m planner compile'") from None
        # Buffers are indices, which keep their type.
        rows[:, BYTES] *= np.where(rows[:, IS_BUFFER] != 0, 1, element_bytes // 2)
        rows[:, BYTES] *= np.where(rows[:, IS_ADAPTER] != 0, rank, 1)
        return rows

    def weights_bytes(self, name: str, rank: int = 0) -> int:
        """Compute the bytes of the component's parameters and buffers, with a LoRA of this rank."""
        return int(self.weights_of(name, rank=rank)[:, BYTES].sum())
