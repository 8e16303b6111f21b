"""Certificates: the lowest threshold whose loss of quality is proven small, or plain words why none is.

The row's cheap answer is kept iff its confidence >= threshold. Its loss is L = 1{kept}(strong - cheap),
in [-1, 1]. Thresholds are tested from "escalate everything" downward, each at level delta, and the first
failure stops the search (fixed-sequence testing; Learn-then-Test, arXiv 2110.01052), so that the last
pass keeps E[L] <= eps with probability at least 1 - delta over the draw of the rows.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import special

from domain.confidences import FloatArray
from domain.workloads import Target

GRID_POINTS = 200
EXACT = "one-sided exact binomial"
BETTING = "WSR betting"


@dataclass(frozen=True, slots=True)
class PairedRows:
    """Both tiers on the same n rows: confidence of the cheap answer (-inf: always escalate), qualities
    in [0, 1], and what each tier's answer cost, USD. Each array has shape (n,)."""

    confidence: FloatArray
    cheap: FloatArray
    strong: FloatArray
    cheap_usd: FloatArray
    strong_usd: FloatArray

    def __len__(self) -> int:
        return len(self.confidence)


class CurvePoint(BaseModel):
    """What one threshold does on the calibration rows; costs are USD per row."""

    model_config = ConfigDict(frozen=True)

    threshold: float
    kept: float
    quality: float
    gap: float
    worse: int
    better: int
    cost: float
    p_value: float
    passed: bool


class Certificate(BaseModel):
    """A promise, and everything needed to check it."""

    model_config = ConfigDict(frozen=True)

    certified: Literal[True] = True
    kind: Literal["absolute", "relative"]
    threshold: float
    eps: float
    delta: float
    n: int
    test: str
    p_value: float
    gap: float
    worse: int
    better: int
    cost: float
    cost_all_strong: float
    grid: tuple[float, ...]
    promise: str


class NotCertified(BaseModel):
    """No threshold could be certified at a saving: everything goes to the strong tier."""

    model_config = ConfigDict(frozen=True)

    certified: Literal[False] = False
    kind: Literal["absolute", "relative"]
    eps: float
    delta: float
    n: int
    test: str
    reason: str
    rows_needed: int | None


@dataclass(frozen=True, slots=True)
class Alone:
    """One tier alone on the same rows: mean quality, mean cost in USD per row."""

    quality: float
    cost: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """The verdict with the curve it was read from, and both tiers alone beside it."""

    verdict: Certificate | NotCertified
    curve: list[CurvePoint]
    cheap: Alone
    strong: Alone


def grid_of(confidence: FloatArray, points: int = GRID_POINTS) -> FloatArray:
    """Up to `points` thresholds, highest first: quantiles of the finite confidences, no label involved."""
    finite = confidence[np.isfinite(confidence)]
    if not len(finite):
        return np.array([], dtype=np.float64)
    return np.unique(np.quantile(finite, np.linspace(0, 1, points), method="inverted_cdf"))[::-1]


def binomial_p(worse: int, n: int, eps: float) -> float:
    """One-sided exact p-value of "the share of rows made worse exceeds eps" (Clopper-Pearson), for 0/1 quality."""
    return float(special.bdtr(worse, n, eps))


def betting_p(loss: FloatArray, *, low: float, high: float, bound: float, delta: float) -> float:
    """p-value of "E[loss] > bound" for losses in [low, high] by betting (WSR, arXiv 2010.09686).

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


def tune(rows: PairedRows, target: Target, *, grid: FloatArray) -> Tuned:
    """Certify the cheapest threshold that keeps the target; the rows' order must not depend on labels."""
    exact = target.kind == "absolute" and bool(np.isin([rows.cheap, rows.strong], (0.0, 1.0)).all())
    test = EXACT if exact else BETTING
    points: list[CurvePoint] = []
    unbroken = True
    for threshold in grid if len(rows) else ():
        point = _measure(rows, float(threshold), target, exact=exact, unbroken=unbroken)
        unbroken = point.passed
        points.append(point)
    passed = [point for point in points if point.passed]
    cheap, strong = _alone(rows.cheap, rows.cheap_usd), _alone(rows.strong, rows.strong_usd)
    if passed and passed[-1].cost < strong.cost:
        verdict = _certificate(passed[-1], target, n=len(rows), test=test, all_strong=strong.cost, grid=grid)
    else:
        verdict = _refusal(points, target, n=len(rows), test=test, any_passed=bool(passed), all_strong=strong.cost)
    return Tuned(verdict, points, cheap, strong)


def _alone(quality: FloatArray, usd: FloatArray) -> Alone:
    return Alone(float(quality.mean()), float(usd.mean())) if len(quality) else Alone(0.0, 0.0)


