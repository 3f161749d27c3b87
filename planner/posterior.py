"""What measured peaks say of two physical unknowns: how much workspace convolutions take, and a constant beside it.

Everything is held on one grid: workspace fraction by constant by noise. Every run adds its log-likelihood, so leaving
one out is a subtraction. The prior holds half of its mass on the raw dry run, which is therefore the answer until
runs say otherwise; each run's likelihood is bounded from below, so none can drag the answer far on its own.
"""

from typing import NamedTuple

import numpy as np

from planner.cells import Kind
from planner.curves import FRACTIONS, PREFERRED
from planner.units import MIB

# Beside the workspace: what the replay leaves out, such as scratch of kernels, or counts too much.
_STEPS = 2.0 ** np.concatenate([[1, 2], np.arange(3, 9.25, 0.25)]) * MIB
CONSTANTS = np.concatenate([-_STEPS[::-1], [0.0], _STEPS])
_NO_CONSTANT = len(_STEPS)
# Relative, and how probable: a deterministic allocator repeats itself to a tenth of a per cent, a busy card does not.
NOISE = np.array([0.002, 0.01, 0.04])
_NOISE_SHARES = np.array([0.43, 0.43, 0.14])

# Half of all belief is on the raw dry run. The rest is on another fraction, above the preferred one less so, on a
# constant, small rather than large, and least on both at once: what one cause explains needs no second.
RAW_SHARE, _FRACTION_SHARE, _CONSTANT_SHARE, _BOTH_SHARE = 0.5, 0.25, 0.15, 0.1
_ABOVE_PREFERRED = 0.3
_TYPICAL_CONSTANT = 64.0 * MIB
# Kernels take scratch that no trace sees; that the trace sees what is not there is less to be expected.
_BELOW_NOTHING = 0.3
# One run in twenty may be absurd: a wrong request, another process, a typing error. Where, nobody knows: its density
# is that of anything from a quarter to four times the peak, in logarithms.
ABSURD_SHARE = 0.05
_ABSURD_DENSITY = 1 / (2 * np.log(4))

SHAPE = (len(FRACTIONS), len(CONSTANTS), len(NOISE))
# Where on the grid the raw dry run is.
RAW = (PREFERRED, _NO_CONSTANT)


def _log_priors() -> tuple[np.ndarray, np.ndarray]:
    below = np.arange(len(FRACTIONS)) <= PREFERRED
    fractions = np.where(below, (1 - _ABOVE_PREFERRED) / below.sum(), _ABOVE_PREFERRED / (~below).sum())
    spacing = np.gradient(CONSTANTS)
    even = spacing * np.exp(-np.abs(CONSTANTS) / _TYPICAL_CONSTANT)
    constants = even * np.where(CONSTANTS < 0, _BELOW_NOTHING, 1.0)
    constants /= constants.sum()
    prior = _BOTH_SHARE * np.outer(fractions, constants)
    prior[:, _NO_CONSTANT] += _FRACTION_SHARE * fractions
    prior[PREFERRED] += _CONSTANT_SHARE * constants
    prior[PREFERRED, _NO_CONSTANT] += RAW_SHARE
    spread = np.outer(np.gradient(FRACTIONS), even)
    return _with_noise(prior), _with_noise(spread / spread.sum())


def _with_noise(prior: np.ndarray) -> np.ndarray:
    return np.log(prior[:, :, None] * _NOISE_SHARES)


# What is believed before any run; and, for how wide an interval must be, with no preference for any fraction: where
# runs tell nothing of the workspace, as small images do, all that it could be stays possible.
LOG_PRIOR, LOG_EVEN = _log_priors()


def _peaks(curve: np.ndarray) -> np.ndarray:
    """The peak at each fraction and constant, never below a byte."""
    return np.maximum(curve[:, None] + CONSTANTS, 1.0)


def _below(deviations: np.ndarray) -> np.ndarray:
    """How probable it is that a normal deviate is below each of these; the logistic stands in for erf, within 0.01."""
    return 1 / (1 + np.exp(-1.702 * np.clip(deviations, -40, 40)))


def log_likelihood(curve: np.ndarray, measured_bytes: float, kind: Kind) -> np.ndarray:
    """What one run's peak of one stage says, given the stage's curve of allocated peaks, (fractions,).

    A full run's peak is what kernels took, give or take the noise. One that was out of memory needed more than it had
    reached. One that met the end of its card and went on, after a retry or with smaller plans, lies between what
    stands without any workspace and what it would have taken. Of a run whose stages are not known, no stage's peak is
    above the whole's.

    Shape:
        `SHAPE`.
    """
    deviations = np.log(measured_bytes / _peaks(curve))[:, :, None] / NOISE
    if kind == "full":
        normal = np.exp(-(deviations**2) / 2) / (NOISE * np.sqrt(2 * np.pi))
        return np.log((1 - ABSURD_SHARE) * normal + ABSURD_SHARE * _ABSURD_DENSITY)
    likelihood = _below(deviations if kind == "at-most" else -deviations)
    if kind == "limited":
        bare = np.log(measured_bytes / np.maximum(curve[0] + CONSTANTS, 1.0))[None, :, None] / NOISE
        likelihood = likelihood * _below(bare)
    return np.log((1 - ABSURD_SHARE) * likelihood + ABSURD_SHARE / 2)


_QUANTILES = np.array([0.5, 0.05, 0.95])


class Estimate(NamedTuple):
    """A peak as the posterior has it: its median and the range of its middle 90 %. Bytes."""

    median: float
    low: float
    high: float


def _quantiles(values: np.ndarray, *weights: np.ndarray) -> list[Estimate]:
    order = np.argsort(values, axis=None, kind="stable")
    found = []
    for one in weights:
        reached = np.cumsum(one.ravel()[order])
        at = np.searchsorted(reached, _QUANTILES * reached[-1])
        found.append(Estimate(*values.ravel()[order[np.minimum(at, len(order) - 1)]].tolist()))
    return found


def weights_of(log_posterior: np.ndarray) -> np.ndarray:
    """The posterior without the noise, which is nobody's question.

    Shape:
        (fractions, constants), sums to 1.
    """
    weights = np.exp(log_posterior - log_posterior.max()).sum(axis=2)
    return weights / weights.sum()


def estimates_of(curve: np.ndarray, *weights: np.ndarray) -> list[Estimate]:
    """The peak of this curve under each of these weights from `weights_of`."""
    return _quantiles(_peaks(curve), *weights)


def constant_of(weights: np.ndarray) -> float:
    """The median of the constant, in bytes."""
    [found] = _quantiles(CONSTANTS, weights.sum(axis=0))
    return found.median
