"""Two runs row by row, out of the views: what SQL adds up, and the differences that follow from it."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from dashboards import queries
from dashboards.queries import Row
from dashboards.samples import below
from domain.comparisons import MOST_VALUES, Difference, GapSums, summed_difference
from domain.confidences import FloatArray
from domain.run_diffs import one_metric
from infra.db.reader import Value

KEPT_S = 600


class Measure(StrEnum):
    """What is compared of each row."""

    QUALITY = "quality"
    USD = "usd"
    TOKENS = "tokens"
    STRONG = "strong"
    VALID = "valid"


AMOUNTS = (Measure.USD, Measure.TOKENS)
"""Measures without a known range; the others are in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of two runs; `bundle` is its hash where the bundle is what is compared, on the run's test rows."""

    run_id: str
    version: str
    metric: str
    bundle: str | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sides; the second is read against the first. `share` of the rows is looked at, as `samples` has it."""

    a: Side
    b: Side
    share: float = 1.0

    @property
    def given(self) -> dict[str, Value]:
        """The values that the queries name."""
        sides = (("a", self.a), ("b", self.b))
        return {
            **{f"run_{name}": side.run_id for name, side in sides},
            **{f"metric_{name}": side.metric for name, side in sides},
            **({} if self._by_key else {f"version_{name}": side.version for name, side in sides}),
            **({"test_of": self.a.version} if self.a.bundle else {}),
        }

    @property
    def source(self) -> str:
        """FROM and WHERE of the rows that ended in both: `a`, `b`, and their scores `qa`, `qb`.

        Rows of one dataset version, and test rows of bundles, are the same when their keys are; rows of two versions
        when their names in the file are, as `headrace diff` has it.
        """
        if self._by_key:
            ends = f"row_ends AS a JOIN row_ends AS b ON b.record_key = a.record_key{self._sampled('b')}"
        else:
            ends = """row_ends AS a
            JOIN row_texts AS na ON na.dataset_version = :version_a AND na.record_key = a.record_key
            JOIN row_texts AS nb ON nb.dataset_version = :version_b AND nb.record_id = na.record_id
            JOIN row_ends AS b ON b.record_key = nb.record_key"""
        if self.a.bundle:
            ends += """
            JOIN row_texts AS n ON n.dataset_version = :test_of AND n.record_key = a.record_key AND n.split = 'test'"""
        return f"""
        FROM {ends}
        {self._score("a")}
        {self._score("b")}
        WHERE a.run_id = :run_a AND b.run_id = :run_b{self._sampled("a")}"""

    def answered(self) -> str:
        """The same with either tier's answer: `ca`, `sa`, `cb`, `sb`."""
        answers = " ".join(
            f"LEFT JOIN row_answers AS {name}{side} ON {name}{side}.run_id = :run_{side} "
            f"AND {name}{side}.tier = '{tier}' AND {name}{side}.record_key = {side}.record_key"
            + (self._sampled(f"{name}{side}") if self._ranged(side) else "")
            for side in ("a", "b")
            for name, tier in (("c", "cheap"), ("s", "strong"))
        )
        return self.source.replace("WHERE a.run_id", f"{answers}\nWHERE a.run_id")

    @property
    def one_metric(self) -> bool:
        """Whether their qualities can be compared."""
        return one_metric(self.a.metric, self.b.metric)

    @property
    def quality(self) -> tuple[str, str]:
        """A row's quality in either run; NULL in both where two metrics measured it."""
        return self.scores if self.one_metric else ("NULL::float8", "NULL::float8")

    @property
    def scores(self) -> tuple[str, str]:
        """The same by each run's own metric. A bundle's row without a valid answer is worth 0; a run's has no score."""
        return ("coalesce(qa.value, 0)", "coalesce(qb.value, 0)") if self.a.bundle else ("qa.value", "qb.value")

    def _score(self, side: str) -> str:
        return (
            f"LEFT JOIN row_scores AS q{side} ON q{side}.run_id = :run_{side} "
            f"AND q{side}.record_key = {side}.record_key AND q{side}.tier = {side}.tier "
            f"AND q{side}.metric = :metric_{side}" + (self._sampled(f"q{side}") if self._ranged(side) else "")
        )

    def _ranged(self, side: str) -> bool:
        """Whether a side's keys are those of the share: the other run's are not, where names pair the rows."""
        return side == "a" or self._by_key

    def _sampled(self, table: str) -> str:
        return "" if self.share >= 1 else f" AND {table}.record_key < '{below(self.share)}'"

    @property
    def _by_key(self) -> bool:
        return self.a.bundle is not None or self.a.version == self.b.version

    def values(self, measure: Measure) -> tuple[str, str]:
        """A measure of a row in either run, as SQL; NULL where it does not apply."""
        match measure:
            case Measure.QUALITY:
                return self.quality
            case Measure.USD:
                return "1000 * a.usd", "1000 * b.usd"
            case Measure.TOKENS:
                return _tokens("a"), _tokens("b")
            case Measure.STRONG:
                return "(a.tier <> 'cheap')::integer", "(b.tier <> 'cheap')::integer"
            case Measure.VALID:
                return "(a.tier IS NOT NULL)::integer", "(b.tier IS NOT NULL)::integer"


