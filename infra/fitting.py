"""Fitting learned scores with scikit-learn; what comes out (domain/learned_scores.py) is read without it.

The reported figures are out of fold: each row's confidence comes from a score that was fitted without the row. The
score that is returned is fitted on all rows. Rows are taken in the order of their keys, nothing is drawn at random,
and one thread works, so that the same rows give the same score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt

from domain.confidences import FloatArray
from domain.learned_scores import (
    DIGITS,
    TIE,
    FeatureTable,
    FittedOn,
    IsotonicScore,
    Knots,
    Linear,
    Price,
    RegretScore,
    any_signal,
    columns_of,
)
from domain.losses import Goal
from domain.rankings import Ranking, ranking_of
from domain.tallies import PairedRows
from domain.workloads import SignalName

LEAST_ROWS = 60
"""With fewer rows no score is fitted: what it learns would be noise."""
FOLDS = 5
LABEL_ROWS, LABEL_TRUST = 10, 20
"""A label has a map of its own from so many rows; of n rows it counts n/(n + LABEL_TRUST), the pooled map the rest."""
STRENGTH = 0.03
"""Inverse of the ridge penalty on standardised columns: a few hundred rows say little about ten columns."""
LEAST_PRICE = 0.01
"""A strong answer is never expected to cost less than this share of the mean: nothing is divided by almost nothing."""
LEAST_SPREAD = 1e-9
"""A column that varies less than this does not vary."""
TRUST = 3.0
"""The first signal's weight is penalised TRUST² times less than the others: it is known to matter."""

Rows = npt.NDArray[np.intp]
Score = TypeVar("Score", IsotonicScore, RegretScore)


@dataclass(frozen=True, slots=True)
class Fitted(Generic[Score]):
    """A score of all fit rows, and its figures out of fold."""

    score: Score
    figures: Ranking


@dataclass(frozen=True, slots=True)
class Unfitted:
    """Why there is no score."""

    reason: str


@dataclass(frozen=True, slots=True)
class FitRows:
    """Rows to fit on: what is known of them, and both tiers' qualities in [0, 1] and costs, USD. The confidence of
    `outcomes` is not looked at; no row may ever be certified on."""

    features: FeatureTable
    outcomes: PairedRows

    def take(self, rows: Rows) -> "FitRows":
        """Some of the rows, in the order given."""
        o = self.outcomes
        columns = (o.confidence, o.cheap, o.strong, o.cheap_usd, o.strong_usd)
        return FitRows(self.features.take(rows), PairedRows(*(column[rows] for column in columns)))

    def in_order(self) -> "FitRows":
        """By key."""
        return self.take(np.array(sorted(range(len(self.features)), key=self.features.keys.__getitem__), dtype=np.intp))


def fit_isotonic(
    rows: FitRows, goal: Goal, *, signal: SignalName = SignalName.MARGIN
) -> Fitted[IsotonicScore] | Unfitted:
    """P(cheap answer is right) by predicted label, from one raw signal; graded quality is a share of rightness.

    The goal decides nothing but the reported cost.
    """
    known = _known(rows, [signal])
    reason = _too_little(known) or (
        f"the cheap tier's quality is {known.outcomes.cheap[0]:g} on every row" if _same(known.outcomes.cheap) else None
    )
    return Unfitted(reason) if reason else _fitted(known, goal, lambda part: _isotonic(part, signal))


def fit_regret(rows: FitRows, goal: Goal, *, signals: Sequence[SignalName]) -> Fitted[RegretScore] | Unfitted:
    """E[strong - cheap quality] per unit of strong cost, from the raw signals, the predicted label and the length.

    The first signal is the one that is trusted most. The goal decides nothing but the reported cost.
    """
    known = _known(rows, signals)
    gain = known.outcomes.strong - known.outcomes.cheap
    reason = _too_little(known) or (
        f"the strong tier's quality is the cheap tier's plus {gain[0]:g} on every row" if _same(gain) else None
    )
    return Unfitted(reason) if reason else _fitted(known, goal, lambda part: _regret(part, signals))


def _known(rows: FitRows, signals: Sequence[SignalName]) -> FitRows:
    """The rows that have at least one of the signals, by key."""
    ordered = rows.in_order()
    return ordered.take(np.flatnonzero(any_signal(ordered.features, signals)))


def _too_little(rows: FitRows) -> str | None:
    n = len(rows.features)
    return (
        f"{n} rows with a signal are fewer than the {LEAST_ROWS} that a score is fitted on" if n < LEAST_ROWS else None
    )


def _same(values: FloatArray) -> bool:
    return bool((values == values[0]).all())


def _fitted(rows: FitRows, goal: Goal, fit: Callable[[FitRows], Score]) -> Fitted[Score]:
    fold = np.arange(len(rows.features)) % FOLDS
    out_of_fold = np.empty(len(fold))
    for number in range(FOLDS):
        left_out = np.flatnonzero(fold == number)
        part = fit(rows.take(np.flatnonzero(fold != number)))
        out_of_fold[left_out] = part.confidences(rows.features.take(left_out))
    return Fitted(fit(rows), ranking_of(replace(rows.outcomes, confidence=out_of_fold), goal))


