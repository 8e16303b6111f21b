"""Certificates: the lowest threshold whose loss of quality is proven small, or plain words why none is.

The row's cheap answer is kept iff its confidence >= threshold. Its loss is L = 1{kept}(strong - cheap),
in [-1, 1]. Thresholds are tested from "escalate everything" downward, each at level delta/m for m declared signals,
and the first failure stops the search (domain/thresholds.py), so that the last pass keeps E[L] <= eps with
probability at least 1 - delta over the draw of the rows. The tests are in domain/losses.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from domain.canonical import digest
from domain.confidences import FloatArray
from domain.intervals import gap_interval, mean_interval
from domain.losses import BETTING, EXACT, PAIRED, Goal, betting_p, binomial_p, choose_test, p_values
from domain.promises import promise
from domain.shortfalls import least_rows, rows_needed
from domain.tallies import PairedRows, Tally, is_binary, saves, tally
from domain.thresholds import GRID_POINTS, fixed_sequence, grid_of, signal_level
from domain.verdicts import Certificate, CurvePoint, Kind, NotCertified

Name = TypeVar("Name", bound=str)

__all__ = [
    "BETTING",
    "EXACT",
    "FIRST_USE",
    "GRID_POINTS",
    "PAIRED",
    "Alone",
    "Bound",
    "Certificate",
    "CurvePoint",
    "NotCertified",
    "PairedRows",
    "Tuned",
    "Use",
    "betting_p",
    "binomial_p",
    "cheapest",
    "grid_of",
    "promise",
    "tune",
    "tune_signals",
]


@dataclass(frozen=True, slots=True)
class Bound:
    """A goal by itself: eps is the largest mean loss, the largest share of it (relative) or of differing answers."""

    kind: Kind
    eps: float
    delta: float


@dataclass(frozen=True, slots=True)
class Use:
    """Which use of the calibration rows for a certificate this is, and the share of delta that is left for it."""

    tuning: int = 1
    share: float = 1.0


FIRST_USE = Use()
"""Rows that nothing was certified on, nor will be again."""


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


def tune(
    rows: PairedRows,
    target: Goal,
    *,
    grid: FloatArray,
    signal: str | None = None,
    declared: int = 1,
    use: Use = FIRST_USE,
    effective_n: float | None = None,
    metric: str = "the workload's metric",
) -> Tuned:
    """Certify the cheapest threshold of a grid, highest first, that keeps the target.

    The rows' order must not depend on labels. For an agreement target `cheap` is 1 where the tiers' answers are equal,
    and `strong` is 1. `declared` is the number of signals among which one is going to be chosen; `use` says which part
    of delta is left for these rows, `effective_n` how many rows they are worth (reported, not used).
    """
    level = signal_level(target.delta * use.share, declared)
    grid = grid if len(rows) and level > 0 else grid[:0]
    test = choose_test(target, n=len(rows), binary=is_binary(rows), level=level or target.delta)
    sums = tally(rows, grid)
    found = p_values(rows, sums, grid, target, test=test, level=level) if len(grid) else np.array([])
    passed = fixed_sequence(found, level)
    cheap, strong = _alone(rows.cheap, rows.cheap_usd), _alone(rows.strong, rows.strong_usd)
    last = int(passed.sum()) - 1
    tested = _Tested(target, test, level, signal, declared, use, effective_n, grid, sums, found, strong.cost)
    if last >= 0 and saves(sums.cost, strong.cost)[last]:
        verdict = _certificate(tested, last, promise(target, n=len(rows), metric=metric))
    else:
        verdict = _refusal(tested, any_passed=last >= 0, strong_usd=rows.strong_usd)
    return Tuned(verdict, _curve(tested, passed), cheap, strong)


def tune_signals(
    signals: Mapping[str, FloatArray], rows: PairedRows, target: Goal, *, metric: str = "the workload's metric"
) -> dict[str, Tuned]:
    """Tune each of the signals that were declared beforehand, at its share of delta; `rows.confidence` is not used."""
    tuned: dict[str, Tuned] = {}
    for name, confidence in signals.items():
        mine = PairedRows(confidence, rows.cheap, rows.strong, rows.cheap_usd, rows.strong_usd)
        grid = grid_of(confidence)
        tuned[name] = tune(mine, target, grid=grid, signal=name, declared=len(signals), metric=metric)
    return tuned


def cheapest(tuned: Mapping[Name, Tuned]) -> Name:
    """The signal whose certified cascade costs least; without any, the one that needs the fewest rows."""

    def rank(name: Name) -> tuple[bool, float, float]:
        verdict = tuned[name].verdict
        if isinstance(verdict, Certificate):
            return False, verdict.cost, 0.0
        p = 2.0 if verdict.p_value is None else verdict.p_value
        return True, math.inf if verdict.rows_needed is None else verdict.rows_needed, p

    return min(tuned, key=rank)


@dataclass(frozen=True, slots=True)
class _Tested:
    """A grid with its tallies and p-values, and under which terms they were made."""

    target: Goal
    test: str
    level: float
    signal: str | None
    declared: int
    use: Use
    effective_n: float | None
    grid: FloatArray
    sums: Tally
    p_values: FloatArray
    all_strong: float


def _alone(quality: FloatArray, usd: FloatArray) -> Alone:
    return Alone(float(quality.mean()), float(usd.mean())) if len(quality) else Alone(0.0, 0.0)


def _curve(tested: _Tested, passed: npt.NDArray[np.bool_]) -> list[CurvePoint]:
    sums, gaps, costs = tested.sums, tested.sums.gap, tested.sums.cost
    return [
        CurvePoint(
            threshold=float(threshold),
            kept=float(sums.kept[i]) / sums.n,
            quality=(sums.strong - float(sums.loss[i])) / sums.n,
            gap=float(gaps[i]),
            worse=int(sums.worse[i]),
            better=int(sums.better[i]),
            cost=float(costs[i]),
            p_value=float(tested.p_values[i]),
            passed=bool(passed[i]),
        )
        for i, threshold in enumerate(tested.grid)
    ]


def _certificate(tested: _Tested, chosen: int, words: str) -> Certificate:
    target, sums = tested.target, tested.sums
    return Certificate(
        kind=target.kind,
        threshold=float(tested.grid[chosen]),
        eps=target.eps,
        delta=target.delta,
        n=sums.n,
        test=tested.test,
        p_value=float(tested.p_values[chosen]),
        gap=float(sums.gap[chosen]),
        worse=int(sums.worse[chosen]),
        better=int(sums.better[chosen]),
        cost=float(sums.cost[chosen]),
        cost_all_strong=tested.all_strong,
        grid=tuple(float(t) for t in tested.grid),
        promise=words,
        signal=tested.signal,
        declared=tested.declared,
        tuning=tested.use.tuning,
        effective_n=tested.effective_n,
        level=tested.level,
        grid_hash=_hash(tested.grid),
        gap_interval=gap_interval(float(sums.loss[chosen]), float(sums.loss_squared[chosen]), sums.n),
        cost_interval=mean_interval(float(sums.usd[chosen]), float(sums.usd_squared[chosen]), sums.n),
    )


def _refusal(tested: _Tested, *, any_passed: bool, strong_usd: FloatArray) -> NotCertified:
    target, sums, all_strong = tested.target, tested.sums, tested.all_strong
    if tested.level <= 0:
        reason = f"these rows were tuned on {tested.use.tuning - 1} times before and nothing of delta is left for them"
    elif any_passed:
        reason = "the cascade costs no less than the strong tier alone at every certified threshold"
    elif sums.n and not len(tested.grid):
        reason = "no row has a confidence"
    else:
        reason = f"no threshold keeps the loss within {target.eps:g} at confidence {1 - target.delta:g} on these rows"
        if tested.use.tuning > 1:
            reason += f" (tuning {tested.use.tuning} on them, at level {tested.level:g})"
    return NotCertified(
        kind=target.kind,
        eps=target.eps,
        delta=target.delta,
        n=sums.n,
        test=tested.test,
        reason=reason,
        rows_needed=_rows_needed(tested),
        signal=tested.signal,
        declared=tested.declared,
        tuning=tested.use.tuning,
        effective_n=tested.effective_n,
        level=tested.level,
        p_value=float(tested.p_values[0]) if len(tested.p_values) else None,
        grid_hash=_hash(tested.grid),
        cost=all_strong,
        cost_interval=mean_interval(float(strong_usd.sum()), float(np.square(strong_usd).sum()), sums.n),
    )


def _rows_needed(tested: _Tested) -> int | None:
    """Rows that would about do; fresh ones, where nothing of delta is left for those at hand."""
    target, test = tested.target, tested.test
    if tested.level <= 0:
        return least_rows(target, signal_level(target.delta, tested.declared), test=test)
    return rows_needed(
        tested.sums, tested.p_values, target, level=tested.level, test=test, all_strong=tested.all_strong
    )


def _hash(grid: FloatArray) -> str:
    return digest([float(threshold) for threshold in grid])
