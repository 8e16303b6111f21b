"""Shortfalls: how many calibration rows would about be needed where nothing could be certified."""

import functools
import math

import numpy as np
from scipy import special

from domain.confidences import FloatArray
from domain.intervals import gap_interval
from domain.losses import BERNSTEIN, BETTING, BETTING_ROWS, EXACT, FEW_ROWS, Goal, betting_p, fewest
from domain.tallies import Tally, saves

ROWS_TRIED = 1000
"""Where more rows would have to be tried, a larger eps is."""


def least_rows(goal: Goal, level: float, *, test: str = EXACT) -> int:
    """Rows that certify a threshold at which no row is made worse or better: fewer certify nothing at all.

    ln(1/level) / -ln(1 - eps) for the exact tests; betting needs some more, found by trying. Beyond the rows that
    betting is taken for, what Bernstein's bound needs: eps/2 >= 7 ln(2/level) / (3 (n - 1)).
    """
    if test not in (BETTING, BERNSTEIN) or goal.kind == "relative":
        return math.ceil(fewest(goal.eps, level))
    bets = _least_bets(goal.eps, level)
    if bets <= BETTING_ROWS:
        return bets
    return max(BETTING_ROWS + 1, math.ceil(1 + 14 * math.log(2 / level) / (3 * goal.eps)))


@functools.lru_cache(maxsize=64)
def _least_bets(eps: float, level: float) -> int:
    """Rows without a loss after which betting passes; for a small eps, where they are as 1/eps, from a larger one."""
    tried = max(eps, -math.log(level) / ROWS_TRIED)

    def enough(n: int) -> bool:
        return betting_p(np.zeros(n), low=-1, high=1, bound=tried, delta=level) <= level

    least = most = math.ceil(fewest(tried, level))
    while not enough(most):
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle, most)
    return math.ceil(most * (tried / eps))


def rows_needed(
    tally: Tally, p_values: FloatArray, goal: Goal, *, level: float, test: str, all_strong: float
) -> int | None:
    """Rows that would about suffice to certify a saving; None when the rows at hand say that no number would.

    The thresholds stand in the order of their test. Every one down to the first that saves has to pass. Never below
    what zero losses need, and never a number that has just failed.
    """
    least = least_rows(goal, level, test=test)
    if not tally.n:
        return least
    saving = np.flatnonzero(saves(tally.cost, all_strong))
    if not len(saving):
        return None
    guesses = _after_all(_rows_for(tally, goal, level=level, test=test), p_values, tally.n, level=level)
    found = float(np.maximum.accumulate(guesses)[saving[0]])
    return max(least, tally.n + 1, math.ceil(found)) if math.isfinite(found) else None


def _after_all(guesses: FloatArray, p_values: FloatArray, n: int, *, level: float) -> FloatArray:
    """Where so many rows have just failed: as a p-value falls about as exp(-n), up to ten times as many."""
    with np.errstate(divide="ignore"):
        times = np.minimum(math.log(level) / np.log(p_values), 10)
    return np.where((guesses <= n) & (p_values > level), n * np.where(times > 1, times, 10), guesses)


def _rows_for(tally: Tally, goal: Goal, *, level: float, test: str) -> FloatArray:
    """Rows after which each threshold would pass, were its rates the true ones; inf when they are too bad.

    2 ln(1/level) q / (bound - gap)^2 with q the mean square of the loss. Where the gap on these rows is no smaller than
    the bound, but may be in truth, the lower end of its interval stands for it: so many rows at least. The binomial
    test sees rows made worse only, and has Chernoff's bound of its own; with more rows the paired test takes over.
    """
    doubt, n = math.log(1 / level), tally.n
    bound = goal.eps * (tally.strong / n if goal.kind == "relative" else 1.0)
    lower = np.array([gap_interval(s, q, n)[0] for s, q in zip(tally.loss, tally.loss_squared, strict=True)])
    spare = bound - np.where(tally.gap < bound, tally.gap, lower)
    squares = tally.loss_squared / n
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = np.where(spare > 0, 2 * doubt * squares / spare**2, np.inf)
        if test != EXACT:
            return rows
        rate = tally.worse / n
        divergence = special.rel_entr(rate, goal.eps) + special.rel_entr(1 - rate, 1 - goal.eps)
        binomial = np.where(rate < goal.eps, doubt / divergence, np.inf)
    if goal.kind == "agreement":
        return binomial
    few = FEW_ROWS * fewest(goal.eps, level)  # from here on the paired test is taken
    return np.where(binomial < few, binomial, np.where(tally.gap < bound, np.maximum(rows, few), rows))
