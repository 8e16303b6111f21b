"""Tallies: what every threshold of a grid keeps, loses and costs, in one pass over the rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from domain.confidences import FloatArray

BLOCK = 1 << 19
"""Rows looked at together: what is made on the way stays small beside the rows themselves."""
ROUNDING = 1e-12
"""Relative: sums of the same costs in another order differ by less."""


@dataclass(frozen=True, slots=True)
class PairedRows:
    """Both tiers on the same n rows: confidence of the cheap answer (-inf or NaN: always escalate), qualities
    in [0, 1], and what each tier's answer cost, USD. Each array has shape (n,)."""

    confidence: FloatArray
    cheap: FloatArray
    strong: FloatArray
    cheap_usd: FloatArray
    strong_usd: FloatArray

    def __len__(self) -> int:
        return len(self.confidence)


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over all n rows, one for each threshold of a grid; a row's loss is L = 1{kept}(strong - cheap).

    worse and better count the kept rows with L > 0 and with L < 0; loss_strong is the sum of L times the
    strong tier's quality; costs are those of the cascade, USD. The last two are those of the strong tier alone.
    """

    n: int
    kept: FloatArray
    worse: FloatArray
    better: FloatArray
    loss: FloatArray
    loss_squared: FloatArray
    loss_strong: FloatArray
    usd: FloatArray
    usd_squared: FloatArray
    strong: float
    strong_squared: float

    @property
    def gap(self) -> FloatArray:
        """Mean loss at each threshold: the quality of the strong tier minus that of the cascade."""
        return self.loss / max(self.n, 1)

    @property
    def cost(self) -> FloatArray:
        """Mean cost of the cascade at each threshold, USD per row."""
        return self.usd / max(self.n, 1)


def is_binary(rows: PairedRows) -> bool:
    """Whether every quality is 0 or 1."""
    columns = (rows.cheap, rows.strong)
    return all(bool(((part == 0) | (part == 1)).all()) for column in columns for part in _blocks(column))


def saves(cost: FloatArray, all_strong: float) -> npt.NDArray[np.bool_]:
    """Which costs are below that of the strong tier alone by more than the rounding of a sum."""
    return cost < all_strong * (1 - ROUNDING)


def tally(rows: PairedRows, grid: FloatArray) -> Tally:
    """Sums at each threshold of the grid (any order); a row is kept iff its confidence is not below the threshold."""
    order = np.argsort(grid, kind="stable")
    ascending, bins = grid[order], len(grid) + 1
    kept = np.zeros((3, bins))  # made better, the same, made worse
    sums = np.zeros((5, bins))
    cheap_only = cheap_squared = strong = strong_squared = 0.0
    for block in _places(len(rows)):
        confidence = rows.confidence[block]
        place = np.searchsorted(ascending, confidence, side="right")  # how many thresholds keep the row
        place[np.isnan(confidence)] = 0
        right = rows.strong[block]
        loss = right - rows.cheap[block]
        sign = np.sign(loss).astype(np.int64) + 1
        kept += np.bincount(sign * bins + place, minlength=3 * bins).reshape(3, bins)
        cheap_usd, usd = rows.cheap_usd[block], rows.strong_usd[block]
        more = usd * (2 * cheap_usd + usd)  # by which the square of the row's cost is larger when it is escalated
        for line, weight in enumerate((loss, loss * loss, loss * right, usd, more)):
            sums[line] += np.bincount(place, weights=weight, minlength=bins)
        cheap_only += float(cheap_usd.sum())
        cheap_squared += float((cheap_usd * cheap_usd).sum())
        strong += float(right.sum())
        strong_squared += float((right * right).sum())
    better, same, worse = (_at_least(line, order) for line in kept)
    loss, squared, with_strong = (_at_least(line, order) for line in sums[:3])
    # Costs are added, never taken away: what is left of two large sums may be less than nothing.
    escalated_usd, escalated_squared = (_below(line, order) for line in sums[3:])
    return Tally(
        n=len(rows),
        kept=better + same + worse,
        worse=worse,
        better=better,
        loss=loss,
        loss_squared=squared,
        loss_strong=with_strong,
        usd=cheap_only + escalated_usd,
        usd_squared=cheap_squared + escalated_squared,
        strong=strong,
        strong_squared=strong_squared,
    )


def _at_least(sums: FloatArray, order: npt.NDArray[np.intp]) -> FloatArray:
    """From sums by the number of thresholds that keep a row to sums at each threshold, in the grid's own order."""
    found = np.empty(len(order))
    found[order] = sums[::-1].cumsum()[::-1][1:]
    return found


def _below(sums: FloatArray, order: npt.NDArray[np.intp]) -> FloatArray:
    """As _at_least, of the rows that are not kept."""
    found = np.empty(len(order))
    found[order] = sums.cumsum()[:-1]
    return found


def _places(n: int) -> Iterator[slice]:
    return (slice(first, first + BLOCK) for first in range(0, n, BLOCK))


def _blocks(column: FloatArray) -> Iterator[FloatArray]:
    return (column[block] for block in _places(len(column)))
