"""Learn two physical unknowns from measured peaks: the share of their workspace that convolutions take, and a constant.

A grid of workspace fraction by constant by noise holds the posterior. Each run adds its log-likelihood to the prior.
Nearly half of the prior is on the raw dry run, which therefore stays the answer until runs contradict it. A flat
density for outliers bounds each likelihood from below, so that no single run can move the answer far.
"""

import numpy as np

from planner.calibration.workspace_curve import FRACTIONS, PREFERRED
from planner.units import MIB

# What kernels take beside the workspace or, below zero, what the replay counts too much: 2 to 512 MiB.
_STEPS = 2.0 ** np.arange(1, 9.25, 0.25) * MIB
CONSTANTS = np.concatenate([-_STEPS[::-1], [0.0], _STEPS])
NO_CONSTANT = len(_STEPS)
# The relative standard deviation of repeated runs, and its prior: a process with the GPU to itself repeats its peak
# to 0.2 %, one beside others does not.
NOISE = np.array([0.002, 0.01, 0.04])
_NOISE_PRIOR = np.array([0.43, 0.43, 0.14])
# The prior shares of the preferred workspace and of no constant. The raw dry run has both: 0.455.
_PREFERRED_SHARE, _NO_CONSTANT_SHARE = 0.65, 0.7
_TYPICAL_CONSTANT = 64.0 * MIB
# That kernels take scratch which no trace sees is more probable than that a trace sees what is not there.
_NEGATIVE_CONSTANT = 0.3
# One run in twenty is an outlier: a wrong request, another process, a typing error. Its logarithm is spread evenly
# from a quarter of the peak to four times the peak.
OUTLIER_SHARE = 0.05
_OUTLIER_DENSITY = 1 / (2 * np.log(4))

SHAPE = (len(FRACTIONS), len(CONSTANTS), len(NOISE))


def _log_priors() -> tuple[np.ndarray, np.ndarray]:
    even = np.gradient(CONSTANTS) * np.exp(-np.abs(CONSTANTS) / _TYPICAL_CONSTANT)
    even /= even.sum()
    fractions = np.full(len(FRACTIONS), (1 - _PREFERRED_SHARE) / len(FRACTIONS))
    fractions[PREFERRED] += _PREFERRED_SHARE
    constants = even * np.where(CONSTANTS < 0, _NEGATIVE_CONSTANT, 1.0)
    constants *= (1 - _NO_CONSTANT_SHARE) / constants.sum()
    constants[NO_CONSTANT] += _NO_CONSTANT_SHARE
    spacing = np.gradient(FRACTIONS) / np.gradient(FRACTIONS).sum()
    by_noise = [np.outer(*factors)[:, :, None] * _NOISE_PRIOR for factors in ((fractions, constants), (spacing, even))]
    return np.log(by_noise[0]), np.log(by_noise[1])


# The prior of the answer; and that of its interval, which prefers no fraction, so that every fraction stays possible
# where runs tell little of the workspace, as those of small images do.
LOG_PRIOR, LOG_EVEN = _log_priors()


def grid_peaks(curve: np.ndarray) -> np.ndarray:
    """Compute the peak at each fraction and constant, at least one byte.

    Shape:
        (fractions,) -> (fractions, constants).
    """
    return np.maximum(curve[:, None] + CONSTANTS, 1.0)


def log_likelihood(curve: np.ndarray, measured_bytes: float) -> np.ndarray:
    """Compute the log-likelihood of one measured peak, given its curve over the workspace fraction.

    Shape:
        (fractions,) -> `SHAPE`, float32.
    """
    deviations = np.log(measured_bytes / grid_peaks(curve))[:, :, None] / NOISE
    normal = np.exp(-(deviations**2) / 2) / (NOISE * np.sqrt(2 * np.pi))
    return np.log((1 - OUTLIER_SHARE) * normal + OUTLIER_SHARE * _OUTLIER_DENSITY).astype(np.float32)


def normalized(log_posterior: np.ndarray) -> np.ndarray:
    """Turn a log-posterior into probabilities that sum to 1.

    Shape:
        `SHAPE` -> `SHAPE`.
    """
    weights = np.exp(log_posterior - log_posterior.max())
    return weights / weights.sum()


def quantiles(values: np.ndarray, weights: np.ndarray, levels: tuple[float, ...]) -> list[float]:
    """Compute weighted quantiles: the least value up to which the weights reach each level of their sum."""
    order = np.argsort(values, axis=None, kind="stable")
    reached = np.cumsum(weights.ravel()[order])
    at = np.searchsorted(reached, np.array(levels) * reached[-1])
    return values.ravel()[order[np.minimum(at, len(order) - 1)]].tolist()
