"""Losses: the tests at one threshold against independent sums, their exact size, and which of them is taken."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from domain.certificates import Bound
from domain.confidences import FloatArray
from domain.losses import (
    BERNSTEIN,
    BETA,
    BETTING,
    BETTING_ROWS,
    EXACT,
    PAIRED,
    bernstein_p,
    betting_p,
    binomial_p,
    choose_test,
    p_values,
    paired_p,
)
from domain.shortfalls import least_rows
from domain.tallies import BLOCK, PairedRows, is_binary, saves, tally

EXAMPLES = settings(max_examples=40, deadline=None, database=None, derandomize=True)


def paired_one(worse: int, better: int, n: int, eps: float, level: float | None = None) -> float:
    return float(paired_p(np.array([float(worse)]), np.array([float(better)]), n, eps, level=level)[0])


def distance(worse: FloatArray, better: FloatArray, n: int, eps: float) -> FloatArray:
    """How far an outcome lies from a mean loss of eps, in its own standard deviations."""
    share = np.maximum((worse + better + 3) / (n + 3), eps)
    return (worse - better - n * eps) / np.sqrt(n * (share - eps**2))


def outcomes(n: int) -> tuple[FloatArray, FloatArray]:
    """Every outcome of n rows: (worse, better)."""
    worse, better = np.meshgrid(np.arange(n + 1.0), np.arange(n + 1.0))
    possible = worse + better <= n
    return worse[possible], better[possible]


def chances(worse: FloatArray, better: FloatArray, n: int, q: float, eps: float) -> FloatArray:
    """scipy's own probabilities of outcomes when a share q of the rows differs and the mean loss is eps."""
    shares = [(q + eps) / 2, (q - eps) / 2, 1 - q]
    return stats.multinomial.pmf(np.stack([worse, better, n - worse - better], axis=1), n, shares)


@pytest.mark.parametrize(
    ("worse", "better", "n", "eps"), [(2, 1, 60, 0.1), (0, 4, 50, 0.05), (6, 9, 80, 0.05), (1, 0, 120, 0.05)]
)
def test_the_paired_p_value_is_the_largest_sum_of_scipys_multinomial_over_the_interval_of_the_share(
    worse: int, better: int, n: int, eps: float
) -> None:
    every = outcomes(n)
    seen = float(distance(np.array([worse]), np.array([better]), n, eps)[0])
    as_far = distance(*every, n, eps) <= seen + 1e-9
    interval = stats.binomtest(worse + better, n).proportion_ci(1 - BETA, method="exact")
    shares = np.linspace(max(interval.low, eps), interval.high, 150)
    expected = BETA + max(float(chances(every[0][as_far], every[1][as_far], n, q, eps).sum()) for q in shares)
    assert paired_one(worse, better, n, eps) == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize(("n", "eps", "level"), [(40, 0.1, 0.1), (60, 0.05, 0.1), (60, 0.05, 0.05)])
def test_the_paired_test_passes_a_loss_of_exactly_eps_no_more_often_than_its_level_whatever_share_differs(
    n: int, eps: float, level: float
) -> None:
    worse, better = outcomes(n)
    likely = worse + better <= 0.55 * n
    worse, better = worse[likely], better[likely]
    passed = paired_p(worse, better, n, eps, beta=level / 50) <= level
    sizes = [float(chances(worse[passed], better[passed], n, q, eps).sum()) for q in np.linspace(eps, 0.3, 60)]
    assert max(sizes) <= level
    assert max(sizes) > 0.7 * level, "it hardly ever passes: this check could not fail"


@EXAMPLES
@given(n=st.integers(100, 5000), worse=st.integers(0, 60), better=st.integers(0, 60), eps=st.floats(0.005, 0.1))
def test_one_more_row_made_worse_never_helps_and_one_more_made_better_instead_never_harms(
    n: int, worse: int, better: int, eps: float
) -> None:
    p = paired_one(worse, better, n, eps)
    assert 0 < p <= 1
    assert paired_one(worse + 1, better, n, eps) >= p - 2e-3
    if worse:
        assert paired_one(worse - 1, better + 1, n, eps) <= p + 1e-9


def test_the_paired_test_looks_at_the_difference_and_at_its_direction() -> None:
    assert paired_one(20, 80, 1000, 0.02) == pytest.approx(BETA, abs=1e-6)
    assert paired_one(80, 20, 1000, 0.02) == 1.0
    assert paired_one(60, 60, 1000, 0.02) < 0.1 < paired_one(60, 45, 1000, 0.02)
    assert paired_one(0, 0, 1000, 0.02) == BETA


