"""Intervals: two-sided 95 % intervals of a gap between two tiers, of a cost and of an AUROC, from sums alone."""

import math
from typing import cast

from scipy import optimize, special

Interval = tuple[float, float]

LEVEL = 0.95


def gap_interval(loss: float, squares: float, n: int) -> Interval:
    """Interval of a mean loss in [-1, 1], from the sum of n losses and of their squares.

    Bonett and Price's (Stat. Methods Med. Res. 2012): one row made worse and one made better are added, so that no
    rows that differ still leave a width. It takes the threshold as given: that it was chosen on these rows is left out.
    """
    m = n + 2
    centre = loss / m
    half = float(special.ndtri((1 + LEVEL) / 2)) * math.sqrt(max((squares + 2) / m - centre**2, 0.0) / m)
    point = loss / n if n else 0.0
    return max(-1.0, min(point, centre - half)), min(1.0, max(point, centre + half))


def mean_interval(total: float, squares: float, n: int) -> Interval | None:
    """Student's interval of a mean that is not negative, from n values' sum and sum of squares; None under 2 values."""
    if n < 2:
        return None
    mean = total / n
    deviation = math.sqrt(max(squares / n - mean**2, 0.0) * n / (n - 1))
    half = float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * deviation / math.sqrt(n)
    return max(0.0, mean - half), mean + half


def auroc_interval(area: float, right: int, wrong: int) -> Interval:
    """Interval of an AUROC seen on so many right and wrong rows, at least one of each.

    Newcombe's (Stat. Med. 25:559, 2006, method 5): the areas that lie no farther from the one seen than their own
    standard error by Hanley and McNeil allows. So an area of 0 or 1 has a width, too.
    """
    reach, middle = float(special.ndtri((1 + LEVEL) / 2)), (right + wrong) / 2 - 1

    def beyond(true: float) -> float:
        spread = 1 + middle * ((1 - true) / (2 - true) + true / (1 + true))
        return abs(area - true) - reach * math.sqrt(max(true * (1 - true) * spread, 0.0) / (right * wrong))

    def edge(bound: float) -> float:
        # Closely beside the ends every area has no standard error left, and lies too far away.
        inner = area if 0 < area < 1 else abs(area - 1e-9)
        return bound if area == bound else cast(float, optimize.brentq(beyond, inner, bound))

    return edge(0.0), edge(1.0)
