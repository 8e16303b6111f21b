"""Losses: the tests of "this threshold loses more than allowed", and which of them is taken.

A test gives a p-value: how probable it is, at most, to see so little loss when the true mean loss is at or above
the bound. The choice depends on the kind of target, on whether quality is 0/1 and on the number of rows, never on how
a test came out.

- One-sided exact binomial (Clopper-Pearson): counts rows made worse, ignores rows made better.
- Exact paired trinomial (Berger and Boos, JASA 1994): both counts; the share of rows that differ is bounded first.
- WSR betting (Waudby-Smith and Ramdas, arXiv 2010.09686): any loss in a known range, rows in an order free of labels.
- Empirical Bernstein (Maurer and Pontil, arXiv 0907.3740): from two moments, where betting would take long.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import numpy as np
from scipy import special

from domain.confidences import FloatArray
from domain.tallies import PairedRows, Tally

EXACT = "one-sided exact binomial"
PAIRED = "exact paired trinomial"
BETTING = "WSR betting"
BERNSTEIN = "empirical Bernstein"

BETA, BETA_SHARE = 0.002, 1 / 20
"""The part of the paired test's p-value that pays for bounding the share of rows that differ, and its largest share
of the level: many signals or a small delta leave little to pay with."""
FEW_ROWS = 1.3
"""Up to so many times the fewest rows that certify anything without a loss, the binomial test is taken: it needs
exactly these. From there on the paired test is the sharper one (benchmarks.router at 60 to 200 rows)."""
BETTING_ROWS = 100_000
"""Betting looks at every row for every threshold: up to so many."""
BETTING_BLOCK = 1024
"""Rows whose losses at every threshold are held together."""
BOLDEST = 0.9
"""The largest part of the wealth that a row may lose."""
PRIOR_MEAN, PRIOR_VARIANCE = 0.5, 0.25
"""Of a loss scaled to [0, 1], before a row is seen; they count as one row."""
PRIOR_ROWS = 3
"""Rows that differ, added before the standard deviation is taken: none that differ is not a deviation of none."""
SHARES = 8
"""Shares of rows that differ over which the largest p-value is sought, then as many about the one that was found."""
SPAN = 5.5
"""Standard deviations of a binomial that are summed; what lies beyond is added to the p-value."""
NEGLIGIBLE = 1e-9


class Goal(Protocol):
    """What is to be certified: the kind of bound, the bound itself (relative: a share), and delta."""

    @property
    def kind(self) -> Literal["absolute", "relative", "agreement"]:
        """Loss of quality, loss as a share of the strong tier's quality, or disagreement with the strong tier."""
        ...

    @property
    def eps(self) -> float:
        """The largest mean loss allowed; relative: the largest share."""
        ...

    @property
    def delta(self) -> float:
        """The chance that the promise fails, over the draw of the rows."""
        ...


def fewest(eps: float, level: float) -> float:
    """Rows without a loss that certify a threshold by the binomial test: ln(1/level) / -ln(1 - eps)."""
    return math.log(1 / level) / -math.log1p(-eps)


def choose_test(goal: Goal, *, n: int, binary: bool, level: float) -> str:
    """The test that suits the target, the kind of quality, the number of rows and the level of each test."""
    if goal.kind == "relative" or not binary:
        return BETTING if n <= BETTING_ROWS else BERNSTEIN
    if goal.kind == "agreement" or n < FEW_ROWS * fewest(goal.eps, level):
        return EXACT
    return PAIRED


def p_values(rows: PairedRows, tally: Tally, grid: FloatArray, goal: Goal, *, test: str, level: float) -> FloatArray:
    """The p-value at each threshold of the grid; the level sets betting's stakes and the paired test's beta."""
    if test == EXACT:
        return binomial_p(tally.worse, tally.n, goal.eps)
    if test == PAIRED:
        beta = min(BETA, BETA_SHARE * level)
        return paired_p(tally.worse, tally.better, tally.n, goal.eps, beta=beta, level=level)
    rho = goal.eps if goal.kind == "relative" else 0.0
    bound, high = (0.0, 1 - rho) if goal.kind == "relative" else (goal.eps, 1.0)
    if test == BERNSTEIN:
        mean = tally.gap - rho * tally.strong / tally.n
        squares = tally.loss_squared - 2 * rho * tally.loss_strong + rho**2 * tally.strong_squared
        return bernstein_p(mean, squares / tally.n, tally.n, low=-1, high=high, bound=bound)
    losses = _losses(rows, grid, rho)
    return betting_ps(losses, len(rows), low=-1, high=high, bound=bound, delta=level)