@pytest.mark.parametrize(
    ("n", "deviations"), [(3_000, 1.5), (100_000, 1.5), (10_000_000, 1.5), (100_000, 3.5), (10_000_000, 3.5)]
)
def test_with_many_rows_the_paired_p_value_is_about_that_of_the_normal_law(n: int, deviations: float) -> None:
    eps, q = 0.02, 0.10
    net = n * eps - deviations * math.sqrt(n * (q - eps**2))
    worse, better = round((n * q + net) / 2), round((n * q - net) / 2)
    assert paired_one(worse, better, n, eps) - BETA == pytest.approx(stats.norm.cdf(-deviations), rel=0.05)


@pytest.mark.parametrize(
    ("worse", "better", "n", "eps"), [(10, 7, 600, 0.02), (12, 8, 600, 0.02), (20, 13, 1000, 0.02), (27, 14, 500, 0.05)]
)
def test_a_search_that_ends_early_decides_as_the_whole_one_does(worse: int, better: int, n: int, eps: float) -> None:
    whole = paired_one(worse, better, n, eps)
    for times in (0.3, 0.7, 0.97, 0.999, 1.001, 1.03, 1.3, 3):
        early = paired_one(worse, better, n, eps, level=times * whole)
        assert (early <= times * whole) == (times > 1)
        assert early <= whole + 1e-12


def test_many_signals_leave_the_paired_test_a_smaller_beta_and_so_a_chance() -> None:
    n = 5000
    rows = PairedRows(np.full(n, 0.5), np.ones(n), np.ones(n), np.ones(n), np.ones(n))
    grid = np.array([0.5])
    found = p_values(rows, tally(rows, grid), grid, Bound("absolute", 0.02, 0.01), test=PAIRED, level=0.001)
    assert found[0] <= 0.001


def test_betting_and_bernstein_count_what_escalated_rows_owe_to_a_relative_bound() -> None:
    rng = np.random.default_rng(4)
    n, goal, grid = 4000, Bound("relative", 0.1, 0.1), np.array([0.8, 0.4, 0.0])
    rows = PairedRows(rng.random(n), rng.random(n) * 0.9, rng.random(n), np.ones(n), np.ones(n))
    sums = tally(rows, grid)
    found = p_values(rows, sums, grid, goal, test=BERNSTEIN, level=0.1)
    for p, threshold in zip(found, grid, strict=True):
        loss = np.where(rows.confidence >= threshold, rows.strong - rows.cheap, 0) - 0.1 * rows.strong
        alone = bernstein_p(np.array([loss.mean()]), np.array([(loss**2).mean()]), n, low=-1, high=0.9, bound=0.0)
        assert p == pytest.approx(alone[0], rel=1e-9)


@EXAMPLES
@given(n=st.integers(50, 10**6), mean=st.floats(-0.2, 0.019), deviation=st.floats(0.001, 0.5))
def test_bernsteins_p_value_is_the_level_at_which_the_published_bound_is_the_bound(
    n: int, mean: float, deviation: float
) -> None:
    square = deviation**2 * (n - 1) / n + mean**2
    p = float(bernstein_p(np.array([mean]), np.array([square]), n, low=-1, high=1, bound=0.02)[0])
    if 1e-250 < p < 1:
        doubt = math.log(2 / p)
        upper = (mean + 1) / 2 + math.sqrt(2 * (deviation / 2) ** 2 * doubt / n) + 7 * doubt / (3 * (n - 1))
        assert upper == pytest.approx((0.02 + 1) / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "n", "binary", "test"),
    [
        ("absolute", 148, True, EXACT),
        ("absolute", 149, True, PAIRED),
        ("absolute", 10**7, True, PAIRED),
        ("absolute", 200, False, BETTING),
        ("absolute", BETTING_ROWS, False, BETTING),
        ("absolute", BETTING_ROWS + 1, False, BERNSTEIN),
        ("relative", 200, True, BETTING),
        ("relative", BETTING_ROWS + 1, True, BERNSTEIN),
        ("agreement", 499, True, EXACT),
        ("agreement", 10**7, True, EXACT),
    ],
)
def test_the_test_follows_from_the_target_the_kind_of_quality_and_the_number_of_rows(
    kind: str, n: int, binary: bool, test: str
) -> None:
    assert choose_test(Bound(kind, 0.02, 0.1), n=n, binary=binary, level=0.1) == test  # type: ignore[arg-type]


