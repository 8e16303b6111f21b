"""Thresholds: which ones are tried, in which order, at which level, and where the search stops."""

import numpy as np
import numpy.typing as npt

from domain.confidences import FloatArray

GRID_POINTS = 200
HIGHEST = float(np.finfo(np.float64).max)
"""Stands in a grid for +inf, which JSON has no word for: the same rows reach it."""


def grid_of(confidence: FloatArray, points: int = GRID_POINTS) -> FloatArray:
    """Up to `points` thresholds, highest first: quantiles of the confidences there are, no label involved.

    Each is a confidence that occurs, and none occurs twice: rows of equal confidence move together.
    """
    given = np.minimum(confidence[confidence > -np.inf], HIGHEST)  # neither -inf nor NaN
    if not len(given):
        return np.array([], dtype=np.float64)
    return np.unique(np.quantile(given, np.linspace(0, 1, points), method="inverted_cdf"))[::-1]


def fixed_sequence(p_values: FloatArray, level: float) -> npt.NDArray[np.bool_]:
    """Which thresholds are certified: those before the first whose p-value is above the level, in the order given.

    Each is tested at the whole level; stopping at the first failure is what pays for the number of tests
    (Learn then Test, arXiv 2110.01052). A NaN is a failure.
    """
    return np.logical_and.accumulate(p_values <= level)


def signal_level(delta: float, declared: int) -> float:
    """The level of each of so many signals that were declared beforehand (Bonferroni)."""
    return delta / declared


def tuning_share(spend: float, tuning: int) -> float:
    """The share of delta that the n-th tuning (from 1) on the same rows takes: `spend` of what those before it left.

    With a half that is delta/2, delta/4, … Every tuning on the same rows is one more chance to break the promise; the
    shares of any number of them add up to delta at most. Fresh rows begin again. Raises ValueError when the number is
    below 1.
    """
    if tuning < 1:
        raise ValueError(f"tunings are counted from 1, not {tuning}")
    return spend * (1 - spend) ** (tuning - 1)
