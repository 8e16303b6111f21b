"""Rankings: how well a confidence sorts cheap answers, and what a router by it would cost."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from domain.confidences import FloatArray, auroc
from domain.losses import Goal
from domain.tallies import PairedRows


@dataclass(frozen=True, slots=True)
class Ranking:
    """What is reported of a confidence: AUROC of "the cheap answer is right" (None with one class only), area under
    the risk-coverage curve, and the cost of the best-empirical threshold as a share of always-strong."""

    auroc: float | None
    aurc: float
    cost: float
    n: int


def ranking_of(rows: PairedRows, goal: Goal) -> Ranking:
    """The figures of the rows' confidence; they describe these rows and promise nothing about others."""
    known = _known(rows.confidence)
    right = rows.cheap >= 1.0
    return Ranking(auroc(known, right), aurc(known, rows.cheap), empirical_cost(rows, goal), len(rows))


def aurc(confidence: FloatArray, quality: FloatArray) -> float:
    """Mean over all coverages of the mean of (1 - quality) over the rows covered, surest first; 0 without rows.

    Rows of equal confidence have no order: each stands for their mean. Those without a confidence come last.
    """
    if not len(confidence):
        return 0.0
    known = _known(confidence)
    values, group = np.unique(-known, return_inverse=True)
    sums = np.bincount(group, weights=1 - quality, minlength=len(values))
    risk = (sums / np.bincount(group, minlength=len(values)))[np.sort(group)]
    return float((np.cumsum(risk) / np.arange(1, len(risk) + 1)).mean())


def empirical_cost(rows: PairedRows, goal: Goal) -> float:
    """The lowest cost, as a share of always-strong, of a threshold whose mean loss on these rows keeps the goal.

    1 where no threshold does, or none costs less: then everything goes to the strong tier alone. Every confidence that
    occurs is a threshold; the choice looks at the very rows it is judged by, so that the figure is a hopeful one.
    """
    all_strong = float(rows.strong_usd.sum())
    if not len(rows) or all_strong <= 0:
        return 1.0
    known = _known(rows.confidence)
    order = np.argsort(-known, kind="stable")
    ordered = known[order]
    rho, bound = (goal.eps, 0.0) if goal.kind == "relative" else (0.0, goal.eps)
    lost = (np.cumsum((rows.strong - rows.cheap)[order]) - rho * rows.strong.sum()) / len(rows)
    cost = (rows.cheap_usd.sum() + all_strong - np.cumsum(rows.strong_usd[order])) / all_strong
    allowed = _ends(ordered) & np.isfinite(ordered) & (lost <= bound + 1e-12)
    return float(min(1.0, cost[allowed].min(initial=1.0)))


def _known(confidence: FloatArray) -> FloatArray:
    """The confidences, a missing one as -inf."""
    return np.where(np.isnan(confidence), -np.inf, confidence)


def _ends(ordered: FloatArray) -> npt.NDArray[np.bool_]:
    """Where a run of equal values ends: rows of equal confidence move together."""
    return np.append(ordered[1:] != ordered[:-1], True)
