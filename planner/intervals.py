"""Intervals from held-out residuals: how far off were predictions of runs that they had not seen?"""

import numpy as np

# Of every ten runs nine should lie inside.
NOMINAL = 0.9
# From so much weight of residuals on, their own quantile has a rank: nine of ten, and the run to come is the tenth.
_ENOUGH_FOR_RANKS = 9.0
# Below, the runs' spread is taken for a normal one's; below this there is no telling a spread at all.
MIN_WEIGHT = 3.0
# Student's t, two-sided 90 %, by degrees of freedom from 2 on.
_STUDENT = (2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860)
# A normal's standard deviation over its median absolute deviation.
_OVER_MEDIAN = 1.4826
# Beyond so many standard deviations a residual is absurd, if it is more than this, and if few are: one of ten or, of
# few runs, two and no more than a third. Where more are as far off, that is how far off predictions are.
_ABSURD_AT = 4.0
_NEVER_ABSURD = 0.03
# Half as much again, or that much less, is no error of a kernel's.
ALWAYS_ABSURD = float(np.log(1.5))


def half_width(residuals: np.ndarray, weights: np.ndarray) -> float | None:
    """The half-width that holds `NOMINAL` of residuals like these, in logarithms; None where they are too few.

    With many, it is the conformal quantile: the least that holds so much of the weight, absurd runs and the run to
    come counted as outside. With few, it is Student's, on the spread of those that are not absurd.
    """
    total = float(weights.sum())
    if total < MIN_WEIGHT:
        return None
    order = np.argsort(np.abs(residuals))
    sizes, weights = np.abs(residuals)[order], weights[order]
    middle = float(sizes[np.searchsorted(np.cumsum(weights), total / 2)])
    sane = sizes <= ALWAYS_ABSURD
    sizes, weights = sizes[sane], weights[sane]
    if not len(sizes):
        return None
    limit = max(_ABSURD_AT * _OVER_MEDIAN * middle, _NEVER_ABSURD)
    if weights[sizes > limit].sum() <= max((1 - NOMINAL) * total, min(2.0, total / 3)):
        sizes, weights = sizes[sizes <= limit], weights[sizes <= limit]
    if total >= _ENOUGH_FOR_RANKS:
        at = int(np.searchsorted(np.cumsum(weights), NOMINAL * (total + 1) - 1e-9))
        return float(sizes[min(at, len(sizes) - 1)])
    spread = float(np.sqrt(np.average(sizes**2, weights=weights)))
    return _STUDENT[int(total) - 3] * float(np.sqrt(1 + 1 / total)) * spread
