"""Fitting: what scikit-learn would say, out of fold, the same rows the same score, and what a score saves."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from domain.certificates import Bound, PairedRows
from domain.confidences import FloatArray
from domain.learned_scores import TIE, FeatureTable, IsotonicScore, RegretScore, columns_of
from domain.rankings import empirical_cost, ranking_of
from domain.workloads import SignalName
from infra.fitting import (
    LABEL_ROWS,
    LABEL_TRUST,
    LEAST_ROWS,
    STRENGTH,
    TRUST,
    FitRows,
    Fitted,
    Unfitted,
    fit_isotonic,
    fit_regret,
)

MARGIN, MASS = SignalName.MARGIN, SignalName.ALLOWED_MASS
GOAL = Bound("absolute", 0.02, 0.1)


def odds(p: FloatArray) -> FloatArray:
    return np.log(p / (1 - p))


def chance(x: FloatArray) -> FloatArray:
    return 1 / (1 + np.exp(-x))


def population(n: int = 6_000, seed: int = 0) -> FitRows:
    """Three labels whose margins mean different things; long inputs cost the strong tier more; some lack a signal."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, n)
    length, evidence = rng.normal(0, 0.8, n), rng.normal(0, 1.5, n)
    cheap = rng.random(n) < chance(1 + evidence + np.array([-1.8, 0.0, 1.5])[label])
    strong = rng.random(n) < chance(2.5 + 0.3 * evidence)
    mass = chance(2 + 0.5 * evidence + rng.normal(0, 1, n))
    mass[rng.random(n) < 0.1] = np.nan
    signals = {MARGIN: chance(1.2 * evidence + rng.normal(0, 0.3, n)), MASS: mass}
    chars = np.floor(np.exp(5.5 + length))
    keys = tuple(f"{i:05d}" for i in rng.permutation(n))
    table = FeatureTable(keys, signals, tuple(f"label {i}" for i in label), chars)
    usd = np.full(n, 1.0), 10 + 0.05 * chars + rng.exponential(2, n)
    return FitRows(table, PairedRows(np.full(n, np.nan), cheap * 1.0, strong * 1.0, *usd))


def graded(rows: FitRows) -> FitRows:
    outcomes = rows.outcomes
    middle = replace(outcomes, cheap=0.2 + 0.6 * outcomes.cheap, strong=np.clip(outcomes.strong, 0.1, 0.9))
    return replace(rows, outcomes=middle)


def isotonic(rows: FitRows) -> Fitted[IsotonicScore]:
    found = fit_isotonic(rows, GOAL)
    assert isinstance(found, Fitted)
    return found


def regret(rows: FitRows) -> Fitted[RegretScore]:
    found = fit_regret(rows, GOAL, signals=[MARGIN, MASS])
    assert isinstance(found, Fitted)
    return found


ALL = population()
FIT, REST = ALL.take(np.arange(300)), ALL.take(np.arange(300, 6_000))
BOTH = pytest.mark.parametrize("rows", [FIT, graded(FIT)], ids=["0/1", "graded"])


@BOTH
def test_the_isotonic_maps_are_those_of_scikit_learn_mixed_by_the_rows_of_a_label(rows: FitRows) -> None:
    score, features = isotonic(rows).score, rows.features
    x, y, labels = features.signals[MARGIN], rows.outcomes.cheap, np.array(features.labels)
    pooled = IsotonicRegression(out_of_bounds="clip").fit(x, y)
    probe = np.concatenate([x, np.linspace(0, 1, 500)])
    assert set(score.labels) == {"label 0", "label 1", "label 2"}
    for label in (*score.labels, "never seen"):
        expected = pooled.predict(probe)
        if label in score.labels:
            mine = labels == label
            own = IsotonicRegression(out_of_bounds="clip").fit(x[mine], y[mine]).predict(probe)
            share = mine.sum() / (mine.sum() + LABEL_TRUST)
            expected = share * own + (1 - share) * expected
        n = len(probe)
        table = FeatureTable(("",) * n, {MARGIN: probe}, (label,) * n, np.zeros(n))
        found = (score.confidences(table) - TIE * probe) / (1 - TIE)
        assert np.abs(found - expected).max() < 1e-9
        order = np.argsort(probe)
        assert (np.diff(score.confidences(table)[order]) >= 0).all()


