"""What the ledger comes to in figures that a monitoring system asks for every few seconds: one run at a time."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from infra.db.tables import AttemptRow, OutcomeRow, QuarantinedRow, RunRow
from infra.db.trigger_tables import ChangeRow, NoticeRow


@dataclass(frozen=True, slots=True)
class RunHead:
    """A run, what it is called, and the model of each tier; `ended_at` changes when it is gone on with."""

    id: str
    kind: str
    workload: str
    state: str
    ended_at: datetime | None
    models: dict[str, str]


@dataclass(frozen=True, slots=True)
class Calls:
    """What a tier of a run asked: calls that were made, those of them that failed, and answers of the ledger."""

    tier: str
    made: int
    failed: int
    ledger_hits: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    usd: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits to be dealt with: how much, and since when the oldest of it has been due, seconds."""

    count: int
    oldest_s: float


def heads(db: Session) -> list[RunHead]:
    """Every run of the ledger."""
    tiers = RunRow.spec["tiers"]
    models = (tiers["cheap"]["model"].as_string(), tiers["strong"]["model"].as_string())
    query = select(RunRow.id, RunRow.kind, RunRow.workload, RunRow.state, RunRow.ended_at, *models)
    return [RunHead(*row[:5], {"cheap": row[5] or "", "strong": row[6] or ""}) for row in db.execute(query)]


def calls(db: Session, run_ids: Collection[str]) -> list[tuple[str, Calls]]:
    """What these runs asked, by run and tier."""
    a = AttemptRow
    tokens = (a.prompt_tokens, a.completion_tokens, a.cached_tokens)
    query = (
        select(
            a.run_id,
            a.tier,
            func.count().filter(~a.cached),
            func.count().filter(~a.cached, a.outcome != "answered"),
            func.count().filter(a.cached),
            *(func.coalesce(func.sum(column).filter(~a.cached), 0) for column in tokens),
            func.coalesce(func.sum(a.usd).filter(~a.cached), 0.0),
            func.coalesce(func.sum(a.seconds).filter(~a.cached), 0.0),
        )
        .where(a.run_id.in_(run_ids))
        .group_by(a.run_id, a.tier)
    )
    return [(row[0], Calls(row[1], *map(int, row[2:8]), *map(float, row[8:]))) for row in db.execute(query)]


def rows(db: Session, run_ids: Collection[str]) -> list[tuple[str, str, int]]:
    """(run, what became of them, how many rows): kept, escalated, quarantined."""
    o, q = OutcomeRow, QuarantinedRow
    answered = select(o.run_id, o.escalated, func.count()).where(o.run_id.in_(run_ids)).group_by(o.run_id, o.escalated)
    refused = select(q.run_id, func.count()).where(q.run_id.in_(run_ids)).group_by(q.run_id)
    found = [(run_id, "escalated" if up else "kept", count) for run_id, up, count in db.execute(answered)]
    return found + [(run_id, "quarantined", count) for run_id, count in db.execute(refused)]


def waiting_changes(db: Session) -> Waiting:
    """Changes of datasets that nobody has dealt with."""
    return _waiting(db, ChangeRow)


def waiting_notices(db: Session) -> Waiting:
    """Messages that have not been delivered yet."""
    return _waiting(db, NoticeRow)


def dead_notices(db: Session) -> int:
    """Messages that were given up."""
    return db.scalar(select(func.count()).select_from(NoticeRow).where(NoticeRow.state == "dead")) or 0


def _waiting(db: Session, table: type[ChangeRow] | type[NoticeRow]) -> Waiting:
    oldest = func.extract("epoch", func.clock_timestamp() - func.min(table.due_at))
    count, seconds = db.execute(select(func.count(), oldest).where(table.state == "waiting")).one()
    return Waiting(int(count), max(0.0, float(seconds or 0.0)))
