"""Agreements: how often two judges say the same, and how much more often than by chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from domain.scores import Estimate, estimate

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Agreement:
    """The share of n cases on which two judges agree, and Cohen's kappa with its two-sided 95 % interval.

    Kappa is 1 when they always agree and 0 when they do so as often as chance would have it; None when it is not
    defined, since both said one and the same thing throughout, or there are no cases.
    """

    share: Estimate
    kappa: float | None
    low: float
    high: float


def agreement(table: Sequence[Sequence[int]]) -> Agreement:
    """Agreement of two judges from the square table of their verdicts: row by the first, column by the second.

    The standard error is that of Fleiss, Cohen and Everitt (1969, Psychological Bulletin 72:323), for a kappa that need
    not be 0. It is of large samples: under about 30 cases the interval is a rough guide. Raises ValueError for a table
    that is not square.
    """
    counts = np.array(table, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError("the table of two judges' verdicts is square")
    n = int(counts.sum())
    same = int(np.trace(counts))
    share = estimate(np.repeat(np.array([1.0, 0.0]), [same, n - same]))
    if n == 0:
        return Agreement(share, None, -1.0, 1.0)
    p = counts / n
    first, second = p.sum(axis=1), p.sum(axis=0)
    chance = float(first @ second)
    if chance >= 1 - 1e-12:
        return Agreement(share, None, -1.0, 1.0)
    kappa = (share.mean - chance) / (1 - chance)
    agreeing = float(np.diag(p) @ (1 - (first + second) * (1 - kappa)) ** 2)
    apart = p * (second[:, None] + first[None, :]) ** 2
    differing = (1 - kappa) ** 2 * float(apart.sum() - np.trace(apart))
    variance = (agreeing + differing - (kappa - chance * (1 - kappa)) ** 2) / (n * (1 - chance) ** 2)
    half = float(special.ndtri((1 + LEVEL) / 2)) * math.sqrt(max(variance, 0.0))
    return Agreement(share, kappa, max(-1.0, kappa - half), min(1.0, kappa + half))
