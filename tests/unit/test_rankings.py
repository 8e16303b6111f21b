"""Rankings: AUROC, the area under the risk-coverage curve and the best-empirical cost, against sums by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.certificates import Bound
from domain.rankings import aurc, empirical_cost, ranking_of
from domain.tallies import PairedRows

EXAMPLES = settings(max_examples=100, deadline=None, database=None, derandomize=True)
CONFIDENCES = st.sampled_from([0.1, 0.3, 0.3, 0.7, 0.9, math.nan, -math.inf])


def drawn(seed: int, confidence: list[float]) -> PairedRows:
    rng, n = np.random.default_rng(seed), len(confidence)
    quality = np.round(rng.random((2, n)), 1)
    return PairedRows(np.array(confidence), quality[0], quality[1], rng.random(n), 10 * rng.random(n) + 0.1)


@EXAMPLES
@given(seed=st.integers(0, 999), confidence=st.lists(CONFIDENCES, min_size=1, max_size=12))
def test_the_area_under_risk_and_coverage_is_the_mean_over_every_order_of_tied_rows(
    seed: int, confidence: list[float]
) -> None:
    rows, rng = drawn(seed, confidence), np.random.default_rng(seed)
    known = np.where(np.isnan(rows.confidence), -np.inf, rows.confidence)
    areas: list[float] = []
    for _ in range(400):
        order = np.lexsort((rng.random(len(known)), -known))
        risks = np.cumsum(1 - rows.cheap[order]) / np.arange(1, len(known) + 1)
        areas.append(float(risks.mean()))
    slack = 6 * float(np.std(areas)) / 20 + 1e-9
    assert aurc(rows.confidence, rows.cheap) == pytest.approx(float(np.mean(areas)), abs=slack)


def test_a_perfect_order_has_less_area_than_a_wrong_one_and_no_rows_have_none() -> None:
    quality = np.array([1.0, 1.0, 1.0, 0.0])
    assert aurc(np.array([0.9, 0.8, 0.7, 0.1]), quality) == pytest.approx(0.25 / 4)
    assert aurc(np.array([0.1, 0.2, 0.3, 0.9]), quality) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert aurc(np.full(4, 0.5), quality) == pytest.approx(0.25)
    assert aurc(np.array([]), np.array([])) == 0.0


@EXAMPLES
@given(
    seed=st.integers(0, 999),
    confidence=st.lists(CONFIDENCES, min_size=1, max_size=12),
    kind=st.sampled_from(["absolute", "relative"]),
)
def test_the_empirical_cost_is_the_lowest_of_all_thresholds_that_keep_the_goal(
    seed: int, confidence: list[float], kind: str
) -> None:
    rows, goal = drawn(seed, confidence), Bound(kind, 0.1, 0.1)  # type: ignore[arg-type]
    costs = [1.0]
    for threshold in {value for value in confidence if math.isfinite(value)}:
        kept = rows.confidence >= threshold
        cascade = np.where(kept, rows.cheap, rows.strong).mean()
        floor = rows.strong.mean() - 0.1 if kind == "absolute" else 0.9 * rows.strong.mean()
        if cascade >= floor - 1e-12:
            costs.append(float((rows.cheap_usd + ~kept * rows.strong_usd).sum() / rows.strong_usd.sum()))
    assert empirical_cost(rows, goal) == pytest.approx(min(costs))


def test_a_ranking_says_all_of_it_and_nothing_is_nan() -> None:
    rows = PairedRows(np.array([0.9, 0.5, np.nan]), np.array([1.0, 0.0, 1.0]), np.ones(3), np.zeros(3), np.ones(3))
    found = ranking_of(rows, Bound("absolute", 0.01, 0.1))
    assert (found.auroc, found.cost, found.n) == (0.5, pytest.approx(2 / 3), 3)
    alike = ranking_of(PairedRows(rows.confidence, *(np.ones(3) for _ in range(4))), Bound("absolute", 0.01, 0.1))
    assert alike.auroc is None
    free = PairedRows(rows.confidence, rows.cheap, rows.strong, rows.cheap_usd, np.zeros(3))
    assert empirical_cost(free, Bound("absolute", 0.5, 0.1)) == 1.0