def test_a_smaller_level_needs_more_rows_before_the_paired_test_is_taken() -> None:
    taken = {level: choose_test(Bound("absolute", 0.02, 0.1), n=200, binary=True, level=level) for level in (0.1, 0.01)}
    assert taken == {0.1: PAIRED, 0.01: EXACT}


def by_hand(rows: PairedRows, threshold: float) -> list[float]:
    kept = rows.confidence >= threshold
    loss = np.where(kept, rows.strong - rows.cheap, 0.0)
    usd = rows.cheap_usd + np.where(kept, 0.0, rows.strong_usd)
    counts = [kept.sum(), (loss > 0).sum(), (loss < 0).sum()]
    return [*counts, loss.sum(), (loss**2).sum(), (loss * rows.strong).sum(), usd.sum(), (usd**2).sum()]


@pytest.mark.parametrize("n", [1, 700, BLOCK + 1000])
def test_a_tally_is_what_each_threshold_gives_by_itself(n: int) -> None:
    rng = np.random.default_rng(n)
    confidence = np.round(rng.normal(size=n), 1)
    special = rng.random(n)
    confidence[special < 0.1] = -np.inf
    confidence[special > 0.9] = np.nan
    confidence[(special > 0.5) & (special < 0.52)] = np.inf
    quality = np.round(rng.random((2, n)), 1)
    rows = PairedRows(confidence, quality[0], quality[1], rng.random(n), 10 * rng.random(n))
    grid = np.array([np.finfo(float).max, 1.0, 0.3, 0.0, -0.7, -50.0])
    sums = tally(rows, grid)
    parts = (sums.kept, sums.worse, sums.better, sums.loss, sums.loss_squared, sums.loss_strong, sums.usd)
    for i, threshold in enumerate(grid):
        expected = by_hand(rows, float(threshold))
        assert [part[i] for part in (*parts, sums.usd_squared)] == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_quality_is_binary_only_when_every_value_of_both_tiers_is_0_or_1() -> None:
    ones = np.ones(BLOCK + 5)
    late = ones.copy()
    late[-1] = 0.5
    assert is_binary(PairedRows(ones, ones, ones * 0, ones, ones))
    assert not is_binary(PairedRows(ones, ones, late, ones, ones))
    assert not is_binary(PairedRows(ones, late, ones, ones, ones))


def test_the_binomial_test_asks_for_fewer_losses_than_eps_and_not_for_more() -> None:
    few, many = binomial_p(np.array([2.0, 30.0]), 400, 0.05)
    assert few < 1e-5
    assert many > 0.9


def test_the_binomial_sums_of_the_paired_test_take_whole_numbers_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paired_one(9, 4, 600, 0.03)


def test_costs_that_are_the_same_in_truth_are_never_below_nothing_nor_below_the_strong_tiers() -> None:
    rng = np.random.default_rng(2)
    n = 3000
    confidence, usd = rng.random(n), rng.random(n) * np.where(rng.random(n) < 0.5, 1e3, 1e-9)
    free = PairedRows(confidence, np.ones(n), np.ones(n), np.zeros(n), usd)
    grid = np.array([0.5, 0.0])
    sums = tally(free, grid)
    assert (sums.usd[1], sums.usd_squared[1]) == (0.0, 0.0), "every row is kept and costs nothing"
    assert sums.usd[0] == pytest.approx(usd[confidence < 0.5].sum(), rel=1e-12)
    same = tally(replace(free, cheap_usd=usd), np.array([0.0]))
    assert not saves(same.cost, float(usd.mean())).any()
    assert saves(same.cost, 1.001 * float(usd.mean())).all()


@pytest.mark.parametrize("level", [0.1, 0.01])
def test_rows_that_betting_needs_are_named_at_once_for_any_eps_and_are_about_the_fewest_that_do(level: float) -> None:
    for eps in (0.05, 0.01, 0.002, 0.0005):
        rows = least_rows(Bound("absolute", eps, 0.1), level, test=BETTING)
        passes = [
            betting_p(np.zeros(n), low=-1, high=1, bound=eps, delta=level) <= level
            for n in (math.floor(0.97 * rows) - 1, math.ceil(1.01 * rows))
        ]
        assert passes == [False, True], eps
    for eps in (1e-6, 1e-12):
        rows = least_rows(Bound("absolute", eps, 0.1), level, test=BETTING)
        ends = [
            bernstein_p(np.zeros(1), np.zeros(1), n, low=-1, high=1, bound=eps)
            for n in (rows * 99 // 100, rows * 101 // 100)
        ]
        assert ends[1][0] <= level < ends[0][0], eps
