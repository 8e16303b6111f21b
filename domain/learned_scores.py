"""Learned scores: confidences fitted on rows that no certificate looks at, as plain numbers that travel in the bundle.

An isotonic score is the chance that the cheap answer is right, read off a map of one raw signal for each predicted
label. A regret score is the quality that keeping the cheap answer is expected to lose, for each unit of what the strong
answer would cost. Both are fitted in infra/fitting.py and evaluated here without any library that learns.

The same row gets the same bits alone and among others: columns are added one after the other, and logarithms and
exponentials are taken value by value. A row of which no signal is known has no confidence (NaN in arrays, None alone)
and escalates; nothing that is not finite comes out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, Self, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from domain.canonical import digest
from domain.confidences import FloatArray
from domain.errors import HeadraceError
from domain.workloads import SignalName

CLIP = 1e-6
"""Signals are held so far from 0 and 1 before their logit is taken."""
DIGITS = 12
"""Decimals that fitted numbers keep: the last bits of a solver do not become part of a bundle's hash."""
TIE = 0.01
"""The share of the raw signal in an isotonic score: it orders the rows that the map itself makes equal."""

Knots = tuple[tuple[float, float], ...]
"""(signal, chance) with rising signals from 0 to 1; straight lines between them."""


class LeakedRows(HeadraceError):
    """A certificate was to be computed on rows that a score was fitted on."""

    hint = "Fit the score on the train split and certify on the calibration split."


@dataclass(frozen=True, slots=True)
class Features:
    """What is known of one row before the strong tier is asked: its key, raw signals in [0, 1] (those there are), the
    predicted label of the decisive field, the input's length in characters."""

    key: str
    signals: Mapping[SignalName, float]
    label: str | None
    chars: int


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """The same of n rows, in columns; NaN where a signal is missing. Each array has shape (n,)."""

    keys: tuple[str, ...]
    signals: Mapping[SignalName, FloatArray]
    labels: tuple[str | None, ...]
    chars: FloatArray

    @classmethod
    def of(cls, rows: Sequence[Features], signals: Sequence[SignalName] | None = None) -> Self:
        """The rows in their order; without names, every signal that some row has."""
        names = sorted({name for row in rows for name in row.signals}) if signals is None else signals
        columns = {name: np.array([row.signals.get(name, math.nan) for row in rows], dtype=float) for name in names}
        chars = np.array([row.chars for row in rows], dtype=np.float64)
        return cls(tuple(row.key for row in rows), columns, tuple(row.label for row in rows), chars)

    def __len__(self) -> int:
        return len(self.keys)

    def signal(self, name: SignalName) -> FloatArray:
        """One signal; NaN where it is missing or not finite."""
        column = self.signals.get(name)
        return np.full(len(self), np.nan) if column is None else np.where(np.isfinite(column), column, np.nan)

    def take(self, rows: npt.NDArray[np.intp]) -> "FeatureTable":
        """Some of the rows, in the order given."""
        places = cast(list[int], rows.tolist())
        signals = {name: column[rows] for name, column in self.signals.items()}
        keys, labels = tuple(self.keys[i] for i in places), tuple(self.labels[i] for i in places)
        return FeatureTable(keys, signals, labels, self.chars[rows])


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FittedOn(_Part):
    """Which rows a score has seen: how many, and a digest of their keys."""

    n: int
    keys: str

    @classmethod
    def of(cls, keys: Sequence[str]) -> Self:
        """Of these keys, in whatever order."""
        return cls(n=len(keys), keys=digest(cast(JsonValue, sorted(keys))))


class IsotonicScore(_Part):
    """P(cheap answer is right | signal, predicted label), with a little of the raw signal against ties."""

    kind: Literal["isotonic"] = "isotonic"
    signal: SignalName
    pooled: Knots = Field(min_length=2, description="Of all labels together; for labels that have no map.")
    labels: dict[str, Knots]
    fitted: FittedOn

    @property
    def hash(self) -> str:
        """sha256 of the canonical form."""
        return digest(self.model_dump(mode="json"))

    def confidences(self, table: FeatureTable) -> FloatArray:
        """Of each row, in (0, 1); NaN where the signal is missing."""
        signal = table.signal(self.signal)
        found = _read(self._maps[None], signal)
        labels = np.array(table.labels, dtype=object)
        for label in sorted({label for label in table.labels if label in self.labels}, key=str):
            rows = labels == label
            found[rows] = _read(self._maps[label], signal[rows])
        return found

    def confidence(self, row: Features) -> float | None:
        """Of one row; None where the signal is missing."""
        return _alone(self.confidences(FeatureTable.of([row], [self.signal])))

    @cached_property
    def _maps(self) -> dict[str | None, FloatArray]:
        maps: dict[str | None, Knots] = {None: self.pooled, **self.labels}
        return {label: np.array(knots).T for label, knots in maps.items()}


class Linear(_Part):
    """A logistic model: the log-odds are the intercept and each column times its weight (0 where none is named)."""

    intercept: float
    weights: dict[str, float]

    def chances(self, columns: Mapping[str, FloatArray], n: int) -> FloatArray:
        """P for each of the n rows."""
        odds = np.full(n, self.intercept)
        for name, column in columns.items():
            if weight := self.weights.get(name, 0.0):
                odds = odds + weight * column
        return _each(_logistic, odds)


