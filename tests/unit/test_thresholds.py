"""Thresholds and signals: the grid, where the sequence stops, how delta is shared, and which signal is chosen."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from domain.certificates import Bound, Certificate, NotCertified, PairedRows, cheapest, promise, tune, tune_signals
from domain.confidences import FloatArray, auroc
from domain.intervals import auroc_interval, gap_interval, mean_interval
from domain.losses import BERNSTEIN, BETTING_ROWS, EXACT
from domain.shortfalls import least_rows
from domain.thresholds import HIGHEST, fixed_sequence, grid_of, signal_level, tuning_share

EXAMPLES = settings(max_examples=100, deadline=None, database=None, derandomize=True)
BOUND = Bound("absolute", 0.05, 0.10)


def rows_of(confidence: FloatArray, cheap: FloatArray, strong: FloatArray | None = None) -> PairedRows:
    n = len(confidence)
    return PairedRows(confidence, cheap, np.ones(n) if strong is None else strong, np.ones(n), np.full(n, 10.0))


@EXAMPLES
@given(st.lists(st.sampled_from([0.001, 0.05, 0.1, 0.1000001, 0.5, math.nan]), max_size=12))
def test_the_sequence_passes_all_before_the_first_failure_and_none_from_it_on(p: list[float]) -> None:
    passed = fixed_sequence(np.array(p), 0.1)
    failures = [i for i, value in enumerate(p) if not value <= 0.1]
    first = failures[0] if failures else len(p)
    assert list(passed) == [i < first for i in range(len(p))]


def test_a_p_value_of_exactly_the_level_passes() -> None:
    assert list(fixed_sequence(np.array([0.1, 0.1, 0.11]), 0.1)) == [True, True, False]


def test_thresholds_are_confidences_that_occur_and_rows_that_are_certain_have_one_that_json_can_write() -> None:
    confidence = np.r_[np.nan, -np.inf, np.inf, np.inf, 0.3, 0.3, -2.0]
    grid = grid_of(confidence)
    assert list(grid) == [HIGHEST, 0.3, -2.0]
    assert [int((confidence >= t).sum()) for t in grid] == [2, 4, 5]
    json.dumps(list(grid), allow_nan=False)
    assert not len(grid_of(np.array([np.nan, -np.inf])))


def test_the_grid_spans_all_confidences_in_equal_shares_of_the_rows() -> None:
    grid = grid_of(np.random.default_rng(0).permutation(np.arange(10_000.0)), 101)
    assert (grid[0], grid[-1], len(grid)) == (9999.0, 0.0, 101)
    assert np.abs(np.diff(grid) + 100).max() <= 1


def test_delta_is_shared_by_the_signals_and_halved_with_every_tuning_on_the_same_rows() -> None:
    assert signal_level(0.1, 4) == pytest.approx(0.025)
    assert [tuning_share(0.5, k) for k in (1, 2, 3)] == pytest.approx([1 / 2, 1 / 4, 1 / 8])
    assert [tuning_share(0.9, k) for k in (1, 2, 3)] == pytest.approx([0.9, 0.09, 0.009])
    assert [tuning_share(1.0, k) for k in (1, 2, 3)] == [1.0, 0.0, 0.0]
    for spend in (0.1, 0.5, 0.9, 1.0):
        assert sum(tuning_share(spend, k) for k in range(1, 200)) <= 1 + 1e-12
    with pytest.raises(ValueError, match="counted from 1"):
        tuning_share(0.5, 0)


def test_each_signal_is_tested_at_its_share_and_the_cheapest_certified_cascade_is_chosen() -> None:
    n = 300
    cheap = np.r_[np.ones(200), np.zeros(100)]
    good, worse = np.linspace(1, 0, n), np.r_[np.linspace(1, 0.5, 100), np.full(200, 0.1)]
    useless = np.r_[np.zeros(200), np.ones(100)]
    signals = {"useless": useless, "worse": worse, "good": good, "empty": np.full(n, -np.inf)}
    tuned = tune_signals(signals, rows_of(good, cheap), Bound("absolute", 0.03, 0.1))
    assert cheapest(tuned) == "good"
    found = tuned["good"].verdict
    assert isinstance(found, Certificate)
    assert (found.signal, found.declared, found.level, found.delta) == ("good", 4, 0.025, 0.1)
    assert found.p_value <= 0.025
    assert isinstance(tuned["worse"].verdict, Certificate)
    assert found.cost < tuned["worse"].verdict.cost
    assert isinstance(tuned["useless"].verdict, NotCertified)
    alone = tune(rows_of(good, cheap), Bound("absolute", 0.03, 0.1), grid=grid_of(good)).verdict
    assert isinstance(alone, Certificate)
    assert alone.threshold < found.threshold, "one signal alone has the whole of delta"
    next_one = next(point for point in tuned["good"].curve if not point.passed)
    assert 0.025 < next_one.p_value <= 0.1


def test_without_a_certified_signal_the_one_that_needs_the_fewest_rows_is_named() -> None:
    confidence = np.linspace(0, 1, 100)
    signals = {"never": np.full(100, np.nan), "far": np.full(100, 0.5), "near": confidence}
    tuned = tune_signals(signals, rows_of(confidence, (confidence > 0.9) * 1.0), Bound("absolute", 0.005, 0.1))
    assert cheapest(tuned) == "near"
    verdict = tuned["near"].verdict
    assert isinstance(verdict, NotCertified)
    assert verdict.cost == 10.0
    assert verdict.rows_needed is not None
    assert verdict.rows_needed > 100
    never = tuned["never"].verdict
    assert isinstance(never, NotCertified)
    assert (never.reason, never.p_value, never.rows_needed) == ("no row has a confidence", None, None)


def test_agreement_counts_kept_rows_that_differ_and_its_promise_says_that_it_is_not_correctness() -> None:
    same = np.r_[np.ones(980), np.zeros(20)]
    confidence = np.r_[np.linspace(1, 0.2, 980), np.full(20, 0.1)]
    goal = Bound("agreement", 0.015, 0.1)
    verdict = tune(rows_of(confidence, same), goal, grid=grid_of(confidence)).verdict
    assert isinstance(verdict, Certificate)
    assert (verdict.test, verdict.worse, verdict.kind) == (EXACT, 0, "agreement")
    assert 0.1 < verdict.threshold < 0.25
    assert "is at most 0.015" in verdict.promise
    assert "not about correctness" in verdict.promise
    assert "not about correctness" not in promise(BOUND, n=10)


def test_graded_quality_of_many_rows_is_certified_from_moments() -> None:
    n = BETTING_ROWS + 10
    rng = np.random.default_rng(0)
    confidence, strong = rng.random(n), rng.uniform(0.8, 1, n)
    cheap = strong - np.where(confidence > 0.5, 0.0, 0.2)
    verdict = tune(rows_of(confidence, cheap, strong), BOUND, grid=grid_of(confidence)).verdict
    assert isinstance(verdict, Certificate)
    assert verdict.test == BERNSTEIN
    assert 0.25 < verdict.threshold < 0.3, "0.25 is where the loss is 0.05 in truth"


def test_betting_needs_more_faultless_rows_than_the_binomial_test_and_says_exactly_how_many() -> None:
    def certified(n: int) -> bool:
        graded = np.full(n, 0.5)
        return tune(rows_of(graded, graded, graded), BOUND, grid=np.array([0.5])).verdict.certified

    verdict = tune(rows_of(np.full(9, 0.5), np.full(9, 0.5), np.full(9, 0.5)), BOUND, grid=np.array([0.5])).verdict
    assert isinstance(verdict, NotCertified)
    needed = verdict.rows_needed
    assert needed is not None
    assert needed > least_rows(BOUND, 0.1)
    assert certified(needed)
    assert not certified(needed - 1)


@pytest.mark.parametrize(("worse", "better", "n"), [(0, 0, 100), (4, 0, 300), (9, 0, 700), (26, 3, 1500), (5, 0, 100)])
def test_the_same_rates_on_half_as_many_rows_again_as_are_needed_are_certified(worse: int, better: int, n: int) -> None:
    goal = Bound("absolute", 0.02, 0.1)

    def verdict(times: float) -> Certificate | NotCertified:
        a, b, rows = round(worse * times), round(better * times), round(n * times)
        same = np.ones(rows - a - b)
        cheap, strong = np.r_[np.zeros(a), np.ones(b), same], np.r_[np.ones(a), np.zeros(b), same]
        return tune(rows_of(np.full(rows, 0.5), cheap, strong), goal, grid=np.array([0.5])).verdict

    failed = verdict(1)
    assert isinstance(failed, NotCertified)
    assert failed.rows_needed is not None
    assert n < failed.rows_needed < 20 * n
    if worse / n < goal.eps:
        assert verdict(1.5 * failed.rows_needed / n).certified


def test_a_certificate_carries_what_is_needed_to_check_it() -> None:
    rng = np.random.default_rng(3)
    confidence = rng.random(2000)
    cheap = (rng.random(2000) < 0.6 + 0.4 * confidence) * 1.0
    rows = rows_of(confidence, cheap, (rng.random(2000) < 0.9) * 1.0)
    found = tune(rows, BOUND, grid=grid_of(confidence), signal="margin").verdict
    assert isinstance(found, Certificate)
    assert found.gap == pytest.approx((found.worse - found.better) / 2000)
    assert found.gap_interval is not None
    assert found.gap_interval[0] < found.gap < found.gap_interval[1]
    assert found.cost_interval is not None
    assert found.cost_interval[0] < found.cost < found.cost_interval[1]
    same = tune(rows, BOUND, grid=grid_of(confidence)).verdict
    other = tune(rows, BOUND, grid=grid_of(confidence, 50)).verdict
    assert same.grid_hash == found.grid_hash != other.grid_hash


def test_a_certificate_of_before_is_still_read() -> None:
    before = {
        "certified": True, "kind": "absolute", "threshold": 0.5, "eps": 0.05, "delta": 0.1, "n": 300,
        "test": EXACT, "p_value": 0.01, "gap": 0.0, "worse": 0, "better": 0, "cost": 1.0, "cost_all_strong": 10.0,
        "grid": [0.9, 0.5], "promise": "words",
    }  # fmt: skip
    found = Certificate.model_validate(before)
    assert (found.threshold, found.declared, found.gap_interval) == (0.5, 1, None)
    assert found.model_dump(mode="json") == before, "what it lacks is not written: its bundle's hash stays"
    assert "grid" not in found.model_dump(mode="json", exclude={"grid"})
    fresh = tune(rows_of(np.ones(9), np.ones(9)), BOUND, grid=np.array([0.5])).verdict
    assert {"certified", "signal", "declared", "level", "grid_hash", "cost_interval"} <= fresh.model_dump().keys()
    assert NotCertified.model_validate(fresh.model_dump(mode="json")) == fresh


@EXAMPLES
@given(st.lists(st.floats(0, 100), min_size=2, max_size=30))
def test_the_interval_of_a_cost_is_students(values: list[float]) -> None:
    v = np.array(values)
    found = mean_interval(float(v.sum()), float((v * v).sum()), len(v))
    half = float(stats.t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / math.sqrt(len(v)))
    assert found == pytest.approx((max(0.0, v.mean() - half), v.mean() + half), abs=1e-3)


@pytest.mark.parametrize(("worse", "better"), [(0.03, 0.02), (0.01, 0.0), (0.15, 0.12)])
def test_the_interval_of_a_gap_holds_the_truth_in_about_95_of_100_draws(worse: float, better: float) -> None:
    rng = np.random.default_rng(1)
    drawn = rng.multinomial(400, [worse, better, 1 - worse - better], size=2000)
    intervals = [gap_interval(float(a - b), float(a + b), 400) for a, b, _ in drawn]
    held = float(np.mean([low <= worse - better <= high for low, high in intervals]))
    assert 0.935 <= held <= 1.0
    assert all(low <= (a - b) / 400 <= high for (low, high), (a, b, _) in zip(intervals, drawn, strict=True))
    assert np.mean([high - low for low, high in intervals]) < 8 * math.sqrt((worse + better) / 400)


def test_nothing_that_differs_still_leaves_a_width() -> None:
    low, high = gap_interval(0.0, 0.0, 100)
    assert low < -0.01 < 0.01 < high
    assert gap_interval(0.0, 0.0, 0) == (-1.0, 1.0)
    assert mean_interval(1.0, 1.0, 1) is None


@pytest.mark.parametrize(("right", "wrong", "apart"), [(20, 20, 0.0), (60, 10, 0.5), (200, 100, 1.5)])
def test_an_interval_of_an_auroc_holds_the_true_one_as_often_as_it_says(right: int, wrong: int, apart: float) -> None:
    generator, true = np.random.default_rng(1), float(stats.norm.cdf(apart / math.sqrt(2)))
    is_right = np.arange(right + wrong) < right
    held = 0
    for _ in range(500):
        seen = auroc(generator.normal(0, 1, right + wrong) + apart * is_right, is_right)
        assert seen is not None
        low, high = auroc_interval(seen, right, wrong)
        assert 0 <= low <= seen <= high <= 1
        held += low <= true <= high
    assert 0.92 <= held / 500 <= 0.99


def test_an_auroc_of_few_rows_is_never_certain() -> None:
    low, high = auroc_interval(1.0, 10, 5)
    assert (0.6 < low < 0.8, high) == (True, 1.0)
    assert auroc_interval(0.0, 5, 10) == pytest.approx((0.0, 1 - low))
    assert auroc_interval(1.0, 1000, 500)[0] > low
