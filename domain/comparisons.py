"""Comparisons: two qualities or costs of the same rows, row by row, and how sure we are of their difference."""

import math
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from domain.confidences import FloatArray
from domain.scores import mcnemar_of

LEVEL = 0.95
RESAMPLES = 10_000
MOST_VALUES = 2_000
"""With more distinct differences than this the mean is normal enough, and resampling them would only take memory."""
SCORE, BOOTSTRAP, STUDENT, NONE = "paired score interval", "paired bootstrap", "paired t interval", "no rows"
UNSEEN, ONE = "paired bound on unseen rows", "one row: no spread known"


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of `after - before` over the same n rows with its two-sided 95 % interval.

    `up` and `down` count the rows that grew and shrank; `p_value` is that of "they do not differ".
    """

    mean: float
    low: float
    high: float
    n: int
    up: int
    down: int
    p_value: float
    method: str

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}] n={self.n}"


_UNKNOWN = Difference(0.0, -1.0, 1.0, 0, 0, 0, 1.0, NONE)  # no infinity, which JSON has no word for


@dataclass(frozen=True, slots=True)
class GapSums:
    """What n rows' gaps `after - before` come to: their mean and sample standard deviation (ddof 1), how many grew and
    shrank, and whether every value before and after was 0 or 1."""

    n: int
    mean: float
    deviation: float
    up: int
    down: int
    binary: bool


def paired_difference(before: FloatArray, after: FloatArray, *, bounded: bool = True, seed: int = 0) -> Difference:
    """Compare two values of each row: Tango's score interval and the exact McNemar test for 0/1 values, else a
    bootstrap of the rows whose seed is fixed, so that the same rows always give the same interval.

    `bounded` says that the values are qualities in [0, 1]; of others, costs say, no range is known.
    """
    n = len(before)
    if n == 0:
        return _UNKNOWN
    gaps = after - before
    binary = bool(np.isin([before, after], (0.0, 1.0)).all())
    deviation = float(gaps.std(ddof=1)) if n > 1 else 0.0
    sums = GapSums(n, float(gaps.mean()), deviation, int((gaps > 0).sum()), int((gaps < 0).sum()), binary)
    values, counts = np.unique(gaps, return_counts=True)
    return summed_difference(sums, (values, counts) if len(values) <= MOST_VALUES else None, bounded=bounded, seed=seed)


def summed_difference(
    sums: GapSums, counted: tuple[FloatArray, NDArray[np.int64]] | None, *, bounded: bool = True, seed: int = 0
) -> Difference:
    """The same from sums: `counted` holds the distinct gaps, ascending, and how many rows have each; None when there
    are more than MOST_VALUES. Qualities that are all 0 or 1 do not need it."""
    n, mean, up, down = sums.n, sums.mean, sums.up, sums.down
    if n == 0:
        return _UNKNOWN
    if sums.binary and bounded:
        low, high = score_interval(up, down, n)
        return Difference(mean, low, high, n, up, down, mcnemar_of(up, down), SCORE)
    found = _student(sums) if counted is None else _resampled(sums, *counted, seed)
    return _with_unseen_rows(found) if bounded else _with_signs(found)


def _student(sums: GapSums) -> Difference:
    n, mean = sums.n, sums.mean
    error = sums.deviation / math.sqrt(n)
    half = float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    p_value = 2 * float(special.stdtr(n - 1, -abs(mean) / error))
    return Difference(mean, mean - half, mean + half, n, sums.up, sums.down, p_value, STUDENT)


def _resampled(sums: GapSums, values: FloatArray, counts: NDArray[np.int64], seed: int) -> Difference:
    n, mean = sums.n, sums.mean
    if len(values) == 1:
        return Difference(mean, mean, mean, n, sums.up, sums.down, float(mean == 0), BOOTSTRAP)
    means = np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES) @ values / n
    low, high = (float(q) for q in np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p_value = min(1.0, 2 * (beyond + 1) / (RESAMPLES + 1))
    return Difference(mean, low, high, n, sums.up, sums.down, p_value, BOOTSTRAP)


def _with_unseen_rows(found: Difference) -> Difference:
    """Widen an interval of qualities by what n rows may not have shown, which a bootstrap takes for impossible.

    At most a share 1 - alpha^(1/n) of all rows is below the smallest of n gaps, at confidence 1 - alpha, whatever their
    distribution (Wilks 1941, Annals of Mathematical Statistics 12:91; about 3 / n at 95 %, the "rule of three"), and as
    much is above the largest; such rows can have a gap of -1 or 1. Where all n gaps are one value this is the whole
    bound and exact; where they vary it is a floor under the width, about that of Tango's interval of n unchanged rows.
    """
    n, mean = found.n, found.mean
    share = 1 - ((1 - LEVEL) / 2) ** (1 / n)
    low, high = mean - share * (mean + 1), mean + share * (1 - mean)
    if found.low <= low and high <= found.high:
        return found
    p_value = max(found.p_value, min(1.0, 2 * (1 + abs(mean)) ** -n))  # at this level 0 is an end of the bound
    return replace(found, low=min(low, found.low), high=max(high, found.high), p_value=p_value, method=UNSEEN)


def _with_signs(found: Difference) -> Difference:
    """The same of values without a known range: an equal price for every row is nothing unusual and its interval has
    no width. That all rows with a gap went one way is no rarer than in the sign test; of one row the interval reaches,
    by convention, from no difference to twice what was seen."""
    p_value = max(found.p_value, min(1.0, 2.0 ** (1 - found.up - found.down)))
    if found.n > 1:
        return replace(found, p_value=p_value)
    return replace(found, low=min(0.0, 2 * found.mean), high=max(0.0, 2 * found.mean), p_value=p_value, method=ONE)


def score_interval(up: int, down: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Two-sided interval of (up - down) / n for paired 0/1 values (Tango 1998, Statistics in Medicine 17:891).

    Its test of no difference is McNemar's; unlike a bootstrap it knows that no changed row of few proves little.
    """
    z = float(special.ndtri((1 + level) / 2))
    centre = (up - down) / n

    def edge(bound: float, sign: float) -> float:
        def beyond(gap: float) -> float:
            return _score(up, down, n, gap) - sign * z

        inner, outer = centre, bound * (1 - 1e-12)
        if beyond(outer) * beyond(inner) > 0:
            return bound
        return cast(float, optimize.brentq(beyond, min(inner, outer), max(inner, outer), xtol=1e-12))

    return (edge(-1.0, 1.0) if centre > -1 else -1.0), (edge(1.0, -1.0) if centre < 1 else 1.0)


def _score(up: int, down: int, n: int, gap: float) -> float:
    """Standard deviations between the gap that was seen and `gap`, were that the true one."""
    a = 2 * n
    b = -up - down + (2 * n - up + down) * gap
    c = -down * gap * (1 - gap)
    share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * share + gap * (1 - gap))
    distance = up - down - n * gap
    if distance == 0:
        return 0.0
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)
