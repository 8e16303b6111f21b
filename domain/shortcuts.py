"""Shortcuts: which rows go straight to the strong tier, because asking the cheap one first would not pay."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from domain.figures import Row, paired_rows
from domain.tallies import PairedRows, tally
from domain.thresholds import grid_of
from domain.workloads import Target

STRAIGHT_LEVEL = 0.05
"""The chance that a row sent straight to the strong tier would have been kept often enough to pay the cheap call."""


def straight_from(rows: Sequence[Row], target: Target) -> int | None:
    """The length from which asking the cheap tier first does not pay, None when there is none.

    `rows` are read by the signal in question and are none that a certificate looks at. The threshold in mind is the
    lowest that keeps the target on them. Of the rows at least so long, the share that it keeps is bounded from above
    (Clopper-Pearson at 95 %); going straight is cheaper when that share of the strong tier's price is less than the
    cheap tier's. Of such lengths the one that spares most is taken.
    """
    ordered = sorted(rows, key=lambda row: row.key)
    pairs = paired_rows(ordered)
    grid = grid_of(pairs.confidence)
    sums = tally(pairs, grid)
    keeping = np.flatnonzero(
        sums.gap <= target.eps * (sums.strong / max(sums.n, 1) if target.kind == "relative" else 1)
    )
    if not len(keeping):
        return None  # nothing is kept here: that is for the certificate to say, not for the length
    kept = pairs.confidence >= grid[keeping[-1]]
    chars = np.array([row.chars for row in ordered])
    spared = {int(length): _spared(pairs, kept, chars >= length) for length in np.unique(chars)}
    best = max(spared, key=lambda length: spared[length])
    return best if spared[best] > 0 else None


def _spared(pairs: PairedRows, kept: npt.NDArray[np.bool_], longer: npt.NDArray[np.bool_]) -> float:
    """USD that going straight spares on these rows; nothing where more rows might be kept than it allows."""
    n, keeps = int(longer.sum()), int(kept[longer].sum())
    most = float(special.betaincinv(keeps + 1, n - keeps, 1 - STRAIGHT_LEVEL)) if keeps < n else 1.0
    cheap, strong = float(pairs.cheap_usd[longer].sum()), pairs.strong_usd[longer]
    return cheap - float(strong[kept[longer]].sum()) if most * float(strong.sum()) < cheap else 0.0
