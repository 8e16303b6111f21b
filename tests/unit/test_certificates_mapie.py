"""The exact binomial and the fixed sequence beside MAPIE's own, and tests that are wrong on purpose beside ours."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.risk_control import control_fwer
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from scipy import special, stats

from domain.certificates import Bound, Certificate, NotCertified, PairedRows, grid_of, tune
from domain.confidences import FloatArray
from domain.losses import BETTING, EXACT, PAIRED, Goal, betting_ps, binomial_p, p_values, paired_p
from domain.tallies import tally
from domain.thresholds import fixed_sequence, signal_level
from domain.workloads import Target

EXAMPLES = settings(max_examples=80, deadline=None, database=None, derandomize=True)
DELTA, EPS = 0.10, 0.05


def mapie_p(worse: FloatArray, n: int, eps: float) -> FloatArray:
    return compute_hoeffding_bentkus_p_value(worse / n, n, eps, binary=True)[:, 0]


@EXAMPLES
@given(n=st.integers(1, 3000), eps=st.floats(0.005, 0.3), seed=st.integers(0, 999))
def test_the_binomial_is_mapies_p_value_wherever_its_hoeffding_part_is_not_smaller(
    n: int, eps: float, seed: int
) -> None:
    # MAPIE takes ceil(n r) of a rounded share: counts that come back as themselves are compared.
    worse = np.random.default_rng(seed).integers(0, n + 1, 30).astype(np.float64)
    worse = np.unique(np.concatenate([worse, np.floor(n * eps * np.array([0.0, 0.3, 0.7, 0.9, 1.0]))]))
    worse = worse[np.ceil(n * (worse / n)) == worse]
    ours, theirs = binomial_p(worse, n, eps), mapie_p(worse, n, eps)
    share = np.minimum(worse / n, eps)
    hoeffding = np.exp(-n * (special.rel_entr(share, eps) + special.rel_entr(1 - share, 1 - eps)))
    assert np.allclose(theirs, np.minimum(ours, hoeffding), rtol=1e-6, atol=1e-12)
    assert (ours <= hoeffding * (1 + 1e-9)).all(), "the exact tail is never above its own bound"
    assert np.allclose(ours, theirs, rtol=1e-6, atol=1e-12)


@EXAMPLES
@given(
    p=st.lists(st.sampled_from([0.0, 0.001, 0.05, 0.1, 0.1000001, 0.5, 1.0]), min_size=1, max_size=12),
    delta=st.sampled_from([0.01, 0.05, 0.1, 0.5]),
)
def test_the_fixed_sequence_rejects_what_mapies_rejects(p: list[float], delta: float) -> None:
    ours = np.flatnonzero(fixed_sequence(np.array(p), delta))
    assert list(ours) == list(control_fwer(np.array(p), delta, fwer_method="fixed_sequence"))


@EXAMPLES
@given(p=st.lists(st.floats(0, 0.2), min_size=1, max_size=10), delta=st.floats(0.01, 0.3))
def test_the_level_of_each_of_many_signals_is_bonferronis(p: list[float], delta: float) -> None:
    passed = np.flatnonzero(np.array(p) <= signal_level(delta, len(p)))
    assert list(passed) == list(control_fwer(np.array(p), delta, fwer_method="bonferroni"))


def binary_rows(n: int, seed: int) -> PairedRows:
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.random(n), 2)
    cheap, strong = rng.random(n) < 0.5 + 0.5 * confidence, rng.random(n) < 0.9
    return PairedRows(confidence, cheap * 1.0, strong * 1.0, np.ones(n), np.full(n, 10.0))


def test_where_the_binomial_is_taken_a_whole_certificate_is_the_one_that_mapie_would_give() -> None:
    thresholds: list[float | None] = []
    for seed in range(30):
        rows, goal = binary_rows(190, seed), Bound("agreement", EPS, DELTA)
        rows = replace(rows, strong=np.ones(190))
        grid = grid_of(rows.confidence)
        worse = np.array([((rows.confidence >= t) & (rows.strong > rows.cheap)).sum() for t in grid], dtype=np.float64)
        theirs = control_fwer(mapie_p(worse, 190, EPS), DELTA, fwer_method="fixed_sequence")
        verdict = tune(rows, goal, grid=grid).verdict
        found = verdict.threshold if isinstance(verdict, Certificate) else None
        assert verdict.test == EXACT
        assert found == (grid[theirs[-1]] if len(theirs) else None)
        thresholds.append(found)
    assert len(set(thresholds)) > 10, "they are all alike: nothing was compared"


# A test at the bound: the true gap is eps. Each test takes losses, a column a draw, and says which draws pass.

Passes = Callable[[FloatArray], npt.NDArray[np.bool_]]
N = 600
SHARES = {"few differ": (0.06, 0.01), "many differ": (0.15, 0.10)}


def counts(loss: FloatArray) -> tuple[FloatArray, FloatArray]:
    return (loss > 0).sum(axis=0).astype(np.float64), (loss < 0).sum(axis=0).astype(np.float64)


def by_binomial(loss: FloatArray) -> npt.NDArray[np.bool_]:
    return binomial_p(counts(loss)[0], len(loss), EPS) <= DELTA


def by_pairs(loss: FloatArray) -> npt.NDArray[np.bool_]:
    return paired_p(*counts(loss), len(loss), EPS, level=DELTA) <= DELTA


def bets(loss: FloatArray, *, aim: float = DELTA) -> FloatArray:
    return betting_ps([loss], len(loss), low=-1, high=1, bound=EPS, delta=aim)


def by_bets(loss: FloatArray) -> npt.NDArray[np.bool_]:
    return bets(loss) <= DELTA


def wrong_tail_binomial(loss: FloatArray) -> npt.NDArray[np.bool_]:
    return special.bdtrc(counts(loss)[0] - 1, len(loss), EPS) <= 1 - DELTA


def wrong_tail_pairs(loss: FloatArray) -> npt.NDArray[np.bool_]:
    return by_pairs(-loss)


def wrong_tail_bets(loss: FloatArray) -> npt.NDArray[np.bool_]:
    return by_bets(-loss)


def wrong_level_binomial(loss: FloatArray) -> npt.NDArray[np.bool_]:
    return binomial_p(counts(loss)[0], len(loss), EPS) <= 1 - DELTA


def wrong_level_pairs(loss: FloatArray) -> npt.NDArray[np.bool_]:
    return paired_p(*counts(loss), len(loss), EPS) <= 3 * DELTA


def wrong_level_bets(loss: FloatArray) -> npt.NDArray[np.bool_]:
    return bets(loss, aim=3 * DELTA) <= 3 * DELTA


def best_order_bets(loss: FloatArray) -> npt.NDArray[np.bool_]:
    return by_bets(np.sort(loss, axis=0))


def pass_line(delta: float, draws: int) -> float:
    return delta + 2 * math.sqrt(delta * (1 - delta) / draws)


def passed_at_the_bound(passes: Passes, worse: float, better: float, *, draws: int = 500) -> float:
    rng = np.random.default_rng(5)
    loss = rng.choice([1.0, -1.0, 0.0], size=(N, draws), p=[worse, better, 1 - worse - better])
    return float(passes(loss).mean())


@pytest.mark.parametrize(("worse", "better"), SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("passes", [by_binomial, by_pairs, by_bets])
def test_each_test_passes_a_loss_of_exactly_eps_in_at_most_delta_of_500_draws(
    passes: Passes, worse: float, better: float
) -> None:
    assert passed_at_the_bound(passes, worse, better) <= pass_line(DELTA, 500)
    assert passed_at_the_bound(passes, 0.002, 0.001, draws=50) == 1.0, "it passes nothing: it cannot fail"


@pytest.mark.parametrize(
    "wrong",
    [
        wrong_tail_pairs, wrong_tail_bets,
        wrong_level_pairs, wrong_level_bets, best_order_bets,
    ],
)  # fmt: skip
def test_the_wrong_tail_and_the_wrong_level_are_caught_by_the_same_draws(wrong: Passes) -> None:
    rates = [passed_at_the_bound(wrong, *shares) for shares in SHARES.values()]
    assert max(rates) > pass_line(DELTA, 500)


@pytest.mark.parametrize("wrong", [wrong_tail_binomial, wrong_level_binomial])
def test_the_binomials_wrong_tail_and_wrong_level_are_caught_where_no_row_is_made_better(wrong: Passes) -> None:
    assert passed_at_the_bound(wrong, EPS, 0.0) > pass_line(DELTA, 500)
    assert passed_at_the_bound(by_binomial, EPS, 0.0) <= pass_line(DELTA, 500)


@pytest.mark.parametrize(("n", "differ"), [(200, 0.2), (1000, 0.06), (1000, 0.2)])
def test_betting_aimed_at_the_rows_that_are_left_keeps_its_level_in_4000_draws_and_uses_most_of_it(
    n: int, differ: float
) -> None:
    worse = (differ + 0.02) / 2
    rng = np.random.default_rng(31)
    loss = rng.choice([1.0, -1.0, 0.0], size=(n, 4000), p=[worse, differ - worse, 1 - differ])
    passed = (betting_ps([loss], n, low=-1, high=1, bound=0.02, delta=DELTA) <= DELTA).mean()
    assert 0.07 < passed <= pass_line(DELTA, 4000)


# The sequence: from one threshold on the true gap is a little above eps; whoever goes too far breaks the promise.

Sequence = Callable[[FloatArray, float], FloatArray]


def one_too_far(p: FloatArray, level: float) -> FloatArray:
    passed = fixed_sequence(p, level)
    return np.concatenate([[True], passed[:-1]]) if len(p) else passed


def skips_the_failure(p: FloatArray, level: float) -> FloatArray:
    return np.arange(len(p)) <= np.max(np.flatnonzero(p <= level), initial=-1)


def cliff() -> PairedRows:
    """3,000 rows: a quarter of which none loses, a quarter that loses a little more than eps in all, and fifteen steps
    of rows that gain as often as they lose, so that what a draw shows of the gap goes up and down."""
    n = 3000
    confidence = np.concatenate([np.full(n // 4, 1.0), np.full(n // 4, 0.9), np.linspace(0.8, 0, 15).repeat(n // 30)])
    loss = np.zeros(n)
    loss[n // 4 : n // 4 + round(0.0525 * n)] = 1
    loss[n // 2 :] = np.resize([1, -1, 0], n // 2)
    strong = np.where(loss == 0, 1.0, loss > 0)
    return PairedRows(confidence, strong - loss, strong, np.ones(n), np.full(n, 10.0))


def broken(choose: Sequence, *, draws: int = 500, n: int = 400) -> tuple[float, float]:
    """Shares of draws that break the promise on the whole table, and that certify anything."""
    table, goal, rng = cliff(), Bound("absolute", EPS, DELTA), np.random.default_rng(9)
    grid = grid_of(table.confidence)
    truth = tally(table, grid).gap
    wrong = chosen = 0
    for _ in range(draws):
        some = rng.integers(0, len(table), n)
        columns = (table.confidence, table.cheap, table.strong, table.cheap_usd, table.strong_usd)
        rows = PairedRows(*(column[some] for column in columns))
        found = p_values(rows, tally(rows, grid), grid, goal, test=PAIRED, level=DELTA)
        passed = np.flatnonzero(choose(found, DELTA))
        chosen += bool(len(passed))
        wrong += bool(len(passed)) and bool(truth[passed[-1]] > EPS)
    return wrong / draws, chosen / draws


def test_the_sequence_keeps_the_promise_in_500_draws_judged_by_the_whole_table_and_certifies() -> None:
    violations, certified = broken(fixed_sequence)
    assert violations <= pass_line(DELTA, 500)
    assert certified > 0.9


@pytest.mark.parametrize("wrong", [one_too_far, skips_the_failure])
def test_a_sequence_that_is_one_off_or_goes_on_after_a_failure_fails_the_same_check(wrong: Sequence) -> None:
    assert broken(wrong)[0] > pass_line(DELTA, 500)


# Null tables, under every kind of target and every test.

GOALS: list[Goal] = [
    Target(eps=0.02),
    Target(eps=0.05),
    Target(kind="relative", eps=0.05),
    Bound("agreement", 0.05, 0.1),
]
IDS = ["absolute, binomial", "absolute, paired", "relative", "agreement"]
SHUFFLED = np.random.default_rng(0).permutation(np.linspace(0, 1, 450))
"""Betting takes rows in an order that knows neither label nor confidence."""
TABLES = pytest.mark.parametrize("goal", GOALS, ids=IDS)


def null_table(confidence: FloatArray, cheap: float | FloatArray, strong: float | FloatArray = 1.0) -> PairedRows:
    n = len(confidence)
    return PairedRows(confidence, cheap * np.ones(n), strong * np.ones(n), np.ones(n), np.full(n, 10.0))


def verdict_of(rows: PairedRows, goal: Goal) -> Certificate | NotCertified:
    return tune(rows, goal, grid=grid_of(rows.confidence)).verdict


@TABLES
def test_a_useless_cheap_tier_is_never_certified_however_sure_it_is(goal: Goal) -> None:
    for confidence in (SHUFFLED, np.full(450, 0.9)):
        tuned = tune(null_table(confidence, 0.0), goal, grid=grid_of(confidence))
        assert isinstance(tuned.verdict, NotCertified)
        assert tuned.verdict.cost == tuned.strong.cost == 10.0
        assert all(point.kept <= goal.eps for point in tuned.curve if point.passed)


@TABLES
def test_a_perfect_cheap_tier_keeps_every_row_however_unsure_it_is(goal: Goal) -> None:
    for confidence in (SHUFFLED, np.full(450, 0.0)):
        verdict = verdict_of(null_table(confidence, 1.0), goal)
        assert isinstance(verdict, Certificate)
        assert (verdict.threshold, verdict.cost, verdict.gap) == (0.0, 1.0, 0.0)


@TABLES
def test_with_one_constant_confidence_all_rows_move_together(goal: Goal) -> None:
    right = np.ones(450)
    right[:4] = 0
    tuned = tune(null_table(np.full(450, 0.3), right), goal, grid=grid_of(np.full(450, 0.3)))
    assert [(point.kept, point.worse) for point in tuned.curve] == [(1.0, 4)]
    half = verdict_of(null_table(np.full(450, 0.3), np.arange(450.0) % 2), goal)
    assert isinstance(half, NotCertified)


@TABLES
def test_rows_in_two_groups_of_ties_are_certified_by_group_or_not_at_all(goal: Goal) -> None:
    confidence = np.where(np.arange(450) % 3 > 0, 0.8, 0.2)
    verdict = verdict_of(null_table(confidence, (confidence > 0.5) * 1.0), goal)
    assert isinstance(verdict, Certificate)
    assert (verdict.threshold, verdict.cost) == (0.8, pytest.approx(1 + 10 / 3))


@TABLES
@pytest.mark.parametrize("cheap", [0.0, 1.0])
def test_one_row_certifies_nothing_under_any_target(goal: Goal, cheap: float) -> None:
    verdict = verdict_of(null_table(np.array([0.9]), cheap), goal)
    assert isinstance(verdict, NotCertified)
    assert verdict.rows_needed is None or verdict.rows_needed > 1


@pytest.mark.parametrize(("quality", "goal"), [(0.0, GOALS[0]), (0.0, GOALS[1]), (1.0, GOALS[2]), (0.5, GOALS[1])])
def test_where_both_tiers_have_one_and_the_same_quality_the_cheap_one_answers(quality: float, goal: Goal) -> None:
    verdict = verdict_of(null_table(np.linspace(0, 1, 1200), quality, quality), goal)
    assert isinstance(verdict, Certificate)
    assert verdict.cost == 1.0
    assert (verdict.test == BETTING) == (quality == 0.5 or goal.kind == "relative")


def test_the_binomial_is_scipys_one_sided_test_and_not_its_two_sided_one() -> None:
    for worse, n in ((0, 45), (3, 200), (12, 300), (40, 300)):
        ours = float(binomial_p(np.array([float(worse)]), n, EPS)[0])
        assert ours == pytest.approx(stats.binomtest(worse, n, EPS, alternative="less").pvalue)
        assert ours != pytest.approx(stats.binomtest(worse, n, EPS, alternative="greater").pvalue)