def _losses(rows: PairedRows, grid: FloatArray, rho: float) -> Iterator[FloatArray]:
    """Losses less rho times the strong tier's quality, in blocks of rows; a column a threshold."""
    for first in range(0, len(rows), BETTING_BLOCK):
        block = slice(first, first + BETTING_BLOCK)
        strong = rows.strong[block, None]
        kept = rows.confidence[block, None] >= grid
        yield np.where(kept, strong - rows.cheap[block, None], 0.0) - rho * strong


def binomial_p(worse: FloatArray, n: int, eps: float) -> FloatArray:
    """P(Bin(n, eps) <= worse): the exact p-value of "the share of rows made worse is eps or more", for 0/1 quality."""
    return np.asarray(special.bdtr(worse, n, eps), dtype=np.float64)


def paired_p(
    worse: FloatArray, better: FloatArray, n: int, eps: float, *, beta: float = BETA, level: float | None = None
) -> FloatArray:
    """Exact p-values of "(worse - better)/n is eps or more in truth", for 0/1 quality; 1 where it is so on these rows.

    The share q of rows that differ lies in its exact interval at level 1 - beta. Given q, every outcome at least as far
    below eps as this one, in its own standard errors, is summed; the largest sum over the q of the interval, plus beta,
    holds for every q. Distance in standard errors, not in rows, is what makes the sum nearly the same for every q.
    With a level, the search ends early where it decides nothing: above twice the level, or clearly on one side of it.
    """
    differ, net = worse + better, worse - better
    low = np.where(differ > 0, special.betaincinv(np.maximum(differ, 1), n - differ + 1, beta / 2), 0.0)
    high = np.where(differ < n, special.betaincinv(differ + 1, np.maximum(n - differ, 1), 1 - beta / 2), 1.0)
    distance = (net - n * eps) / _deviation(differ, n, eps)
    found = np.full(len(worse), 1.0)
    found[high <= eps] = beta  # to lose eps, at least eps of the rows must differ
    for i in np.flatnonzero((high > eps) & (net < n * eps)):
        interval = max(float(low[i]), eps), float(high[i])
        found[i] = min(1.0, beta + _as_far(float(distance[i]), n, eps, interval, level and level - beta))
    return found


def _deviation(differ: FloatArray, n: int, eps: float) -> FloatArray:
    """Standard deviation of (worse - better) when so many rows differ and the mean loss is eps."""
    share = np.maximum((differ + PRIOR_ROWS) / (n + PRIOR_ROWS), eps)
    return np.sqrt(n * (share - eps**2))


def _as_far(distance: float, n: int, eps: float, interval: tuple[float, float], level: float | None) -> float:
    """The largest P(an outcome is as many standard deviations under eps) over shares of rows that differ."""
    ends = np.array(interval)
    spread = SPAN * np.sqrt(n * ends * (1 - ends))
    fewest, most = max(0, math.floor((n * ends - spread).min())), min(n, math.ceil((n * ends + spread).max()))
    nearest = -distance * float(_deviation(np.array([fewest]), n, eps)[0]) / n
    if _bennett(n, nearest, variance=interval[1] - eps**2, reach=1 + eps) < NEGLIGIBLE:
        return NEGLIGIBLE
    differ = np.arange(fewest, most + 1, dtype=np.float64)
    net = np.floor(n * eps + distance * _deviation(differ, n, eps) + 1e-6)  # the observed outcome is one of them
    worse = np.floor((differ + net) / 2)
    ways = _log_choose(n, differ)

    def chances(shares: FloatArray) -> FloatArray:
        q = shares[:, None]
        chance = np.exp(ways + special.xlogy(differ, q) + special.xlog1py(n - differ, -q))
        chance[chance < NEGLIGIBLE / n] = 0.0  # what is left out is added below
        row, at = np.nonzero(chance * (worse >= 0))
        below = special.bdtr(np.minimum(worse, differ)[at], differ[at].astype(np.int64), ((1 + eps / q) / 2)[row, 0])
        summed = np.bincount(row, weights=chance[row, at] * below, minlength=len(shares))
        return summed + np.maximum(0.0, 1 - chance.sum(axis=1))

    first = float(chances(np.linspace(*interval, 3)).max())
    if level is not None and first > 2 * level:
        return first
    shares = np.linspace(*interval, SHARES if n <= BETTING_ROWS else 3)
    found = chances(shares)
    top = int(found.argmax())
    if level is not None and not 0.9 < found[top] / level < 1:
        return float(found[top])
    about = float(shares[max(0, top - 1)]), float(shares[min(len(shares) - 1, top + 1)])
    finer = np.linspace(*about, len(shares))
    return float(max(found.max(), chances(finer).max()))