def _tokens(side: str) -> str:
    """Tokens of every answer that a row's outcome took: the strong one's, and the cheap one's where it was asked; NULL
    in quarantine."""
    return (
        f"CASE {side}.tier WHEN 'cheap' THEN c{side}.tokens "
        f"WHEN 'strong' THEN s{side}.tokens + CASE WHEN {side}.escalated THEN c{side}.tokens ELSE 0 END END"
    )


@dataclass(frozen=True, slots=True)
class Compared:
    """One measure on the rows that have it in both runs: either mean, and the difference, second less first."""

    measure: Measure
    before: float
    after: float
    difference: Difference


@dataclass(frozen=True, slots=True)
class Overall:
    """Every measure on the rows that ended in both runs; `fixed` and `broken` are flips whose quality rose or fell."""

    both: int
    flips: int
    fixed: int
    broken: int
    measures: tuple[Compared, ...]


def overall(pair: Pair, *, ended: bool) -> Overall:
    """Compare two runs, with the numbers of `headrace diff` and of `headrace bundle diff`.

    SQL reads every row of both, so the result is kept for a while when both have `ended`.
    """
    return _kept(pair) if ended else _overall(pair)


@st.cache_data(ttl=KEPT_S, show_spinner="Comparing row by row …", max_entries=50)
def _kept(pair: Pair) -> Overall:
    return _overall(pair)


def _overall(pair: Pair) -> Overall:
    x, y = pair.quality
    flips = f"""count(*) AS both, count(*) FILTER (WHERE {FLIPPED}) AS flips,
        count(*) FILTER (WHERE {FLIPPED} AND {y} > {x}) AS fixed,
        count(*) FILTER (WHERE {FLIPPED} AND {y} < {x}) AS broken"""
    found = queries.one(_summed(pair, flips), **pair.given) or {}
    measures = tuple(_compared(pair, measure, found) for measure in Measure if found[f"n_{measure}"])
    return Overall(found["both"], found["flips"], found["fixed"], found["broken"], measures)


def _compared(pair: Pair, measure: Measure, found: Row) -> Compared:
    bounded = measure not in AMOUNTS
    sums = GapSums(
        n=found[f"n_{measure}"],
        mean=found[f"mean_{measure}"],
        deviation=found[f"deviation_{measure}"] or 0.0,
        up=found[f"up_{measure}"],
        down=found[f"down_{measure}"],
        binary=found[f"binary_{measure}"],
    )
    counted = None if sums.binary and bounded else _counted(pair, measure)
    difference = summed_difference(sums, counted, bounded=bounded)
    return Compared(measure, found[f"x_{measure}"], found[f"y_{measure}"], difference)


def _summed(pair: Pair, also: str) -> str:
    """One row: each measure's sums, over the rows that have it in both."""
    sums = [also]
    for m in Measure:
        x, y = (f"({value})::float8" for value in pair.values(m))
        gap = f"({y} - {x})"
        sums.append(
            f"count({gap}) AS n_{m}, avg({x}) FILTER (WHERE {gap} IS NOT NULL) AS x_{m}, "
            f"avg({y}) FILTER (WHERE {gap} IS NOT NULL) AS y_{m}, avg({gap}) AS mean_{m}, "
            f"stddev_samp({gap}) AS deviation_{m}, count(*) FILTER (WHERE {gap} > 0) AS up_{m}, "
            f"count(*) FILTER (WHERE {gap} < 0) AS down_{m}, coalesce(bool_and({x} IN (0, 1) AND {y} IN (0, 1)) "
            f"FILTER (WHERE {gap} IS NOT NULL), FALSE) AS binary_{m}"
        )
    return f"SELECT {', '.join(sums)} {pair.answered()}"


def _counted(pair: Pair, measure: Measure) -> tuple[FloatArray, NDArray[np.int64]] | None:
    """The distinct gaps and how many rows have each; None when there are too many to be worth it."""
    x, y = (f"({value})::float8" for value in pair.values(measure))
    source = pair.answered() if measure is Measure.TOKENS else pair.source
    query = f"""
    SELECT gap, count(*) AS rows FROM (SELECT {y} - {x} AS gap {source}) AS g
    WHERE gap IS NOT NULL GROUP BY gap LIMIT {MOST_VALUES + 1}"""  # noqa: S608
    found = sorted(queries.rows(query, **pair.given), key=lambda row: row["gap"])
    if len(found) > MOST_VALUES:
        return None
    values = np.array([row["gap"] for row in found], dtype=np.float64)
    return values, np.array([row["rows"] for row in found], dtype=np.int64)


def ended_alone(side: Side) -> int:
    """How many rows ended in a run; for a bundle, how many test rows."""
    only = " AND record_key IN (SELECT record_key FROM row_texts WHERE dataset_version = :version AND split = 'test')"
    query = f"SELECT count(*) AS rows FROM row_ends WHERE run_id = :run{only if side.bundle else ''}"  # noqa: S608
    given: dict[str, Value] = {"run": side.run_id, **({"version": side.version} if side.bundle else {})}
    found = queries.one(query, **given)
    return int(found["rows"]) if found else 0


FLIPPED = "a.output::text IS DISTINCT FROM b.output::text"
"""A row that ended in another way, as SQL."""
