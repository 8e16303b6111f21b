"""A run's rows a page at a time: what is not answered yet, what an earlier run answered, what is to be settled."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import ARRAY, String, bindparam, func, literal, select, text, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import LateralFromClause

from domain.datasets import Record, Split
from domain.errors import Place
from domain.outcomes import TierAnswer
from domain.workloads import TierName
from infra.db.store.datasets import StoredRecord
from infra.db.tables import AnswerRow, RecordRow, RunDeploymentRow, RunRowRow

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A row that a tier has not answered, and how sure the cheap tier was of its own answer."""

    position: int
    key: str
    cheap_confidence: float | None


def load_unanswered(
    db: Session, run_id: str, tier: TierName, *, after: int, last: int, limit: int, with_cheap: bool
) -> list[Unanswered]:
    """The next rows behind position `after` and before `last` without an answer of this tier, in order."""
    rows = RunRowRow
    given, cheap = _of_row(run_id, tier, AnswerRow.record_key), _of_row(run_id, TierName.CHEAP, AnswerRow.confidence)
    query = (
        select(rows.position, rows.record_key, cheap.c.confidence if with_cheap else literal(None))
        .select_from(rows)
        .outerjoin(given, true())
        .where(rows.run_id == run_id, rows.position > after, rows.position < last, given.c.record_key.is_(None))
        .order_by(rows.position)
        .limit(limit)
    )
    if with_cheap:
        query = query.outerjoin(cheap, true())
    return [Unanswered(position, key, confidence) for position, key, confidence in db.execute(query)]


def first_open(db: Session, run_id: str, tier: TierName, *, kept_from: float | None) -> int | None:
    """The first position whose row this tier has not answered; None when there is none.

    Rows that the cheap tier answered with at least the confidence `kept_from` are nobody else's. As a join of whole
    tables it takes two seconds for a million rows, where a look at each row takes half a minute. Nested loops are ruled
    out for this transaction: of a run that has just been filled the planner knows nothing, takes it for a few rows, and
    reads all answers once for each of them.
    """
    db.execute(text("SET LOCAL enable_nestloop = off"))
    rows, a = RunRowRow, AnswerRow
    mine = (a.run_id == run_id, a.record_key == rows.record_key)
    query = select(func.min(rows.position)).where(
        rows.run_id == run_id, rows.position >= 0, ~select(a.record_key).where(*mine, a.tier == tier).exists()
    )
    if kept_from is not None:
        kept = select(a.record_key).where(*mine, a.tier == TierName.CHEAP, a.confidence >= kept_from)
        query = query.where(~kept.exists())
    return db.scalar(query)


def _of_row(run_id: str, tier: TierName, *columns: Any) -> LateralFromClause:
    """A tier's answer to the row beside it, one index look-up each.

    OFFSET 0 keeps the planner from joining the two tables as a whole: of a table that has just been filled it knows
    nothing, and a plan that reads every answer for every page takes hours where this takes seconds.
    """
    a = AnswerRow
    query = select(*columns).where(a.run_id == run_id, a.tier == tier, a.record_key == RunRowRow.record_key)
    return query.correlate(RunRowRow).offset(0).lateral()


def load_records(db: Session, version: str, keys: Sequence[str]) -> list[StoredRecord]:
    """Records of a version by their keys, in this order."""
    if not keys:
        return []
    r = RecordRow
    columns = (r.key, r.ordinal, r.record_id, r.inputs, r.gold, r.split, r.file, r.line)
    query = select(*columns).where(r.dataset_version == version, r.key == func.any(literal(list(keys), ARRAY(String))))
    found = {row[0]: row for row in db.execute(query)}
    return [_record(*found[key]) for key in keys]


def _record(
    key: str, ordinal: int, record_id: str, inputs: Json, gold: Json | None, split: str, file: str, line: int | None
) -> StoredRecord:
    return StoredRecord(key, ordinal, Record(record_id, inputs, gold, Split(split), Place(file, line), key))


def note_deployment(db: Session, run_id: str, tier: TierName, deployment: str) -> None:
    """Remember how a tier answers in a run, so that later runs may take its answers over."""
    statement = insert(RunDeploymentRow).values(run_id=run_id, tier=tier, deployment=deployment)
    db.execute(statement.on_conflict_do_update(index_elements=["run_id", "tier"], set_={"deployment": deployment}))


REUSE = text(
    """
    WITH reused AS (
        INSERT INTO answers (run_id, tier, record_key, request_hash, output, confidence, signals, signal_usd,
                             reasks, tokens, usd, failed)
        SELECT CAST(:run_id AS varchar), a.tier, a.record_key, a.request_hash,
               a.output, a.confidence, a.signals, a.signal_usd, a.reasks, a.tokens, a.usd, NULL
        FROM unnest(:keys) AS wanted (key) CROSS JOIN LATERAL (
            SELECT a.*
            FROM run_deployments d JOIN answers a ON a.run_id = d.run_id AND a.tier = d.tier
            WHERE d.deployment = :deployment AND d.tier = CAST(:tier AS varchar)
              AND d.run_id <> CAST(:run_id AS varchar) AND a.record_key = wanted.key AND a.failed IS NULL
            LIMIT 1
        ) a
        ON CONFLICT DO NOTHING
        RETURNING run_id, tier, record_key, request_hash, tokens, usd
    ), counted AS (
        INSERT INTO attempts (attempt_id, run_id, stage, tier, record_key, request_hash, number, cached,
                              prompt_tokens, completion_tokens, cached_tokens, seconds, usd, worker, outcome)
        SELECT CAST(md5(run_id || tier || record_key) AS uuid),
               run_id, 'generate', tier, record_key, request_hash, 0, true,
               tokens, 0, 0, 0, usd, 'ledger', 'answered'
        FROM reused
        ON CONFLICT DO NOTHING
    )
    SELECT record_key FROM reused
    """
).bindparams(bindparam("keys", type_=ARRAY(String)))


def reuse_answers(db: Session, run_id: str, tier: TierName, deployment: str, keys: Sequence[str]) -> Collection[str]:
    """Take over the valid answers that earlier runs of the same deployment have for these rows; which rows got one."""
    if not keys:
        return ()
    given = {"run_id": run_id, "tier": str(tier), "deployment": deployment, "keys": list(keys)}
    return set(db.scalars(REUSE, given))


@dataclass(frozen=True, slots=True)
class Given:
    """A row with what each tier said to it."""

    position: int
    key: str
    cheap: TierAnswer | None
    strong: TierAnswer | None


def load_given(db: Session, run_id: str, *, after: int, last: int, limit: int) -> list[Given]:
    """The next rows behind position `after` and before `last` with both tiers' answers, in order."""
    rows, a = RunRowRow, AnswerRow
    columns = (a.run_id, a.output, a.confidence, a.tokens, a.usd, a.failed)
    tiers = [_of_row(run_id, tier, *columns) for tier in TierName]
    query = (
        select(rows.position, rows.record_key, *(column for tier in tiers for column in tier.c))
        .select_from(rows)
        .where(rows.run_id == run_id, rows.position > after, rows.position < last)
        .order_by(rows.position)
        .limit(limit)
    )
    for tier in tiers:
        query = query.outerjoin(tier, true())
    found = cast(list[tuple[Any, ...]], db.execute(query).all())
    return [Given(row[0], row[1], _answer(row[2:8]), _answer(row[8:14])) for row in found]


def _answer(columns: Sequence[Any]) -> TierAnswer | None:
    run_id, *given = columns
    return None if run_id is None else TierAnswer(*given)