def _log_choose(n: int, k: FloatArray) -> FloatArray:
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)


def _bennett(n: int, below: float, *, variance: float, reach: float) -> float:
    """Bennett's bound on the chance that a mean of n values is `below` or more under its expectation.

    No value lies further under its expectation than `reach`; the bound grows with the variance.
    """
    u = below * reach / variance
    return math.exp(-n * variance / reach**2 * ((1 + u) * math.log1p(u) - u))


def betting_p(loss: FloatArray, *, low: float, high: float, bound: float, delta: float) -> float:
    """p-value of "E[loss] > bound" for one or more losses in [low, high], of shape (n,), by betting: see betting_ps."""
    return float(betting_ps([loss[:, None]], len(loss), low=low, high=high, bound=bound, delta=delta)[0])


def betting_ps(
    losses: Iterable[FloatArray], n: int, *, low: float, high: float, bound: float, delta: float
) -> FloatArray:
    """p-values of "E[loss] > bound" by betting, one a column of n rows of losses in [low, high], which come in blocks.

    The rows must stand in an order that does not depend on their labels. A bet knows the rows before its own and is
    aimed at what its wealth still lacks of 1/delta in the rows that are left; there, betting ends. The p-value is one
    over the highest wealth: one that passes lies a little below delta, however clear the case.
    """
    m = (bound - low) / (high - low)
    most = BOLDEST / (1 - m)
    seen, total, spread = 0, PRIOR_MEAN, PRIOR_VARIANCE
    lacking = least = doubt = np.float64(-math.log(delta))  # what the logarithm of the wealth lacks, now and at best
    for block in losses:
        x = (block - low) / (high - low)
        k = np.arange(seen + 1, seen + len(x) + 1)[:, None]
        sums = total + np.cumsum(x, axis=0)
        spreads = spread + np.cumsum((x - sums / (k + 1)) ** 2, axis=0)
        earlier = np.concatenate([np.broadcast_to(spread, (1, x.shape[1])), spreads[:-1]]) / k
        for gain, aim in zip(m - x, 2 / ((n - k + 1) * earlier), strict=True):
            bets = np.minimum(np.sqrt(np.maximum(lacking, 0.0) * aim), most)
            lacking = lacking - np.log1p(bets * gain)
            least = np.minimum(least, lacking)
        seen, total, spread = seen + len(x), sums[-1], spreads[-1]
    return np.where(least < doubt, delta * np.exp(least), 1.0)


def bernstein_p(
    mean: FloatArray, mean_square: FloatArray, n: int, *, low: float, high: float, bound: float
) -> FloatArray:
    """p-values of "E[loss] > bound" for n losses in [low, high] of these means and mean squares."""
    width = high - low
    variance = np.maximum(mean_square - mean**2, 0.0) * n / (n - 1) / width**2
    spare = np.maximum(bound - mean, 0.0) / width
    # The upper bound at level p is mean + sqrt(2 variance y / n) + 7 y / (3 (n - 1)) with y = ln(2 / p).
    linear, root = 7 / (3 * (n - 1)), np.sqrt(2 * variance / n)
    y = ((np.sqrt(root**2 + 4 * linear * spare) - root) / (2 * linear)) ** 2
    return np.minimum(1.0, 2 * np.exp(-y))
