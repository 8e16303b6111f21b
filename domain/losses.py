"""Losses: the tests of "this threshold loses more than allowed", and which of them is taken.

A test gives a p-value: how probable it is, at most, to see so little loss when the true mean loss is at or above
the bound. The choice depends on the kind of target, on whether quality is 0/1 and on the number of rows, never on how
a test came out.

- One-sided exact binomial (Clopper-Pearson): counts rows made worse, ignores rows made better.
- Exact paired trinomial (Berger and Boos, JASA 1994): both counts; the unknown share of rows that differ is bounded first.
- WSR betting (Waudby-Smith and Ramdas, arXiv 2010.09686): any loss in a known range, rows in an order free of labels.
- Empirical Bernstein (Maurer and Pontil, arXiv 0907.3740): from two moments only, for more rows than betting has time for.
"""

import math
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
FEW_EXPECTED = 10
"""Below so many expected losses at the bound (n eps) the binomial test is the sharper one."""
BETTING_ROWS = 100_000
"""Betting looks at every row for every threshold: up to so many."""
NEGLIGIBLE = 1e-12
SPAN = 6.5
"""Standard deviations of a binomial that are summed; what lies beyond is added to the p-value."""


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


def choose_test(goal: Goal, *, n: int, binary: bool) -> str:
    """The test that suits the target, the kind of quality and the number of rows."""
    if goal.kind == "relative" or not binary:
        return BETTING if n <= BETTING_ROWS else BERNSTEIN
    if goal.kind == "agreement" or n * goal.eps < FEW_EXPECTED:
        return EXACT
    return PAIRED


def p_values(rows: PairedRows, tally: Tally, grid: FloatArray, goal: Goal, *, test: str, level: float) -> FloatArray:
    """The p-value at each threshold of the grid; the level sets betting's stakes and the paired test's beta."""
    if test == EXACT:
        return binomial_p(tally.worse, tally.n, goal.eps)
    if test == PAIRED:
        return paired_p(tally.worse, tally.better, tally.n, goal.eps, beta=min(BETA, BETA_SHARE * level))
    rho = goal.eps if goal.kind == "relative" else 0.0
    bound, high = (0.0, 1 - rho) if goal.kind == "relative" else (goal.eps, 1.0)
    if test == BERNSTEIN:
        mean = tally.gap - rho * tally.strong / tally.n
        squares = tally.loss_squared - 2 * rho * tally.loss_strong + rho**2 * tally.strong_squared
        return bernstein_p(mean, squares / tally.n, tally.n, low=-1, high=high, bound=bound)
    lost, owed = rows.strong - rows.cheap, rho * rows.strong
    bets = (np.where(rows.confidence >= threshold, lost, 0.0) - owed for threshold in grid)
    return np.array([betting_p(loss, low=-1, high=high, bound=bound, delta=level) for loss in bets])


def binomial_p(worse: FloatArray, n: int, eps: float) -> FloatArray:
    """P(Bin(n, eps) <= worse): the exact p-value of "the share of rows made worse is eps or more", for 0/1 quality."""
    return np.asarray(special.bdtr(worse, n, eps), dtype=np.float64)


def paired_p(worse: FloatArray, better: FloatArray, n: int, eps: float, *, beta: float = BETA) -> FloatArray:
    """Exact p-values of "(worse - better)/n is eps or more in truth", for 0/1 quality; 1 where it is so on these rows.

    The share q of rows that differ is at most `hi` with probability 1 - beta. Given q the p-value is exact; the largest
    over q in [eps, hi] plus beta holds for every q. It stands at hi; other points are looked at in case it does not.
    """
    differ, net = worse + better, worse - better
    with np.errstate(invalid="ignore"):
        hi = np.where(differ < n, special.betaincinv(differ + 1, np.maximum(n - differ, 1), 1 - beta), 1.0)
    found = np.full(len(worse), 1.0)
    found[hi <= eps] = beta  # to lose eps, at least eps of the rows must differ
    points = 5 if n <= BETTING_ROWS else 2
    for i in np.flatnonzero((hi > eps) & (net < n * eps)):
        tail = _bennett(n, eps - net[i] / n, variance=hi[i] - eps**2, reach=1 + eps)
        if tail > NEGLIGIBLE:
            shares = np.linspace(eps, hi[i], points + 1)[1:]
            tail = max(_net_at_most(int(net[i]), n, float(q), eps) for q in shares)
        found[i] = min(1.0, beta + tail)
    return found


def _net_at_most(net: int, n: int, q: float, eps: float) -> float:
    """P(worse - better <= net) when a share q of n rows differs and the mean loss is eps."""
    deviation = math.sqrt(n * q * (1 - q))
    differ = np.arange(max(0, math.floor(n * q - SPAN * deviation)), min(n, math.ceil(n * q + SPAN * deviation)) + 1)
    chance = np.exp(_log_choose(n, differ) + special.xlogy(differ, q) + special.xlog1py(n - differ, -q))
    most = np.floor((differ + net) / 2)  # rows made worse, of those that differ
    below = np.where(most < 0, 0.0, special.bdtr(np.clip(most, 0, differ), differ, (1 + eps / q) / 2))
    return float((chance * below).sum() + max(0.0, 1 - chance.sum()))


def _log_choose(n: int, k: FloatArray) -> FloatArray:
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)


def _bennett(n: int, below: float, *, variance: float, reach: float) -> float:
    """Bennett's bound on the chance that a mean of n values is `below` or more under its expectation.

    No value lies further under its expectation than `reach`; the bound grows with the variance.
    """
    u = below * reach / variance
    return math.exp(-n * variance / reach**2 * ((1 + u) * math.log1p(u) - u))


def betting_p(loss: FloatArray, *, low: float, high: float, bound: float, delta: float) -> float:
    """p-value of "E[loss] > bound" for losses in [low, high] by betting.

    The rows must stand in an order that does not depend on their labels.
    """
    x = (loss - low) / (high - low)
    m = (bound - low) / (high - low)
    k = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (k + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (k + 1)
    earlier = np.concatenate([[0.25], variance[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(1 / delta) / (len(x) * earlier)), 0.75 / (1 - m))
    wealth = np.cumsum(np.log1p(bets * (m - x)))
    return float(min(1.0, np.exp(-wealth.max(initial=0.0))))


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