def test_a_label_of_few_rows_has_no_map_of_its_own() -> None:
    features = FIT.features
    rare = tuple("rare" if i < LABEL_ROWS - 1 else "often" for i in range(len(features)))
    score = isotonic(replace(FIT, features=replace(features, labels=rare))).score
    assert set(score.labels) == {"often"}
    assert isotonic(replace(FIT, features=replace(features, labels=(None,) * 300))).score.labels == {}


@BOTH
def test_the_regret_is_the_difference_of_two_logistic_models_of_scikit_learn(rows: FitRows) -> None:
    score = regret(rows).score
    columns = columns_of(rows.features, score.signals, score.fills, score.labels)
    table = np.column_stack([column for column in columns.values() if column.std() > 1e-9])
    names = [name for name, column in columns.items() if column.std() > 1e-9]
    scaler = StandardScaler().fit(table)
    trust = np.array([TRUST if name == "margin" else 1.0 for name in names])
    later = columns_of(REST.features, score.signals, score.fills, score.labels)
    probe = scaler.transform(np.column_stack([later[name] for name in names])) * trust
    expected = np.zeros(len(REST.features))
    for sign, quality in ((1, rows.outcomes.strong), (-1, rows.outcomes.cheap)):
        twice = np.vstack([scaler.transform(table) * trust] * 2)
        model = LogisticRegression(C=STRENGTH, solver="newton-cholesky", tol=1e-8)
        model.fit(twice, np.r_[np.ones(300), np.zeros(300)], sample_weight=np.r_[quality, 1 - quality])
        expected += sign * model.predict_proba(probe)[:, 1]
    assert np.abs(score.regrets(REST.features) - expected).max() < 1e-9
    assert expected.std() > 0.05


def test_the_same_rows_in_another_order_give_the_same_scores_and_figures() -> None:
    mixed = FIT.take(np.random.default_rng(1).permutation(300))
    for fit in (isotonic, regret):
        assert fit(mixed).score.hash == fit(FIT).score.hash == fit(FIT).score.hash
        assert fit(mixed).figures == fit(FIT).figures
        assert fit(FIT.take(np.arange(299))).score.hash != fit(FIT).score.hash


def test_a_score_names_the_rows_that_it_was_fitted_on_and_rows_without_a_signal_are_none_of_them() -> None:
    margin = FIT.features.signals[MARGIN].copy()
    margin[:20] = np.nan
    rows = replace(FIT, features=replace(FIT.features, signals={MARGIN: margin}))
    assert isotonic(rows).score.fitted.n == isotonic(rows).figures.n == 280
    assert regret(replace(FIT, features=replace(FIT.features, signals={MARGIN: margin, MASS: margin}))).figures.n == 280
    assert isotonic(FIT).score.fitted == regret(FIT).score.fitted


@pytest.mark.parametrize("fit", [isotonic, regret])
def test_the_figures_are_those_of_rows_that_the_score_has_not_seen(fit: object) -> None:
    rng = np.random.default_rng(3)
    rows = FIT.take(np.arange(120))
    noise = {MARGIN: rng.random(120), MASS: rng.random(120)}
    labels = tuple(str(i) for i in rng.integers(0, 6, 120))
    guess = replace(rows.outcomes, cheap=(rng.random(120) < 0.5) * 1.0, strong=(rng.random(120) < 0.5) * 1.0)
    blind = FitRows(replace(rows.features, signals=noise, labels=labels), guess)
    found = fit(blind)  # type: ignore[operator]
    seen = ranking_of(replace(guess, confidence=found.score.confidences(blind.features)), GOAL)
    assert seen.auroc is not None
    assert found.figures.auroc is not None
    assert seen.auroc > 0.58, "on its own rows a score always finds something"
    assert found.figures.auroc < seen.auroc - 0.05
    assert found.figures.aurc > seen.aurc


