"""Scores of a run, added up by SQL: distributions, slices, confusion of labels, and a judge against gold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from dashboards import queries
from dashboards.parts import proportion
from dashboards.queries import Row
from dashboards.samples import below, share_of
from domain.agreements import Agreement, agreement
from domain.intervals import mean_interval
from domain.scores import Estimate
from infra.db.reader import Value

BINS = 10
FEW = 30
"""Rows under which a slice says little."""
MOST_RUNS = 100
MOST_SLICES = 40
MOST_PAIRS = 10_000
ALL = "all"
"""Every split."""
SLICES = {
    "split": "Split",
    "tier": "Tier that answered",
    "gold_label": "Decisive label, gold",
    "file": "File",
}
_UNNAMED = {"tier": "none: no valid answer"}
_RUNS = f"""
SELECT r.run_id, r.kind, r.started_at, r.state, r.dataset_version, r.summary->'test' AS test,
    m.metric, m.decisive, m.judged, m.judging_tier
FROM runs AS r JOIN run_measures AS m ON m.run_id = r.run_id
WHERE r.workload = :workload AND EXISTS (SELECT 1 FROM row_scores AS s WHERE s.run_id = r.run_id)
ORDER BY r.started_at DESC LIMIT {MOST_RUNS}
"""  # noqa: S608

_KINDS = [name for name in SLICES if name != "split"]
_NAMES = ", ".join(SLICES)
_SETS = ", ".join([*(f"({name})" for name in SLICES), *(f"(split, {name})" for name in _KINDS)])
OF_SLICES = f"""
SELECT * FROM (
    SELECT {", ".join(f"{name}, grouping({name}) AS not_{name}" for name in SLICES)},
        count(*) AS rows, sum(value) AS total, sum(value * value) AS squares, bool_and(value IN (0, 1)) AS binary,
        row_number() OVER (kind ORDER BY count(*) DESC, {_NAMES}) AS place, count(*) OVER kind AS of_slices,
        (sum(count(*)) OVER kind)::bigint AS of_rows
    FROM final_scores WHERE run_id = :run AND record_key < :below GROUP BY GROUPING SETS ({_SETS})
    WINDOW kind AS (PARTITION BY grouping({_NAMES}), CASE WHEN grouping({", ".join(_KINDS)}) < 7 THEN split END)
) AS s WHERE place <= {MOST_SLICES} ORDER BY place"""  # noqa: S608


def scored_runs(workload: str) -> list[Row]:
    """The runs of a workload that have scores, newest first, at most MOST_RUNS."""
    return queries.rows(_RUNS, workload=workload)


def looked_at(run: str) -> tuple[int, float]:
    """How many rows of a run ended, and the share of them that is looked at, a fair sample since keys are hashes."""
    found = queries.one("SELECT count(*) AS rows FROM row_ends WHERE run_id = :run", run=run)
    rows = int(found["rows"]) if found else 0
    return rows, share_of(rows)


def distributions(run: str, share: float) -> list[Row]:
    """Of each metric and tier: rows in each tenth of [0, 1] (1 is in the last), n, mean and interval."""
    query = f"""
    SELECT metric, tier, least(width_bucket(value, 0, 1, {BINS}), {BINS}) AS bin, count(*) AS rows,
        sum(value) AS total, sum(value * value) AS squares, bool_and(value IN (0, 1)) AS binary
    FROM row_scores WHERE run_id = :run AND record_key < :below GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"""  # noqa: S608
    found: list[Row] = []
    rows = queries.rows(query, run=run, below=below(share))
    for (metric, tier), group in groupby(rows, key=lambda row: (row["metric"], row["tier"])):
        bins = list(group)
        known = {row["bin"]: row["rows"] for row in bins}
        line: Row = {"metric": metric, "tier": tier, "bins": [known.get(number + 1, 0) for number in range(BINS)]}
        found.append(line | _estimated(bins))
    return found


@dataclass(frozen=True, slots=True)
class Sliced:
    """The largest slices of one kind, at most MOST_SLICES, with n, mean and interval; how many slices there are in all,
    and how many rows all of them have."""

    lines: list[Row]
    slices: int
    rows: int


def slices(run: str, share: float) -> dict[tuple[str, str], Sliced]:
    """Quality of the final answers, by split (or ALL) and kind of slice, one of SLICES; a row in quarantine is worth 0.

    Splits themselves are slices of ALL.
    """
    found: dict[tuple[str, str], Sliced] = {}
    for row in queries.rows(OF_SLICES, run=run, below=below(share)):
        kind = next((name for name in _KINDS if not row[f"not_{name}"]), "split")
        of = ALL if kind == "split" or row["not_split"] else str(row["split"])
        label = _UNNAMED.get(kind, "no label") if row[kind] is None else str(row[kind])
        part = found.setdefault((of, kind), Sliced([], row["of_slices"], row["of_rows"]))
        part.lines.append({"slice": label, **_estimated([row])})
    return found


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often each gold label was answered with each label: the most frequent `lines`, at most MOST_PAIRS of all the
    `pairs` there are; of all n rows, how many have the gold label. `said` None is an answer that stayed invalid."""

    lines: list[Row]
    pairs: int
    n: int
    right: int


