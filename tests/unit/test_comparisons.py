"""Paired differences: what an interval over the same rows says, and that it says it of the same rows."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from domain.comparisons import (
    BOOTSTRAP,
    NONE,
    ONE,
    RESAMPLES,
    SCORE,
    STUDENT,
    UNSEEN,
    Difference,
    paired_difference,
    score_interval,
)
from domain.regressions import judge_regression
from domain.scores import estimate

Floats = NDArray[np.float64]
Z = float(stats.norm.ppf(0.975))


def rows(up: int, down: int, ones: int, zeros: int) -> tuple[Floats, Floats]:
    before = np.repeat([0.0, 1.0, 1.0, 0.0], [up, down, ones, zeros])
    after = np.repeat([1.0, 0.0, 1.0, 0.0], [up, down, ones, zeros])
    return before, after


def deviations(up: int, down: int, n: int, gap: float) -> float:
    """The same score by numerical search for the most likely trinomial with this gap."""

    def unlikely(less: float) -> float:
        shares = (less + gap, less, 1 - 2 * less - gap)
        return -sum(k * math.log(max(p, 1e-300)) for k, p in zip((up, down, n - up - down), shares, strict=True) if k)

    low, high = max(0.0, -gap), (1 - gap) / 2
    less = float(optimize.minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x)
    return (up - down - n * gap) / math.sqrt(n * (2 * less + gap - gap**2))


@pytest.mark.parametrize(("up", "down", "n"), [(12, 2, 44), (2, 12, 44), (9, 5, 32), (1, 1, 60), (30, 10, 244)])
def test_the_ends_of_the_score_interval_are_just_not_refuted(up: int, down: int, n: int) -> None:
    low, high = score_interval(up, down, n)
    assert deviations(up, down, n, low) == pytest.approx(Z, abs=1e-3)
    assert deviations(up, down, n, high) == pytest.approx(-Z, abs=1e-3)


@pytest.mark.parametrize("up", range(3, 20))
def test_the_score_interval_leaves_out_zero_exactly_when_mcnemars_test_refutes_it(up: int) -> None:
    low, _ = score_interval(up, 3, 100)
    assert (low > 0) == ((up - 3) ** 2 / (up + 3) > Z**2)


@pytest.mark.parametrize(("more", "less"), [(0.05, 0.02), (0.2, 0.1)])
def test_the_score_interval_covers_the_truth_as_often_as_it_says(more: float, less: float) -> None:
    drawn = np.random.default_rng(4).multinomial(60, [more, less, 1 - more - less], size=1000)
    inside = [low <= more - less <= high for low, high in (score_interval(int(u), int(d), 60) for u, d, _ in drawn)]
    assert 0.93 < np.mean(inside) < 0.99


@pytest.mark.parametrize("n", [1, 5, 44])
def test_no_changed_row_of_few_proves_little(n: int) -> None:
    same = np.ones(n)
    found = paired_difference(same, same)
    assert (found.mean, found.up, found.down, found.p_value, found.method) == (0, 0, 0, 1, SCORE)
    assert found.high == pytest.approx(-found.low)
    assert found.high > 3 / (n + 10)


def test_all_rows_changed_is_the_end_of_the_interval() -> None:
    assert score_interval(20, 0, 20)[1] == 1
    assert score_interval(0, 20, 20)[0] == -1


def test_rows_are_compared_one_by_one_and_not_as_two_crowds() -> None:
    before, after = rows(up=10, down=0, ones=50, zeros=40)
    apart = estimate(before), estimate(after)
    assert apart[0].high > apart[1].low, "as two crowds they overlap"
    found = paired_difference(before, after)
    assert found.low > 0
    shuffled = paired_difference(before, np.random.default_rng(1).permutation(after))
    assert shuffled.mean == pytest.approx(found.mean)
    assert shuffled.low < 0


def test_the_p_value_of_zeros_and_ones_is_the_exact_one() -> None:
    found = paired_difference(*rows(up=9, down=1, ones=3, zeros=3))
    assert found.p_value == pytest.approx(2 * (1 + 10) / 2**10)
    assert (found.up, found.down, found.n) == (9, 1, 16)


def graded(n: int, shift: float, seed: int) -> tuple[Floats, Floats]:
    drawn = np.random.default_rng(seed)
    before = drawn.random(n)
    return before, np.clip(before + shift + drawn.normal(0, 0.2, n), 0, 1)


def test_graded_values_are_resampled_with_a_fixed_seed() -> None:
    before, after = graded(200, 0.05, seed=1)
    found = paired_difference(before, after)
    assert found == paired_difference(before, after)
    assert found.method == BOOTSTRAP
    again = paired_difference(before, after, seed=1)
    assert (again.low, again.high) != (found.low, found.high)
    gaps = after - before
    half = Z * gaps.std(ddof=1) / math.sqrt(200)
    assert found.low == pytest.approx(gaps.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(gaps.mean() + half, abs=0.1 * half)


def test_the_bootstraps_p_value_is_small_for_a_clear_change_and_never_zero() -> None:
    clear = paired_difference(*graded(300, 0.2, seed=2))
    assert clear.p_value == pytest.approx(2 / (RESAMPLES + 1))
    assert paired_difference(*graded(300, 0.0, seed=2)).p_value > 0.05


def test_with_many_different_values_the_interval_is_students() -> None:
    before, after = graded(5_000, 0.02, seed=3)
    found = paired_difference(before, after)
    expected = stats.ttest_rel(after, before)
    interval = expected.confidence_interval()
    assert found.method == STUDENT
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)


def constant(n: int, gap: float) -> Difference:
    return paired_difference(np.full(n, 0.25), np.full(n, 0.25 + gap))


def test_the_same_change_in_few_rows_proves_nothing_and_in_many_more_and_more() -> None:
    found = [constant(n, 0.2) for n in (1, 2, 5, 20, 60, 500)]
    widths = [one.high - one.low for one in found]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] > 0
    assert [one.low > 0 for one in found] == [False, False, False, False, True, True]
    assert [one.p_value < 0.05 for one in found] == [one.low > 0 for one in found]
    assert all(-1 <= one.low < one.mean < one.high <= 1 and one.method == UNSEEN for one in found)


@pytest.mark.parametrize("n", [2, 30, 400])
def test_the_ends_for_one_gap_are_where_unseen_rows_would_just_have_been_seen(n: int) -> None:
    found = constant(n, 0.2)
    below, above = (0.2 - found.low) / 1.2, (found.high - 0.2) / 0.8
    assert (1 - below) ** n == pytest.approx(0.025)
    assert (1 - above) ** n == pytest.approx(0.025)


@pytest.mark.parametrize("n", [2, 20, 100, 300])
def test_graded_rows_that_stayed_as_they_are_prove_about_as_much_as_zeros_and_ones(n: int) -> None:
    graded_half, half = constant(n, 0.0).high, score_interval(0, 0, n)[1]
    assert half * 0.9 < graded_half < half * 1.3
    assert not judge_regression(constant(n, 0.0), max_drop=0.01, prove=True).passed
    assert judge_regression(constant(400, 0.0), max_drop=0.01, prove=True).passed


@pytest.mark.parametrize("n", [5, 20, 60, 200])
def test_rare_large_losses_are_covered_as_often_as_the_interval_says(n: int) -> None:
    """Most samples of few rows show none of them: a bootstrap of these knows no loss."""
    drawn = np.random.default_rng(5)
    lost = (drawn.random(n) < 0.03 for _ in range(400))
    found = [paired_difference(np.full(n, 0.9), np.where(gone, 0.0, 0.9)) for gone in lost]
    assert np.mean([one.low <= -0.9 * 0.03 <= one.high for one in found]) >= 0.94


def test_costs_may_be_one_price_but_one_row_is_no_proof() -> None:
    def costs(n: int, before: float = 3.0, after: float = 2.0) -> Difference:
        return paired_difference(np.full(n, before), np.full(n, after), bounded=False)

    one = costs(1)
    assert (one.low, one.mean, one.high, one.p_value, one.method) == (-2, -1, 0, 1, ONE)
    assert (costs(2).p_value, costs(2).method) == (0.5, BOOTSTRAP)
    many = costs(100)
    assert (many.low, many.mean, many.high) == (-1, -1, -1)
    assert 0 < many.p_value < 1e-20
    free = costs(50, 0.0, 0.0)
    assert (free.low, free.high, free.p_value, free.method) == (0, 0, 1, BOOTSTRAP), "no shares of rows, but prices"
    two = paired_difference(np.array([1.0, 1.0]), np.array([2.0, 3.5]), bounded=False)
    assert two.p_value == 0.5


def test_without_rows_nothing_is_known() -> None:
    found = paired_difference(np.array([]), np.array([]))
    assert (found.low, found.high, found.n, found.p_value, found.method) == (-1, 1, 0, 1, NONE)