def _isotonic(rows: FitRows, signal: SignalName) -> IsotonicScore:
    x, quality = rows.features.signal(signal), rows.outcomes.cheap
    labels = np.array(rows.features.labels, dtype=object)
    pooled = _steps(x, quality)
    maps: dict[str, Knots] = {}
    for label in sorted({label for label in rows.features.labels if label is not None}):
        mine = labels == label
        n = int(mine.sum())
        if n >= LABEL_ROWS:
            maps[label] = _mixed(_steps(x[mine], quality[mine]), pooled, n / (n + LABEL_TRUST))
    fitted = FittedOn.of(rows.features.keys)
    return IsotonicScore(signal=signal, pooled=_mixed(pooled, pooled, 1.0), labels=maps, fitted=fitted)


def _steps(x: FloatArray, quality: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The isotonic regression of quality on x as knots."""
    from sklearn.isotonic import IsotonicRegression

    model: Any = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, quality)
    return cast(FloatArray, model.X_thresholds_), cast(FloatArray, model.y_thresholds_)


def _mixed(mine: tuple[FloatArray, FloatArray], pooled: tuple[FloatArray, FloatArray], share: float) -> Knots:
    """A share of one map, the rest of the other, and a little of the signal itself; all are lines between knots."""
    x = np.unique(np.concatenate([[0.0, 1.0], mine[0], pooled[0]]))
    chance = share * np.interp(x, *mine) + (1 - share) * np.interp(x, *pooled)
    p = np.maximum.accumulate(np.round((1 - TIE) * chance + TIE * np.clip(x, 0, 1), DIGITS))
    return tuple((float(a), float(b)) for a, b in zip(x, p, strict=True))


def _regret(rows: FitRows, signals: Sequence[SignalName]) -> RegretScore:
    features = rows.features
    labels = tuple(sorted({label for label in features.labels if label is not None}))
    bare = columns_of(features, signals, dict.fromkeys(signals, np.nan), ())
    fills = {name: _rounded(float(np.nanmean(c)) if (~np.isnan(c := bare[name])).any() else 0.0) for name in signals}
    columns = columns_of(features, signals, fills, labels)
    return RegretScore(
        signals=tuple(signals),
        fills=fills,
        labels=labels,
        cheap=_logistic(columns, rows.outcomes.cheap, signals[0]),
        strong=_logistic(columns, rows.outcomes.strong, signals[0]),
        price=_price(features.chars, rows.outcomes.strong_usd),
        fitted=FittedOn.of(features.keys),
    )


def _logistic(columns: dict[str, FloatArray], quality: FloatArray, trusted: str) -> Linear:
    """Quality as a chance: a graded row counts as right and as wrong, by shares. A column that never varies is left
    out; a quality that never varies leaves a constant, a little off 0 and 1."""
    n = len(quality)
    spread = {name: deviation for name, column in columns.items() if (deviation := float(column.std())) > LEAST_SPREAD}
    if _same(quality):
        mean = (quality.sum() + 0.5) / (n + 1)
        return Linear(intercept=_rounded(float(np.log(mean / (1 - mean)))), weights={})
    from sklearn.linear_model import LogisticRegression

    scale = {name: (TRUST if name == trusted else 1.0) / deviation for name, deviation in spread.items()}
    table = np.column_stack([(columns[name] - columns[name].mean()) * scale[name] for name in scale])
    shares = np.concatenate([quality, 1 - quality])
    right = np.repeat([1, 0], n)
    counts = shares > 0
    model: Any = LogisticRegression(C=STRENGTH, solver="newton-cholesky", tol=1e-8, max_iter=200)
    model.fit(np.vstack([table, table])[counts], right[counts], sample_weight=shares[counts])
    found = cast(FloatArray, model.coef_)[0]
    weights = {name: _rounded(float(w) * scale[name]) for name, w in zip(scale, found, strict=True)}
    intercept = float(model.intercept_[0]) - sum(weights[name] * float(columns[name].mean()) for name in scale)
    return Linear(intercept=_rounded(intercept), weights=weights)


def _price(chars: FloatArray, usd: FloatArray) -> Price:
    """The line of least squares through length and cost; an input that is longer never costs less."""
    mean = float(usd.mean())
    if mean <= 0:
        return Price(base=1.0, per_char=0.0, low=1.0, high=1.0)
    cost, about = usd / mean, chars - chars.mean()
    spread = float((about * about).sum())
    slope = _rounded(max(0.0, float((about * (cost - 1)).sum()) / spread) if spread > 0 else 0.0)
    low, high = _rounded(max(float(cost.min()), LEAST_PRICE)), _rounded(float(cost.max()))
    return Price(base=_rounded(1 - slope * float(chars.mean())), per_char=slope, low=low, high=high)


def _rounded(value: float) -> float:
    return round(value, DIGITS) + 0.0  # no -0
