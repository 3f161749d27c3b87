"""Bound the allocated peaks of many sizes from below, in one matrix product.

At each event of a history the living storages are so many of each symbolic size. So the living bytes of all events at
all sizes are the product of two matrices: counts of (events, symbolic sizes), and bytes of (symbolic sizes, sizes).
"""

from collections.abc import Sequence

import numpy as np

from planner.programs.events import Flat
from planner.programs.library import Op, areas
from planner.replay.allocator import MIN_BLOCK
from planner.replay.kernels import KernelPolicy

# Below this, float64 adds whole numbers without an error.
_EXACT = 2.0**53


class Bounds:
    """Hold the counts of living storages of one history, at those events where a peak can be.

    A peak is at a kernel, or where a storage dies next: elsewhere the next event adds to what lives.
    """

    def __init__(self, flat: Flat):
        kinds, operands = flat.ops[:, 0], flat.ops[:, 1]
        self._births, column = _distinct(flat.births)
        counts = np.zeros((len(kinds), len(self._births)), dtype=np.int32)
        born, died = np.flatnonzero(kinds == Op.BIRTH), np.flatnonzero(kinds == Op.DEATH)
        counts[born, column] = 1
        counts[died, column[operands[died]]] = -1
        counts = np.cumsum(counts, axis=0)
        has_handle = np.arange(len(kinds)) >= np.argmax(kinds == Op.PRODUCT)
        kernel = np.full(len(kinds), -1)
        self._kernels = []
        for op, rows in ((Op.CONVOLUTION, flat.convolutions), (Op.ATTENTION, flat.attentions)):
            at = np.flatnonzero(kinds == op)
            distinct, number = _distinct(rows)
            kernel[at] = number[operands[at]] + sum(map(len, self._kernels))
            self._kernels.append(distinct)
        before_death = np.append(kinds[1:] == Op.DEATH, True)
        kept = np.flatnonzero(before_death | (kernel >= 0))
        table = np.column_stack([counts[kept], has_handle[kept], kernel[kept]]).astype(np.int32)
        table, _ = _distinct(table)
        self._counts = table[:, :-1].astype(np.float64)
        self._kernel = table[:, -1]

    def peaks(self, sizes: Sequence[tuple[int, int]], policy: KernelPolicy) -> np.ndarray:
        """Compute the bound at each latent (height, width); see `dry_run.allocated_peaks`.

        Shape:
            (sizes,), int64.
        """
        quantities = np.stack([areas(*size) for size in sizes], axis=-1)
        births = _rounded(_evaluated(self._births, quantities))
        births = np.concatenate([births, _rounded(np.full((1, len(sizes)), policy.cublas_bytes))])
        convolutions, attentions = (_evaluated(rows, quantities) for rows in self._kernels)
        scratch = np.concatenate(
            [
                _rounded(policy.convolution_bytes(_as_rows(convolutions))).reshape(-1, len(sizes)),
                _rounded(policy.attention_bytes(_as_rows(attentions))).reshape(-1, len(sizes)),
                # The last row is that of events that run no kernel.
                np.zeros((1, len(sizes)), dtype=np.int64),
            ]
        )
        live = self._counts @ births.astype(np.float64)
        if live.max(initial=0.0) >= _EXACT:
            live = self._counts.astype(np.int64) @ births
        return (live.astype(np.int64) + scratch[self._kernel]).max(axis=0)


def _evaluated(symbolic: np.ndarray, quantities: np.ndarray) -> np.ndarray:
    """Evaluate (area, coefficient) pairs at several sizes.

    Shape:
        that of `symbolic` with its last axis replaced by the sizes.
    """
    return quantities[symbolic[..., 0]] * symbolic[..., 1, None]


def _as_rows(kernels: np.ndarray) -> np.ndarray:
    """Turn (kernels, columns, sizes) into (kernels * sizes, columns)."""
    return kernels.swapaxes(1, 2).reshape(-1, kernels.shape[1])


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the distinct rows, and the number among them of each row."""
    flat = np.ascontiguousarray(rows.reshape(len(rows), -1))
    keys = flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1]))).ravel()
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    return rows[first], number


def _rounded(sizes: np.ndarray) -> np.ndarray:
    return -(-sizes // MIN_BLOCK) * MIN_BLOCK