def confusion(run: str, share: float, split: str, of: str) -> Confusion:
    """Gold labels against answered ones in a split, or ALL; `of` is final, cheap or strong."""
    source = "final_scores" if of == "final" else "labelled_answers"
    tier = "" if of == "final" else "AND tier = :tier"
    # Splits are told apart at the end: rows are found by their keys, which an index by splits would get in the way of.
    query = f"""
    WITH counted AS MATERIALIZED (
        SELECT split, gold_label AS gold, said_label AS said, count(*) AS rows FROM {source}
        WHERE run_id = :run AND record_key < :below AND gold_label IS NOT NULL {tier} GROUP BY 1, 2, 3
    )
    SELECT gold, said, sum(rows)::bigint AS rows, count(*) OVER () AS pairs,
        (sum(sum(rows)) OVER (PARTITION BY gold))::bigint AS of_gold, (sum(sum(rows)) OVER ())::bigint AS of_rows,
        coalesce(sum(sum(rows)) FILTER (WHERE gold = said) OVER (), 0)::bigint AS of_right
    FROM counted WHERE split = :split OR :split = '{ALL}'
    GROUP BY gold, said ORDER BY 3 DESC, 1, 2 LIMIT {MOST_PAIRS}"""  # noqa: S608
    given: Mapping[str, Value] = {} if of == "final" else {"tier": of}
    found = queries.rows(query, run=run, below=below(share), split=split, **given)
    first: Row = found[0] if found else {"pairs": 0, "of_rows": 0, "of_right": 0}
    return Confusion(found, first["pairs"], first["of_rows"], first["of_right"])


def judged(run: str) -> list[Row]:
    """Of each judged tier: the four counts of judge and gold, and how far the two agree."""
    query = """
    SELECT tier, count(*) FILTER (WHERE judged_right AND gold_right) AS both_right,
        count(*) FILTER (WHERE judged_right AND NOT gold_right) AS judge_only,
        count(*) FILTER (WHERE NOT judged_right AND gold_right) AS gold_only,
        count(*) FILTER (WHERE NOT judged_right AND NOT gold_right) AS both_wrong
    FROM judgements WHERE run_id = :run GROUP BY tier ORDER BY tier"""
    return [{**row, "agreement": _agreed(row)} for row in queries.rows(query, run=run)]


def judged_figures(found: Sequence[Row]) -> list[Row]:
    """What `judged` found as plain numbers, for a file; a kappa that is not defined has none."""
    lines: list[Row] = []
    for row in found:
        agreed: Agreement = row["agreement"]
        defined = agreed.kappa is not None
        line = {key: value for key, value in row.items() if key != "agreement"} | {"n": agreed.share.n}
        line |= {"agreement": agreed.share.mean, "agreement_low": agreed.share.low, "agreement_high": agreed.share.high}
        line |= {"kappa": agreed.kappa}
        line |= {"kappa_low": agreed.low if defined else None, "kappa_high": agreed.high if defined else None}
        lines.append(line)
    return lines


def _agreed(row: Row) -> Agreement:
    return agreement([[row["both_right"], row["judge_only"]], [row["gold_only"], row["both_wrong"]]])


def _estimated(parts: Sequence[Row]) -> Row:
    """n, mean and 95 % interval from sums: Wilson's for 0/1 values, else Student's."""
    n, total = sum(part["rows"] for part in parts), sum(part["total"] for part in parts)
    mean = total / n
    if all(part["binary"] for part in parts):
        found = proportion(mean, n)
    else:
        ends = mean_interval(total, sum(part["squares"] for part in parts), n) or (0.0, 1.0)
        found = Estimate(mean, ends[0], min(1.0, ends[1]), n)
    return {"n": n, "mean": mean, "low": found.low, "high": found.high, "few": n < FEW}