def _measure(rows: PairedRows, threshold: float, target: Target, *, exact: bool, unbroken: bool) -> CurvePoint:
    kept = rows.confidence >= threshold
    loss = np.where(kept, rows.strong - rows.cheap, 0.0)
    worse, better = int((loss > 0).sum()), int((loss < 0).sum())
    if exact:
        p_value = binomial_p(worse, len(rows), target.eps)
    elif target.kind == "absolute":
        p_value = betting_p(loss, low=-1, high=1, bound=target.eps, delta=target.delta)
    else:
        relative = loss - target.eps * rows.strong
        p_value = betting_p(relative, low=-1, high=1 - target.eps, bound=0.0, delta=target.delta)
    return CurvePoint(
        threshold=threshold,
        kept=float(kept.mean()),
        quality=float(np.where(kept, rows.cheap, rows.strong).mean()),
        gap=float(loss.mean()),
        worse=worse,
        better=better,
        cost=float((rows.cheap_usd + np.where(kept, 0.0, rows.strong_usd)).mean()),
        p_value=p_value,
        passed=unbroken and p_value <= target.delta,
    )


def _certificate(
    point: CurvePoint, target: Target, *, n: int, test: str, all_strong: float, grid: FloatArray
) -> Certificate:
    return Certificate(
        kind=target.kind,
        threshold=point.threshold,
        eps=target.eps,
        delta=target.delta,
        n=n,
        test=test,
        p_value=point.p_value,
        gap=point.gap,
        worse=point.worse,
        better=point.better,
        cost=point.cost,
        cost_all_strong=all_strong,
        grid=tuple(float(t) for t in grid),
        promise=promise(target, n=n),
    )


def _refusal(
    points: list[CurvePoint], target: Target, *, n: int, test: str, any_passed: bool, all_strong: float
) -> NotCertified:
    needed = rows_needed(points, target, n=n, all_strong=all_strong, exact=test == EXACT)
    if any_passed:
        reason = "every certified threshold escalates so much that the cascade costs more than the strong tier alone"
    else:
        reason = f"no threshold keeps the loss within {target.eps:g} at confidence {1 - target.delta:g} on these rows"
    return NotCertified(
        kind=target.kind,
        eps=target.eps,
        delta=target.delta,
        n=n,
        test=test,
        reason=reason,
        rows_needed=needed,
    )


def rows_needed(points: list[CurvePoint], target: Target, *, n: int, all_strong: float, exact: bool) -> int | None:
    """Calibration rows that would about suffice for the easiest saving threshold; None when none would.

    Never below what zero losses need, ln(1/delta) / -ln(1 - eps), and never a number that has just failed.
    """
    least = math.ceil(math.log(1 / target.delta) / -math.log(1 - target.eps))
    guesses = [_rows_for(point, target, n=n, exact=exact) for point in points if point.cost < all_strong]
    finite = [guess for guess in guesses if math.isfinite(guess)]
    if finite:
        return max(least, n + 1, math.ceil(min(finite)))
    return least if n < least else None


def _rows_for(point: CurvePoint, target: Target, *, n: int, exact: bool) -> float:
    """Rows after which this threshold would pass, were its rates the true ones; inf when they are too bad.

    Chernoff's bound for the binomial test, which sees only rows made worse; else the normal approximation
    2 ln(1/delta) q / (allowed - gap)^2 with discordance q.
    """
    doubt = math.log(1 / target.delta)
    if exact:
        rate = point.worse / n
        divergence = special.rel_entr(rate, target.eps) + special.rel_entr(1 - rate, 1 - target.eps)
        return doubt / float(divergence) if rate < target.eps else math.inf
    strong = point.quality + point.gap
    spare = strong - target.floor(strong) - point.gap
    return 2 * doubt * ((point.worse + point.better) / n) / spare**2 if spare > 0 else math.inf


def promise(target: Target, *, n: int) -> str:
    """The words of the guarantee, as they are to be printed."""
    bound = (
        f"at least that of the strong model minus {target.eps:g}"
        if target.kind == "absolute"
        else f"at least {1 - target.eps:g} times that of the strong model"
    )
    return (
        f"If future requests are drawn from the same distribution as the {n} calibration rows and are served by the "
        f"same model versions, prompts and decoding settings, then with probability at least {1 - target.delta:g} over "
        "the draw of those rows, either Headrace reported not certified (and routes everything to the strong model), "
        f"or the expected quality of the deployed cascade, as measured by the workload's metric, is {bound}. This is a "
        "statement about the average over requests, not about each request or each subgroup; it is exact for the "
        "sample size used, makes no assumption on the confidence score, and says nothing about cost (whose estimate is "
        "reported) nor about the metric's own errors."
    )
