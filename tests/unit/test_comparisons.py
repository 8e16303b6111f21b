"""Paired differences: what an interval over the same rows says, and that it says it of the same rows."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from domain.comparisons import BOOTSTRAP, NONE, RESAMPLES, SCORE, STUDENT, paired_difference, score_interval
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


def test_the_same_change_everywhere_has_no_width() -> None:
    found = paired_difference(np.array([0.25, 0.5]), np.array([0.5, 0.75]))
    assert (found.low, found.mean, found.high, found.p_value) == (0.25, 0.25, 0.25, 0)


def test_without_rows_nothing_is_known() -> None:
    found = paired_difference(np.array([]), np.array([]))
    assert (found.low, found.high, found.n, found.p_value, found.method) == (-1, 1, 0, 1, NONE)
