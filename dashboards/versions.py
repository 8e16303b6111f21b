"""Dataset versions of a workload: which there are, how two of them differ, and what each led to."""

from dashboards import queries
from dashboards.queries import Row

NEWEST = 30
SMALL = 100_000
"""Rows up to which versions are counted through for the list; larger ones are when they are chosen."""
LISTED = 300
"""Rows of each kind of difference that are listed."""

VERSIONS = """
WITH used AS (
    SELECT dataset_version AS version, count(*) AS runs FROM runs
    WHERE workload = :workload AND dataset_version IS NOT NULL GROUP BY 1
), mine AS (
    SELECT v.*, coalesce(u.runs, 0) AS runs FROM dataset_versions AS v LEFT JOIN used AS u USING (version)
    WHERE u.version IS NOT NULL OR (
        v.uri IN (SELECT w.uri FROM dataset_versions AS w JOIN used USING (version))
        AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE r.dataset_version = v.version)
    )
), ordered AS (
    SELECT
        mine.*, lag(version) OVER past AS before, lag(records) OVER past AS before_records, count(*) OVER () AS n
    FROM mine WINDOW past AS (PARTITION BY uri ORDER BY created_at, version)
    ORDER BY created_at DESC, version LIMIT :newest
)
SELECT
    o.version, o.uri, o.records, o.bad_rows, o.created_at, o.runs, o.before, o.before_records, o.n,
    (SELECT count(DISTINCT c.delivery_key) FROM changes AS c WHERE c.dataset_version = o.version) AS deliveries
FROM ordered AS o ORDER BY o.created_at DESC, o.version
"""
COUNTS = """
SELECT
    count(*) FILTER (WHERE split = 'train') AS train,
    count(*) FILTER (WHERE split = 'calibration') AS calibration,
    count(*) FILTER (WHERE split = 'test') AS test,
    count(*) FILTER (WHERE split = 'incoming') AS incoming,
    count(gold) AS gold
FROM records WHERE version = :version
"""
DIFFERENCES = """
WITH met AS (
    -- Both are read whole and joined once: whatever they have in common, a million rows take some seconds.
    SELECT
        CASE WHEN g.key IS NULL THEN 'added' WHEN f.key IS NULL THEN 'removed' ELSE 'changed' END AS what,
        coalesce(f.record_id, g.record_id) AS record_id, coalesce(f.split, g.split) AS split,
        coalesce(f.file, g.file) AS file, coalesce(f.line, g.line) AS line, g.key AS key_before, f.key AS key_after
    FROM (SELECT record_id, key, split, file, line FROM records WHERE version = :after) AS f
    FULL JOIN (SELECT record_id, key, split, file, line FROM records WHERE version = :before) AS g
        ON g.record_id = f.record_id
    WHERE f.key IS DISTINCT FROM g.key
), numbered AS (
    SELECT met.*, count(*) OVER (PARTITION BY what) AS n, row_number() OVER (PARTITION BY what) AS number FROM met
)
SELECT what, n, record_id, split, file, line, key_before, key_after
FROM numbered WHERE number <= :listed ORDER BY what, record_id
"""
RUNS = """
SELECT
    run_id, concat_ws(' ', left(run_id, 8), state) AS run, kind, started_at, '/run?run=' || run_id AS to_run,
    count(*) OVER () AS n
FROM runs WHERE dataset_version = :version AND workload = :workload ORDER BY started_at DESC LIMIT 100
"""
DELIVERIES = """
SELECT received_at, source, left(delivery_key, 10) AS delivery, dataset, state, detail, count(*) OVER () AS n
FROM changes WHERE dataset_version = :version ORDER BY received_at DESC LIMIT 100
"""


def versions(workload: str) -> list[Row]:
    """A workload's newest dataset versions, the newest first, each with the one before it of the same place.

    `n` is how many there are. Splits and gold are counted for small versions, see `counts`. Raises StoreError.
    """
    found = queries.rows(VERSIONS, workload=workload, newest=NEWEST)
    return [{**row, **(counts(row["version"]) if row["records"] <= SMALL else {"gold": None})} for row in found]


def counts(version: str) -> Row:
    """How many rows of a version are in each split, and how many have gold. Raises StoreError."""
    return queries.of_version(COUNTS, version=version)[0]


def differences(before: str, after: str) -> list[Row]:
    """Rows that one version has and another has not, by id and key, some of each kind; `n` is how many there are.

    `what` is added, removed, or changed: the id is the same and the key, which covers inputs and gold, is not.
    Raises StoreError.
    """
    return queries.of_version(DIFFERENCES, before=before, after=after, listed=LISTED)


def numbers(before: str, after: str) -> dict[str, int]:
    """How many rows were added, changed and removed. Raises StoreError."""
    found = {str(row["what"]): int(row["n"]) for row in differences(before, after)}
    return {what: found.get(what, 0) for what in ("added", "changed", "removed")}
