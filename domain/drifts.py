"""Drifts: how far two samples of one thing lie apart, from their counts in the same buckets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special

LEVEL = 0.95
HALF = 0.5
"""Added to each bucket's count, so that an empty one does not make the index infinite."""


@dataclass(frozen=True, slots=True)
class Stability:
    """A population stability index; `by_chance` is what it stays below in 95 of 100 pairs of samples without a drift.

    `before` and `after` are the rows counted, `buckets` those that hold any.
    """

    index: float
    by_chance: float
    before: int
    after: int
    buckets: int

    @property
    def drifted(self) -> bool:
        """Whether the index is larger than chance explains at this level."""
        return self.index > self.by_chance


def stability(before: Sequence[int], after: Sequence[int]) -> Stability | None:
    """The population stability index of two samples from their counts bucket by bucket, in the same order.

    PSI = Σ (q - p) ln(q / p) over the buckets, p and q being their shares before and after: the symmetric form of the
    Kullback-Leibler divergence (Jeffreys 1946), under this name in Siddiqi, Credit Risk Scorecards (Wiley 2006). The
    usual limits 0.1 and 0.25 know nothing of n. Without a drift, PSI is about (1/n + 1/m) times a chi-square with
    buckets - 1 degrees of freedom (Yurdakul, Statistical Properties of Population Stability Index, Western Michigan
    University 2018); `by_chance` is its 95 % quantile. It takes the samples as independent, and buckets as given: rows
    that both share make the index smaller. Buckets that are empty on both sides do not count.

    None when a side has no rows or fewer than two buckets hold any. Raises ValueError when the counts do not pair.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} buckets cannot be compared with {len(after)}")
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b or a]
    n, m, k = sum(b for b, _ in pairs), sum(a for _, a in pairs), len(pairs)
    if not n or not m or k < 2:
        return None
    shares = [((b + HALF) / (n + HALF * k), (a + HALF) / (m + HALF * k)) for b, a in pairs]
    index = sum((q - p) * math.log(q / p) for p, q in shares)
    by_chance = (1 / n + 1 / m) * float(special.chdtri(k - 1, 1 - LEVEL))
    return Stability(index, by_chance, n, m, k)
