"""Distributions of two dataset versions, or of two runs, in the same buckets, and how far they lie apart.

Postgres counts the buckets. Of many rows a sample is counted: those whose key, a sha256, begins low enough, so that the
sample is the same at each look, and the same rows of both versions are in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dashboards import queries
from dashboards.queries import Row
from dashboards.samples import below
from domain.drifts import Stability, stability

SAMPLE = 100_000
LABELS = 30
"""Labels that are told apart, the most frequent; the others are one bucket."""

_TENTHS = "ARRAY[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]"
_BY_NUMBER = """
WITH taken AS MATERIALIZED ({taken}),
edges AS (
    SELECT array_agg(DISTINCT edge ORDER BY edge) AS at FROM unnest((
        SELECT percentile_disc({tenths}) WITHIN GROUP (ORDER BY value) FROM taken WHERE side = 'before'
    )) AS edge
)
SELECT
    width_bucket(value, at) AS bucket, at AS edges, count(*) FILTER (WHERE side = 'before') AS before,
    count(*) FILTER (WHERE side = 'after') AS after
FROM taken, edges WHERE at IS NOT NULL GROUP BY 1, 2 ORDER BY 1
"""
_BY_LABEL = """
WITH taken AS ({taken})
SELECT
    coalesce(value, '–') AS bucket, count(*) FILTER (WHERE side = 'before') AS before,
    count(*) FILTER (WHERE side = 'after') AS after
FROM taken GROUP BY 1 ORDER BY count(*) DESC, 1
"""
_BOTH = """
    SELECT 'before' AS side, {value} AS value FROM {view} WHERE {of} = :before AND {key} < :bound
    UNION ALL
    SELECT 'after', {value} FROM {view} WHERE {of} = :after AND {key} < :bound
"""


def _asking(way: str, *, value: str, view: str, of: str, key: str) -> str:
    return way.format(taken=_BOTH.format(value=value, view=view, of=of, key=key), tenths=_TENTHS)


LENGTHS = _asking(_BY_NUMBER, value="characters", view="records", of="version", key="key")
GOLD = _asking(_BY_LABEL, value="gold ->> :field", view="records", of="version", key="key")
OUTPUTS = _asking(_BY_LABEL, value="output ->> :field", view="final_answers", of="run_id", key="record_key")
CONFIDENCES = _asking(_BY_NUMBER, value="confidence", view="cheap_confidences", of="run_id", key="record_key")


@dataclass(frozen=True, slots=True)
class Pair:
    """One characteristic before and after: each bucket's name and counts, and the index, where there is one."""

    buckets: tuple[tuple[str, int, int], ...]
    stability: Stability | None


def bound(rows: int) -> str:
    """The key below which a sample of about `SAMPLE` of so many rows lies; of few rows all."""
    return below(SAMPLE / rows if rows else 1.0)


def lengths(before: str, after: str, *, rows: int) -> Pair:
    """Characters of the inputs in two versions, in tenths of the one before. Raises StoreError."""
    return _numbers(queries.of_version(LENGTHS, before=before, after=after, bound=bound(rows)), digits=0)


def confidences(before: str, after: str, *, rows: int) -> Pair:
    """Confidences of the cheap answers in two runs, in tenths of the one before. Raises StoreError."""
    return _numbers(queries.rows(CONFIDENCES, before=before, after=after, bound=bound(rows)), digits=3)


def gold(before: str, after: str, field: str, *, rows: int) -> Pair:
    """A field's right values in two versions; rows without any are a bucket too. Raises StoreError."""
    return _labels(queries.of_version(GOLD, before=before, after=after, field=field, bound=bound(rows)))


def outputs(before: str, after: str, field: str, *, rows: int) -> Pair:
    """A field's values in the final answers of two runs. Raises StoreError."""
    return _labels(queries.rows(OUTPUTS, before=before, after=after, field=field, bound=bound(rows)))


def _numbers(found: Sequence[Row], *, digits: int) -> Pair:
    edges = [float(edge) for edge in found[0]["edges"]] if found else []
    return _pair([(_between(edges, int(row["bucket"]), digits), row["before"], row["after"]) for row in found])


def _between(edges: Sequence[float], bucket: int, digits: int) -> str:
    """The bucket of width_bucket in words: a lower edge belongs to it, an upper one does not."""
    if bucket == 0:
        return f"below {edges[0]:.{digits}f}"
    if bucket == len(edges):
        return f"from {edges[-1]:.{digits}f}"
    return f"{edges[bucket - 1]:.{digits}f} to {edges[bucket]:.{digits}f}"


def _labels(found: Sequence[Row]) -> Pair:
    kept, rest = list(found[:LABELS]), found[LABELS:]
    counted = [(str(row["bucket"]), row["before"], row["after"]) for row in kept]
    if rest:
        counted.append((f"{len(rest):,} others", sum(r["before"] for r in rest), sum(r["after"] for r in rest)))
    return _pair(counted)


def _pair(counted: Sequence[tuple[str, int, int]]) -> Pair:
    found = stability([before for _, before, _ in counted], [after for _, _, after in counted])
    return Pair(tuple(counted), found)
