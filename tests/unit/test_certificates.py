"""Certificates: the test at one threshold, the sequence of thresholds, and what is said when nothing is proven."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from domain.certificates import (
    BETTING,
    EXACT,
    PAIRED,
    Certificate,
    NotCertified,
    PairedRows,
    betting_p,
    binomial_p,
    grid_of,
    promise,
    tune,
)
from domain.confidences import FloatArray
from domain.workloads import Target

EXAMPLES = settings(max_examples=60, deadline=None, database=None, derandomize=True)
TARGET = Target(kind="absolute", eps=0.05, delta=0.10)
STRICT = Target(kind="absolute", eps=0.02, delta=0.10)
"""Up to 148 rows are tested by the binomial."""


def paired(
    confidence: object, cheap: object, strong: object, *, cheap_usd: float = 1.0, strong_usd: float = 10.0
) -> PairedRows:
    scores = np.asarray(confidence, dtype=np.float64)

    def column(value: object) -> FloatArray:
        return np.broadcast_to(np.asarray(value, dtype=np.float64), scores.shape).copy()

    return PairedRows(scores, column(cheap), column(strong), column(cheap_usd), column(strong_usd))


def verdict_of(rows: PairedRows, target: Target = TARGET) -> Certificate | NotCertified:
    return tune(rows, target, grid=grid_of(rows.confidence)).verdict


def needed(eps: float, delta: float) -> int:
    return math.ceil(math.log(1 / delta) / -math.log(1 - eps))


@EXAMPLES
@given(n=st.integers(1, 3000), share=st.floats(0, 1), eps=st.floats(0.001, 0.5))
def test_the_binomial_p_value_is_that_of_scipys_own_test(n: int, share: float, eps: float) -> None:
    worse = round(share * n)
    expected = stats.binomtest(worse, n, eps, alternative="less").pvalue
    assert binomial_p(np.array([float(worse)]), n, eps)[0] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_every_point_of_the_curve_counts_kept_losses_and_tests_them_on_all_rows() -> None:
    rng = np.random.default_rng(1)
    confidence, cheap = rng.random(140), (rng.random(140) < 0.8).astype(float)
    strong = (rng.random(140) < 0.9).astype(float)
    tuned = tune(paired(confidence, cheap, strong), STRICT, grid=grid_of(confidence, 40))
    assert len(tuned.curve) == 40
    for point in tuned.curve:
        kept = confidence >= point.threshold
        assert point.worse == int((kept & (strong > cheap)).sum())
        assert point.better == int((kept & (cheap > strong)).sum())
        assert point.gap == pytest.approx((point.worse - point.better) / 140)
        assert point.quality == pytest.approx(np.where(kept, cheap, strong).mean())
        assert point.cost == pytest.approx(1 + 10 * (1 - kept.mean()))
        assert point.p_value == pytest.approx(stats.binomtest(point.worse, 140, 0.02, alternative="less").pvalue)


def test_the_sequence_stops_at_its_first_failure_though_a_later_threshold_would_pass_alone() -> None:
    confidence = np.linspace(1, 0, 1000)
    strong = np.r_[np.ones(120), np.full(880, 0.25)]
    cheap = np.r_[np.zeros(120), np.full(880, 1.0)]
    order = np.random.default_rng(0).permutation(1000)
    tuned = tune(paired(confidence[order], cheap[order], strong[order]), TARGET, grid=grid_of(confidence))
    alone = [point.p_value <= TARGET.delta for point in tuned.curve]
    first = alone.index(False)
    assert any(alone[first:]), "no later threshold would pass: this data cannot show the stop"
    assert not any(point.passed for point in tuned.curve[first:])
    assert isinstance(tuned.verdict, NotCertified)


def test_the_certificate_is_the_last_pass_and_every_threshold_above_it_has_passed_too() -> None:
    rng = np.random.default_rng(5)
    confidence = rng.random(1500)
    strong = np.ones(1500)
    cheap = (rng.random(1500) < 0.5 + confidence / 2).astype(float)
    tuned = tune(paired(confidence, cheap, strong), TARGET, grid=grid_of(confidence))
    verdict = tuned.verdict
    assert isinstance(verdict, Certificate)
    passed = [point.threshold for point in tuned.curve if point.passed]
    assert passed == [point.threshold for point in tuned.curve][: len(passed)]
    assert verdict.threshold == passed[-1] == min(passed)
    assert len(passed) < len(tuned.curve), "everything passed: nothing was stopped"
    assert verdict.p_value <= TARGET.delta


def test_rows_of_equal_confidence_are_kept_or_escalated_together() -> None:
    confidence = np.r_[np.full(730, 0.5), np.linspace(0.6, 0.9, 270)]
    grid = grid_of(confidence)
    assert len(np.unique(grid)) == len(grid)
    assert set(grid) <= set(confidence)
    assert list(grid) == sorted(grid, reverse=True)
    curve = tune(paired(confidence, 1.0, 1.0), TARGET, grid=grid).curve
    assert {point.kept for point in curve if point.threshold <= 0.5} == {1.0}
    assert all(point.kept <= 0.27 for point in curve if point.threshold > 0.5)


def test_rows_without_confidence_escalate_at_every_threshold_and_still_count() -> None:
    confidence = np.r_[np.full(150, -np.inf), np.linspace(0.1, 0.9, 400)]
    cheap = np.r_[np.zeros(150), np.ones(400)]
    target = Target(eps=0.005, delta=0.1)
    verdict = tune(paired(confidence, cheap, 1.0), target, grid=grid_of(confidence)).verdict
    assert isinstance(verdict, Certificate)
    assert verdict.n == 550
    assert verdict.worse == 0
    assert verdict.threshold == pytest.approx(0.1)
    assert verdict.cost == pytest.approx(1 + 10 * 150 / 550)
    assert verdict.p_value == pytest.approx(0.995**550)
    assert all(np.isfinite(threshold) for threshold in verdict.grid)


def test_rows_that_all_lack_a_confidence_cannot_be_certified() -> None:
    tuned = tune(paired(np.full(500, -np.inf), 1.0, 1.0), TARGET, grid=grid_of(np.full(500, -np.inf)))
    assert isinstance(tuned.verdict, NotCertified)
    assert tuned.curve == []


@EXAMPLES
@given(eps=st.floats(0.005, 0.3), delta=st.floats(0.01, 0.3))
def test_the_smallest_number_of_faultless_rows_certifies_and_one_row_fewer_names_it(eps: float, delta: float) -> None:
    target, least = Target(eps=eps, delta=delta), needed(eps, delta)
    enough = verdict_of(paired(np.linspace(0, 1, least), 1.0, 1.0), target)
    assert isinstance(enough, Certificate)
    if least > 1:
        fewer = verdict_of(paired(np.linspace(0, 1, least - 1), 1.0, 1.0), target)
        assert isinstance(fewer, NotCertified)
        assert fewer.rows_needed == least


@pytest.mark.parametrize(
    ("eps", "delta", "rows"),
    [(0.005, 0.1, 460), (0.01, 0.1, 230), (0.02, 0.1, 114), (0.05, 0.1, 45), (0.005, 0.05, 598), (0.05, 0.05, 59)],
)
def test_the_rows_needed_are_those_of_the_published_table(eps: float, delta: float, rows: int) -> None:
    verdict = verdict_of(paired([0.5], 1.0, 1.0), Target(eps=eps, delta=delta))
    assert isinstance(verdict, NotCertified)
    assert verdict.rows_needed == rows


@pytest.mark.parametrize(("cheap", "strong"), [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_one_row_certifies_nothing_and_says_how_many_would(cheap: float, strong: float) -> None:
    verdict = verdict_of(paired([0.9], cheap, strong))
    assert isinstance(verdict, NotCertified)
    assert verdict.n == 1
    assert verdict.rows_needed == 45


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_no_row_at_all_certifies_nothing_and_says_how_many_would(kind: str) -> None:
    rows = paired([], 1.0, 1.0)
    tuned = tune(rows, Target.model_validate({"kind": kind, "eps": 0.05, "delta": 0.1}), grid=np.array([0.5, 0.1]))
    assert isinstance(tuned.verdict, NotCertified)
    assert (tuned.verdict.n, tuned.verdict.rows_needed, tuned.curve) == (0, 45, [])
    assert (tuned.cheap.quality, tuned.strong.cost) == (0.0, 0.0)


def test_a_faultless_cheap_tier_answers_every_row() -> None:
    verdict = verdict_of(paired(np.linspace(0, 1, 500), 1.0, 1.0))
    assert isinstance(verdict, Certificate)
    assert (verdict.threshold, verdict.cost, verdict.gap, verdict.test) == (0.0, 1.0, 0.0, PAIRED)


def test_a_useless_cheap_tier_answers_none_and_more_rows_are_not_asked_for() -> None:
    verdict = verdict_of(paired(np.full(500, 0.7), 0.0, 1.0))
    assert isinstance(verdict, NotCertified)
    assert verdict.rows_needed is None


def test_a_constant_confidence_is_one_threshold_for_all_rows_or_none() -> None:
    good = tune(paired(np.full(500, 0.7), 1.0, 1.0), TARGET, grid=grid_of(np.full(500, 0.7)))
    assert [point.kept for point in good.curve] == [1.0]
    assert isinstance(good.verdict, Certificate)
    mixed = paired(np.full(500, 0.7), np.arange(500) % 2, 1.0)
    assert isinstance(verdict_of(mixed), NotCertified)


def test_the_loss_is_strong_minus_cheap_and_not_the_other_way_round() -> None:
    confidence, ones, zeros = np.linspace(0, 1, 600), np.ones(600), np.zeros(600)
    gain = tune(paired(confidence, ones, zeros), TARGET, grid=grid_of(confidence))
    loss = tune(paired(confidence, zeros, ones), TARGET, grid=grid_of(confidence))
    assert isinstance(gain.verdict, Certificate)
    assert (gain.verdict.gap, gain.verdict.worse, gain.verdict.better) == (-1.0, 0, 600)
    assert isinstance(loss.verdict, NotCertified)
    assert (loss.curve[-1].gap, loss.curve[-1].worse, loss.curve[-1].better) == (1.0, 600, 0)


def test_rows_made_better_pay_for_rows_made_worse_once_there_are_enough_rows_for_the_paired_test() -> None:
    def rows(n: int) -> PairedRows:
        worse, better = round(0.06 * n), round(0.20 * n)
        same = np.ones(n - worse - better)
        cheap, strong = np.r_[np.zeros(worse), np.ones(better), same], np.r_[np.ones(worse), np.zeros(better), same]
        return paired(np.full(n, 0.5), cheap, strong)

    few, many = verdict_of(rows(50)), verdict_of(rows(1000))
    assert isinstance(few, NotCertified)
    assert (few.test, few.rows_needed) == (EXACT, 59), "from there on both kinds of rows count"
    assert isinstance(many, Certificate)
    assert (many.test, many.worse, many.better) == (PAIRED, 60, 200)


@EXAMPLES
@given(n=st.integers(45, 1500), rate=st.floats(0, 0.049), graded=st.booleans())
def test_the_rows_needed_are_more_than_the_rows_that_just_failed(n: int, rate: float, graded: bool) -> None:
    worse = math.ceil(rate * n)
    cheap, strong = np.r_[np.zeros(worse), np.ones(n - worse)], np.ones(n)
    cheap[-1] = 0.999 if graded else 1.0
    verdict = verdict_of(paired(np.full(n, 0.5), cheap, strong))
    if isinstance(verdict, NotCertified) and verdict.rows_needed is not None:
        assert verdict.rows_needed > n


def test_the_same_row_twice_counts_twice() -> None:
    confidence, cheap = np.linspace(0, 1, 400), np.ones(400)
    cheap[-1] = 0.0
    once = tune(paired(confidence, cheap, 1.0), STRICT, grid=grid_of(confidence)).curve[-1]
    rows = paired(np.r_[confidence, 1.0], np.r_[cheap, 0.0], 1.0)
    twice = tune(rows, STRICT, grid=grid_of(rows.confidence)).curve[-1]
    assert (once.worse, twice.worse) == (1, 2)
    assert twice.p_value > once.p_value


def test_a_certified_threshold_that_saves_nothing_is_refused_with_that_reason() -> None:
    verdict = verdict_of(paired(np.linspace(0, 1, 500), 1.0, 1.0, cheap_usd=10, strong_usd=10))
    assert isinstance(verdict, NotCertified)
    assert "costs no less than the strong tier alone" in verdict.reason


def test_graded_and_relative_targets_are_tested_by_betting_and_binary_ones_exactly() -> None:
    confidence = np.linspace(0, 1, 800)
    graded = verdict_of(paired(confidence, 0.75, 0.75))
    relative = verdict_of(paired(confidence, 1.0, 1.0), Target(kind="relative", eps=0.05, delta=0.1))
    assert isinstance(graded, Certificate)
    assert isinstance(relative, Certificate)
    assert (graded.test, relative.test, relative.kind) == (BETTING, BETTING, "relative")


def test_a_relative_target_allows_a_share_of_the_strong_tiers_quality_and_no_more() -> None:
    confidence = np.random.default_rng(2).permutation(np.linspace(0, 1, 3000))
    target = Target(kind="relative", eps=0.10, delta=0.1)
    holds = verdict_of(paired(confidence, 0.39, 0.40), target)
    breaks = verdict_of(paired(confidence, 0.33, 0.40), target)
    assert isinstance(holds, Certificate)
    assert holds.threshold == 0.0, "a loss of 0.01 of 0.40 is less than a tenth"
    assert isinstance(breaks, Certificate)
    assert 0 < breaks.gap < 0.04, "of a loss of 0.07 a row, so many rows are escalated that a tenth of 0.40 is left"


def betting_row_by_row(x: FloatArray, *, m: float, delta: float) -> float:
    """The test a row at a time: each bet is placed before its row is seen, for what is still to be won by the last."""
    wealth, highest, seen, spread, variance = 1.0, 1.0, 0.5, 0.25, 0.25
    for count, value in enumerate(x, start=1):
        missing = max(math.log(1 / delta) - math.log(wealth), 0.0)
        bet = min(math.sqrt(2 * missing / ((len(x) - count + 1) * variance)), 0.9 / (1 - m))
        wealth *= 1 + bet * (m - value)
        highest = max(highest, wealth)
        seen += value
        spread += (value - seen / (count + 1)) ** 2
        variance = spread / (count + 1)
    return 1 / highest


@EXAMPLES
@given(seed=st.integers(0, 1000), n=st.integers(1, 200), eps=st.floats(0.01, 0.5), relative=st.booleans())
def test_betting_aims_at_what_is_still_missing_and_no_bet_knows_its_own_row(
    seed: int, n: int, eps: float, *, relative: bool
) -> None:
    loss = np.random.default_rng(seed).choice([-1.0, -0.25, 0.0, 0.0, 0.0, 0.5], size=n)
    if relative:
        found = betting_p(loss, low=-1, high=1 - eps, bound=0.0, delta=0.1)
        expected = betting_row_by_row((loss + 1) / (2 - eps), m=1 / (2 - eps), delta=0.1)
    else:
        found = betting_p(loss, low=-1, high=1, bound=eps, delta=0.1)
        expected = betting_row_by_row((loss + 1) / 2, m=(1 + eps) / 2, delta=0.1)
    assert found == pytest.approx(expected)


def test_betting_gives_a_p_value_of_one_when_every_row_is_a_loss_and_a_small_one_when_none_is() -> None:
    assert betting_p(np.ones(500), low=-1, high=1, bound=0.05, delta=0.1) == 1.0
    assert betting_p(np.zeros(500), low=-1, high=1, bound=0.05, delta=0.1) < 0.1
    assert 0.01 < betting_p(-np.ones(500), low=-1, high=1, bound=0.05, delta=0.1) < 0.1, "it went on after it had won"
    assert betting_p(np.zeros(500), low=-1, high=1, bound=0.05, delta=1e-6) < 1e-6


def test_the_promise_names_its_rows_its_bound_and_its_doubt() -> None:
    absolute = promise(Target(eps=0.02, delta=0.05), n=1234)
    relative = promise(Target(kind="relative", eps=0.1, delta=0.05), n=1234)
    assert "1234 calibration rows" in absolute
    assert "probability at least 0.95" in absolute
    assert "that of the strong model minus 0.02" in absolute
    assert "at least 0.9 times that of the strong model" in relative
    verdict = verdict_of(paired(np.linspace(0, 1, 500), 1.0, 1.0))
    assert isinstance(verdict, Certificate)
    assert verdict.promise == promise(TARGET, n=500)