@pytest.mark.parametrize(("n", "fitted"), [(0, False), (1, False), (LEAST_ROWS - 1, False), (LEAST_ROWS, True)])
def test_with_too_few_rows_there_is_a_reason_in_the_place_of_a_score(n: int, *, fitted: bool) -> None:
    rows = FIT.take(np.arange(n))
    for found in (fit_isotonic(rows, GOAL), fit_regret(rows, GOAL, signals=[MARGIN])):
        assert isinstance(found, Fitted) == fitted
        if isinstance(found, Unfitted):
            assert found.reason.startswith(f"{n} rows with a signal are fewer than the {LEAST_ROWS}")
    assert isinstance(fit_isotonic(FIT, GOAL, signal=SignalName.ENTROPY), Unfitted), "no row has that signal"
    assert isinstance(fit_regret(FIT, GOAL, signals=[SignalName.ENTROPY]), Unfitted)


def test_where_the_tiers_never_differ_there_is_no_regret_and_where_cheap_never_does_no_isotonic_map() -> None:
    ones = np.ones(300)
    perfect = replace(FIT, outcomes=replace(FIT.outcomes, cheap=ones))
    found = fit_isotonic(perfect, GOAL)
    assert isinstance(found, Unfitted)
    assert found.reason == "the cheap tier's quality is 1 on every row"
    assert isinstance(fit_regret(perfect, GOAL, signals=[MARGIN]), Fitted), "the strong tier is wrong at times"
    same = replace(FIT, outcomes=replace(FIT.outcomes, strong=FIT.outcomes.cheap))
    alike = fit_regret(same, GOAL, signals=[MARGIN])
    assert isinstance(alike, Unfitted)
    assert alike.reason == "the strong tier's quality is the cheap tier's plus 0 on every row"
    useless = replace(FIT, outcomes=replace(FIT.outcomes, cheap=0 * ones, strong=ones))
    assert isinstance(fit_regret(useless, GOAL, signals=[MARGIN]), Unfitted)


def test_constant_features_and_a_strong_tier_that_is_free_do_no_harm() -> None:
    features = replace(FIT.features, chars=np.full(300, 7.0), signals={MARGIN: np.full(300, 0.3), MASS: np.ones(300)})
    rows = FitRows(features, replace(FIT.outcomes, strong_usd=np.zeros(300)))
    score = regret(rows).score
    assert (score.price.base, score.price.per_char) == (1.0, 0.0)
    assert set(score.cheap.weights) == {"label label 0", "label label 1", "label label 2"}
    assert np.isfinite(score.confidences(REST.features)).all()


def test_a_strong_answer_is_priced_by_the_inputs_length_and_by_its_mean_where_length_says_nothing() -> None:
    price = regret(FIT).score.price
    chars, usd = REST.features.chars, REST.outcomes.strong_usd
    expected = price.expected(chars) * FIT.outcomes.strong_usd.mean()
    assert np.corrcoef(expected, usd)[0, 1] > 0.95
    assert np.median(np.abs(expected / usd - 1)) < 0.1
    assert price.expected(np.array([1e12]))[0] == price.high
    falling = replace(FIT, outcomes=replace(FIT.outcomes, strong_usd=1 / FIT.features.chars))
    assert regret(falling).score.price.per_char == 0.0


def cost_of(confidence: FloatArray) -> float:
    return empirical_cost(replace(REST.outcomes, confidence=confidence), GOAL)


def test_learned_scores_save_what_the_margin_does_not_and_a_wrong_sign_or_price_loses_it() -> None:
    margin = cost_of(REST.features.signals[MARGIN])
    by_label, by_regret = isotonic(FIT).score, regret(FIT).score
    best = cost_of(by_regret.confidences(REST.features))
    assert best < margin - 0.05
    assert cost_of(by_label.confidences(REST.features)) < margin - 0.05
    assert regret(FIT).figures.cost == pytest.approx(best, abs=0.08)
    turned = by_regret.model_copy(update={"cheap": by_regret.strong, "strong": by_regret.cheap})
    assert cost_of(turned.confidences(REST.features)) > margin + 0.1, "the sign of the regret does not matter: a bug"
    flat = by_regret.model_copy(update={"price": by_regret.price.model_copy(update={"base": 1.0, "per_char": 0.0})})
    assert cost_of(flat.confidences(REST.features)) > best + 0.005, "what strong costs does not matter: a bug"