class Price(_Part):
    """What a strong answer is expected to cost, as a multiple of the fit rows' mean: a line in the input's characters,
    within what was seen. What it will really cost is not known before it is asked."""

    base: float
    per_char: float = Field(ge=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)

    def expected(self, chars: FloatArray) -> FloatArray:
        """For inputs of so many characters."""
        return np.clip(self.base + self.per_char * chars, self.low, self.high)


class RegretScore(_Part):
    """E[strong quality - cheap quality] per unit of the strong answer's cost; little of it is much confidence."""

    kind: Literal["regret"] = "regret"
    signals: tuple[SignalName, ...] = Field(min_length=1)
    fills: dict[SignalName, float] = Field(description="Log-odds that stand for a missing signal: the mean.")
    labels: tuple[str, ...]
    cheap: Linear
    strong: Linear
    price: Price
    fitted: FittedOn

    @property
    def hash(self) -> str:
        """sha256 of the canonical form."""
        return digest(self.model_dump(mode="json"))

    def regrets(self, table: FeatureTable) -> FloatArray:
        """Expected strong - cheap quality of each row, in [-1, 1]; NaN where no signal is known."""
        columns = columns_of(table, self.signals, self.fills, self.labels)
        lost = self.strong.chances(columns, len(table)) - self.cheap.chances(columns, len(table))
        return np.where(any_signal(table, self.signals), lost, np.nan)

    def confidences(self, table: FeatureTable) -> FloatArray:
        """Of each row, in (0, 1); .5 where nothing is lost, .25 where a strong answer of mean cost gains 1."""
        dear = self.regrets(table) / self.price.expected(np.where(table.chars > 0, table.chars, 0.0))
        return 0.5 - 0.5 * (dear / (1 + np.abs(dear)))

    def confidence(self, row: Features) -> float | None:
        """Of one row; None where no signal is known."""
        return _alone(self.confidences(FeatureTable.of([row], self.signals)))


LearnedScore = Annotated[IsotonicScore | RegretScore, Field(discriminator="kind")]


def columns_of(
    table: FeatureTable, signals: Sequence[SignalName], fills: Mapping[SignalName, float], labels: Sequence[str]
) -> dict[str, FloatArray]:
    """What a regret score looks at, by name: log-odds of each signal, whether it is missing, the logarithm of the
    input's length, and one column of 0 and 1 for each label."""
    columns: dict[str, FloatArray] = {}
    for name in signals:
        signal = table.signal(name)
        missing = np.isnan(signal)
        columns[name] = np.where(missing, fills[name], _each(_logit, np.where(missing, 0.5, signal)))
        columns[f"no {name}"] = missing.astype(np.float64)
    columns["length"] = _each(math.log1p, np.where(table.chars > 0, table.chars, 0.0))
    named = np.array(table.labels, dtype=object)
    return columns | {f"label {label}": (named == label).astype(np.float64) for label in labels}


def any_signal(table: FeatureTable, signals: Sequence[SignalName]) -> npt.NDArray[np.bool_]:
    """Which rows have at least one of the signals."""
    return np.logical_or.reduce([~np.isnan(table.signal(name)) for name in signals])


def unseen_confidences(
    score: IsotonicScore | RegretScore, table: FeatureTable, *, fit_keys: Sequence[str]
) -> FloatArray:
    """The confidences of rows to certify on, in which NaN escalates: the only way to them that a tuning should take.

    `fit_keys` are the keys of the rows that the score was fitted on; they must give its digest. Raises LeakedRows when
    they do not, or when one of the table's rows is among them.
    """
    check_unseen(score.fitted, fit_keys=fit_keys, keys=table.keys)
    return score.confidences(table)


def check_unseen(fitted: FittedOn, *, fit_keys: Sequence[str], keys: Sequence[str]) -> None:
    """Raises LeakedRows unless the fit keys are those of the fit and none of the keys is one of them."""
    if FittedOn.of(fit_keys) != fitted:
        raise LeakedRows(f"the score was fitted on {fitted.n} other rows than the {len(fit_keys)} named.")
    seen = set(fit_keys).intersection(keys)
    if seen:
        raise LeakedRows(f"{len(seen)} of {len(keys)} rows, {min(seen)[:12]} among them, are rows of the fit.")


def _read(knots: FloatArray, signal: FloatArray) -> FloatArray:
    """The piecewise linear map at each value, constant beyond its ends. np.interp takes another way when there are
    fewer values than knots, and so may give one row other bits."""
    x, p = knots
    right = np.clip(np.searchsorted(x, signal, side="right"), 1, len(x) - 1)
    left = right - 1
    share = np.clip((signal - x[left]) / (x[right] - x[left]), 0.0, 1.0)
    return np.minimum(p[left] + share * (p[right] - p[left]), p[right])


def _each(function: Callable[[float], float], column: FloatArray) -> FloatArray:
    """Value by value: NumPy's own may round otherwise in the middle of an array than at its end."""
    return np.fromiter(map(function, column.tolist()), np.float64, len(column))


def _logit(value: float) -> float:
    held = min(max(value, CLIP), 1 - CLIP)
    return math.log(held / (1 - held))


def _logistic(odds: float) -> float:
    if odds > 0:
        return 1 / (1 + math.exp(-odds))
    power = math.exp(odds)  # of a large number it would overflow
    return power / (1 + power)


def _alone(found: FloatArray) -> float | None:
    return None if math.isnan(found[0]) else float(found[0])
