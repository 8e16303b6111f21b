"""Scores: how good an answer is, and how sure we are of an average."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import JsonValue
from scipy import special

from domain.canonical import canonical
from domain.confidences import FloatArray

Metric = Callable[[Mapping[str, JsonValue], Mapping[str, JsonValue]], float]
"""(gold, output) -> quality in [0, 1]."""


def exact_match(gold: Mapping[str, JsonValue], output: Mapping[str, JsonValue]) -> float:
    """1 when every gold field is answered exactly, else 0."""
    return float(all(output.get(field) == value for field, value in gold.items()))


def field_accuracy(gold: Mapping[str, JsonValue], output: Mapping[str, JsonValue]) -> float:
    """Share of gold fields answered exactly."""
    return sum(output.get(field) == value for field, value in gold.items()) / len(gold)


def token_f1(gold: Mapping[str, JsonValue], output: Mapping[str, JsonValue]) -> float:
    """Mean over gold fields of the F1 between their word sets (SQuAD's measure, without its articles rule)."""
    return sum(_f1(str(value), str(output.get(field, ""))) for field, value in gold.items()) / len(gold)


def worst_field(gold: Mapping[str, JsonValue], output: Mapping[str, JsonValue]) -> float:
    """The least of the gold fields' own scores: for answers that are worth no more than their worst part."""
    return min(field_scores(gold, output).values(), default=1.0)


def mean_field(gold: Mapping[str, JsonValue], output: Mapping[str, JsonValue]) -> float:
    """The mean of the gold fields' own scores."""
    scores = field_scores(gold, output).values()
    return sum(scores) / len(scores) if scores else 1.0


def field_scores(gold: Mapping[str, JsonValue], output: Mapping[str, JsonValue]) -> dict[str, float]:
    """Each gold field's own score: text by the F1 of its words (one word: equal or not), all else by being equal."""
    return {
        field: _f1(value, str(output.get(field, ""))) if isinstance(value, str) else float(output.get(field) == value)
        for field, value in gold.items()
    }


def _f1(left: str, right: str) -> float:
    a, b = set(re.findall(r"\w+", left.lower())), set(re.findall(r"\w+", right.lower()))
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "field_accuracy": field_accuracy,
    "token_f1": token_f1,
    "mean_field": mean_field,
    "worst_field": worst_field,
}


@dataclass(frozen=True, slots=True)
class Grade:
    """A metric's value for one answer, in [0, 1], as a word, and what it looked at."""

    value: float
    label: str
    explanation: str


def grade(metric: Metric, gold: Mapping[str, JsonValue], output: Mapping[str, JsonValue] | None) -> Grade:
    """Score one answer; one that stayed invalid (None) is worth 0."""
    value = metric(gold, output) if output is not None else 0.0
    said = "no valid answer" if output is None else canonical(dict(output)).decode()
    return Grade(
        value=value,
        label="right" if value >= 1 else "wrong" if value <= 0 else "partly",
        explanation=f"expected {canonical(dict(gold)).decode()}, got {said}",
    )


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its two-sided 95 % interval and the number of rows behind it."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.n}"


def estimate(values: FloatArray) -> Estimate:
    """Mean and interval: Wilson for 0/1 values, Student's t clipped to [0, 1] otherwise."""
    n = len(values)
    if n == 0:
        return Estimate(0.0, 0.0, 1.0, 0)  # nothing is known; no NaN, which JSON has no word for
    mean = float(values.mean())
    if np.isin(values, (0.0, 1.0)).all():
        interval = _binomial_test(int(values.sum()), n).proportion_ci(0.95, method="wilson")
        return Estimate(mean, float(interval[0]), float(interval[1]), n)
    if n == 1:
        return Estimate(mean, 0.0, 1.0, 1)
    half = float(special.stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), n)


def mcnemar(before: FloatArray, after: FloatArray) -> float:
    """Exact two-sided p-value that two paired 0/1 scores differ (binomial test on the discordant rows)."""
    return mcnemar_of(int((after > before).sum()), int((after < before).sum()))


def mcnemar_of(better: int, worse: int) -> float:
    """The same from the numbers of rows that became better and worse."""
    return 1.0 if better + worse == 0 else float(_binomial_test(better, better + worse).pvalue)


def _binomial_test(count: int, n: int) -> Any:
    from scipy import stats  # half a second to import, and most commands need none of it

    return stats.binomtest(count, n)
