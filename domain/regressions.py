"""Regressions: whether a run is worse than what is in use, by more than it may be, on the same rows."""

from dataclasses import dataclass

from domain.comparisons import Difference


@dataclass(frozen=True, slots=True)
class Regression:
    """The loss of quality row by row, with its interval, beside the largest one allowed."""

    passed: bool
    drop: float
    low: float
    high: float
    n: int
    max_drop: float
    proven: bool
    reason: str


def judge_regression(quality: Difference, *, max_drop: float, prove: bool) -> Regression:
    """Judge a paired difference of quality, new less old.

    A run fails when the rows prove its drop to be larger than `max_drop`, the whole 95 % interval above it; with
    `prove` it passes only when they prove that it is not. Between the two they are too few to tell.
    """
    low, high = -quality.high, -quality.low
    proven, refuted = high <= max_drop, low > max_drop
    if refuted:
        reason = f"the drop is larger than {max_drop:g}, whole interval included"
    elif proven:
        reason = f"the drop is no larger than {max_drop:g}, interval included"
    else:
        reason = f"{quality.n} rows are too few to tell whether the drop is larger than {max_drop:g}"
    passed = proven if prove else not refuted
    return Regression(passed, 0.0 - quality.mean, low, high, quality.n, max_drop, proven, reason)
