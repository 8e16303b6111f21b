"""Calls added up: one query over a period's attempts, and sums of its rows for every table and chart of a page.

The query adds up a period in one pass, by time, run, stage, tier, worker and how calls ended; what the page shows are
sums of that answer, so that its figures agree with one another.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from dashboards import queries
from dashboards.queries import Row

SPAN = """
SELECT
    min(greatest(started_at, now() - CAST(:since AS interval))) AS first, max(coalesce(ended_at, now())) AS last,
    count(*) AS runs
FROM run_times
WHERE coalesce(ended_at, now()) >= now() - CAST(:since AS interval)
    AND (:workload = '' OR workload = :workload) AND (:run = '' OR run_id = :run)
"""
ADDED_UP = """
WITH added_up AS (
    SELECT
        date_bin(CAST(:width AS interval), at, '2000-01-01 00:00+00') AS at,
        run_id, stage, tier, worker, outcome, cached,
        count(*) AS calls,
        count(*) FILTER (WHERE number > 1) AS retries,
        sum(prompt_tokens) AS prompt,
        sum(completion_tokens) AS completion,
        sum(cached_tokens) AS prefix,
        sum(usd) AS usd,
        sum(seconds) AS seconds,
        min(at - make_interval(secs => seconds)) AS first,
        max(at) AS last,
        max(detail) AS detail
    FROM calls
    WHERE at >= now() - CAST(:since AS interval) AND run_id IN (
        -- A run that ended before the period made no call in it: older runs are not even looked at.
        SELECT run_id FROM run_times
        WHERE coalesce(ended_at, now()) >= now() - CAST(:since AS interval)
            AND (:workload = '' OR workload = :workload) AND (:run = '' OR run_id = :run)
    )
    GROUP BY 1, 2, 3, 4, 5, 6, 7
)
SELECT
    a.at, a.run_id, a.stage, a.tier, a.worker, a.outcome, a.first, a.last, a.detail, a.retries,
    t.workload, t.kind, coalesce(t.model, '–') AS model,
    CASE WHEN cached THEN 0 ELSE calls END AS calls,
    CASE WHEN cached OR outcome <> 'answered' THEN 0 ELSE calls END AS answered,
    CASE WHEN cached OR outcome <> 'answered' OR stage <> 'generate' THEN 0 ELSE calls END AS rows,
    CASE WHEN cached THEN calls ELSE 0 END AS spared,
    CASE WHEN cached THEN 0 ELSE prompt END AS prompt,
    CASE WHEN cached THEN 0 ELSE completion END AS completion,
    CASE WHEN cached THEN 0 ELSE prefix END AS prefix,
    CASE WHEN cached THEN 0 ELSE usd END AS usd,
    CASE WHEN cached THEN usd ELSE 0 END AS spared_usd,
    CASE WHEN cached THEN 0 ELSE seconds END AS seconds
FROM added_up AS a LEFT JOIN run_tiers AS t ON t.run_id = a.run_id AND t.tier = a.tier
ORDER BY a.at, a.run_id, a.stage, a.tier, a.worker, a.outcome, a.cached
"""
SUMS = (
    "calls",
    "answered",
    "rows",
    "spared",
    "retries",
    "prompt",
    "completion",
    "prefix",
    "usd",
    "spared_usd",
    "seconds",
)
WIDTHS_S = (1, 5, 10, 30, 60, 300, 900, 3600, 10_800, 21_600, 86_400)
"""Seconds of a point in time; each divides a day, so that sums by day need no second query."""
POINTS = 120
LEDGER = "ledger"
"""The worker of calls that were spared."""


def added_up(*, since: str, workload: str, run: str) -> tuple[list[Row], int]:
    """A period's calls, added up, of one workload and one run or (empty) of all; and the seconds of a point in time.

    Raises StoreError.
    """
    span = queries.rows(SPAN, since=since, workload=workload, run=run)[0]
    if not span["runs"]:
        return [], WIDTHS_S[0]
    width = point_s(span["first"], span["last"])
    given = {"since": since, "workload": workload, "run": run}
    return queries.rows(ADDED_UP, width=f"{width} seconds", **given), width


def point_s(first: datetime, last: datetime) -> int:
    """Seconds of a point in time, so that a chart from `first` to `last` has at most about `POINTS` of them."""
    length = (last - first).total_seconds()
    return next((width for width in WIDTHS_S if length <= POINTS * width), WIDTHS_S[-1])


def summed(found: Iterable[Row], **by: Callable[[Row], Any]) -> list[Row]:
    """Rows of the same key added up; `by` names the key's parts and says how each is read from a row."""
    sums: dict[tuple[Any, ...], Row] = {}
    for row in found:
        key = tuple(read(row) for read in by.values())
        into = sums.setdefault(key, {**dict(zip(by, key, strict=True)), **dict.fromkeys(SUMS, 0)})
        for name in SUMS:
            into[name] += float(row[name]) if name in {"usd", "spared_usd", "seconds"} else int(row[name])
    return [sums[key] for key in sorted(sums)]


def working_s(found: Sequence[Row]) -> float:
    """Seconds in which stages of runs used a worker, each from its first call's start to its last one's end.

    Time in which several stages did counts once: what the worker did then, it did for all of them.
    """
    spans: dict[tuple[str, str], tuple[datetime, datetime]] = {}
    for row in found:
        key = row["run_id"], row["stage"]
        first, last = spans.get(key, (row["first"], row["last"]))
        spans[key] = min(first, row["first"]), max(last, row["last"])
    used = timedelta()
    until: datetime | None = None
    for first, last in sorted(spans.values()):
        begun = first if until is None else max(first, until)
        used += max(last - begun, timedelta())
        until = last if until is None else max(last, until)
    return used.total_seconds()
