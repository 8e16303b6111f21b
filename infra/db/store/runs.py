"""Runs, the rows they took upon themselves, and how far they are."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from domain.errors import NotFound
from domain.ledgers import Conservation
from domain.retentions import PRUNED
from infra.db.store.writing import add
from infra.db.tables import (
    AttemptRow,
    DatasetVersionRow,
    LeaseRow,
    OutcomeRow,
    ProgressRow,
    QuarantinedRow,
    RunRow,
    RunRowRow,
)

Json = dict[str, Any]
REQUEUED = "quarantine of "
"""What the uri of a snapshot begins with that is a batch's quarantine, the batch's id behind it."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as the ledger knows it; `spec` is the workload as it was when the run began.

    A run whose process stopped renewing its lease is `lost`: it says that it is running, and nobody carries it out.
    """

    id: str
    kind: str
    workload: str
    workload_hash: str
    spec: Json
    state: str
    dataset_version: str | None
    bundle_hash: str | None
    meters_before: Json
    meters_after: Json | None
    links: dict[str, str]
    summary: Json
    max_usd: float | None
    max_tokens: int | None
    started_by: str | None
    started_at: datetime
    ended_at: datetime | None


def open_run(
    db: Session,
    run_id: str,
    *,
    kind: str,
    workload: str,
    workload_hash: str,
    spec: Json,
    meters: Json,
    budget: tuple[float | None, int | None] = (None, None),
) -> None:
    """Begin a run, or begin it again: first readings, start and budget stay, its end and wishes to stop are forgotten.

    `budget` is what it may spend in USD and in tokens; a later one is set by `headrace resume`. Raises NotFound for a
    run that is being forgotten: half of it may be gone.
    """
    values = {
        "id": run_id,
        "kind": kind,
        "workload": workload,
        "workload_hash": workload_hash,
        "spec": spec,
        "state": "running",
        "meters_before": meters,
        "max_usd": budget[0],
        "max_tokens": budget[1],
    }
    again = {"state": "running", "ended_at": None, "meters_after": None, "cancel_requested": False}
    begun = (
        insert(RunRow)
        .values(values)
        .on_conflict_do_update(index_elements=["id"], set_=again, where=RunRow.state != PRUNED)
    )
    if db.scalar(begun.returning(RunRow.id)) is None:
        raise forgotten(run_id)


def forgotten(run_id: str) -> NotFound:
    """What is said of a run that `headrace prune` has begun to delete."""
    return NotFound(
        f"run {run_id[:8]} is being forgotten by `headrace prune`: part of its rows may be gone.",
        hint="Start a new run.",
    )


def change_run(db: Session, run_id: str, **values: Any) -> None:
    """Set columns of a run; one that is being forgotten stays as it is."""
    db.execute(update(RunRow).where(RunRow.id == run_id, RunRow.state != PRUNED).values(**values))


def close_run(db: Session, run_id: str, *, state: str, meters: Json) -> None:
    """End a run with the servers' counters as they stand now."""
    change_run(db, run_id, state=state, meters_after=meters, ended_at=func.now())


def end_lost(db: Session, run_id: str, *, state: str) -> bool:
    """End a run that nobody carries out, unless it has ended by itself meanwhile; whether it was still to end."""
    mine = update(RunRow).where(RunRow.id == run_id, RunRow.state.in_(("running", "paused")))
    return db.scalar(mine.values(state=state, ended_at=func.now()).returning(RunRow.id)) is not None


def add_links(db: Session, run_id: str, links: dict[str, str]) -> None:
    """Add links to a run."""
    change_run(db, run_id, links=RunRow.links.op("||")(links))


def add_summary(db: Session, run_id: str, part: Json) -> None:
    """Add figures to a run's summary."""
    change_run(db, run_id, summary=RunRow.summary.op("||")(part))


def is_known(db: Session, run_id: str) -> bool:
    """Whether a run was opened."""
    return db.get(RunRow, run_id) is not None


def is_to_stop(db: Session, run_id: str) -> bool:
    """Whether somebody has asked the ledger to cancel a run."""
    return bool(db.scalar(select(RunRow.cancel_requested).where(RunRow.id == run_id)))


def load_run(db: Session, run_id: str) -> RunRecord:
    """A run by its id or an unambiguous beginning of it; raises NotFound."""
    rows = db.execute(_with_holder().where(RunRow.id.startswith(run_id, autoescape=True)).limit(2)).all()
    if len(rows) != 1:
        raise NotFound(f"{'no run' if not rows else 'more than one run'} begins with {run_id!r}.")
    return _record(*rows[0])


def load_runs(db: Session, *, limit: int = 20) -> list[RunRecord]:
    """The newest runs first."""
    newest = _with_holder().order_by(RunRow.started_at.desc()).limit(limit)
    return [_record(row, held) for row, held in db.execute(newest)]


def newest_completed(db: Session, workload: str, *, kinds: Iterable[str]) -> RunRecord:
    """The completed run of a workload that ended last, of these kinds; raises NotFound."""
    wanted = (RunRow.workload == workload, RunRow.state == "completed", RunRow.kind.in_(list(kinds)))
    row = db.execute(_with_holder().where(*wanted).order_by(RunRow.ended_at.desc()).limit(1)).one_or_none()
    if row is None:
        raise NotFound(f"no run of {workload} has completed yet.")
    return _record(*row)


def last_completed(db: Session, kind: str, workload: str) -> RunRecord | None:
    """The newest complete run of its kind on a workload; one on quarantined rows alone is none."""
    mine = (RunRow.kind == kind, RunRow.workload == workload, RunRow.state == "completed", ~requeued())
    found = db.execute(_with_holder().where(*mine).order_by(RunRow.started_at.desc()).limit(1)).one_or_none()
    return _record(*found) if found else None


def requeued() -> ColumnElement[bool]:
    """Whether a run is on the quarantined rows of another one alone."""
    version = DatasetVersionRow
    return exists().where(version.hash == RunRow.dataset_version, version.uri.startswith(REQUEUED))


def _with_holder() -> Select[RunRow, bool]:
    """Runs, and whether a process holds a lease for each."""
    held = exists().where(LeaseRow.run_id == RunRow.id, LeaseRow.expires_at > func.clock_timestamp())
    return select(RunRow, held)


def _record(row: RunRow, held: bool) -> RunRecord:
    return RunRecord(
        id=row.id,
        kind=row.kind,
        workload=row.workload,
        workload_hash=row.workload_hash,
        spec=row.spec,
        state="lost" if row.state == "running" and not held else row.state,
        dataset_version=row.dataset_version,
        bundle_hash=row.bundle_hash,
        meters_before=row.meters_before,
        meters_after=row.meters_after,
        links=row.links,
        summary=row.summary,
        max_usd=row.max_usd,
        max_tokens=row.max_tokens,
        started_by=row.started_by,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )


def take_rows(db: Session, run_id: str, keys: Iterable[tuple[str, int]]) -> None:
    """Make (record key, position) rows the run's own; each must end as an outcome or in quarantine."""
    add(db, RunRowRow, ({"run_id": run_id, "record_key": key, "position": position} for key, position in keys))


def limits(db: Session, run_id: str) -> tuple[float | None, int | None]:
    """A run's hard budget: USD and tokens, None without a limit."""
    row = db.execute(select(RunRow.max_usd, RunRow.max_tokens).where(RunRow.id == run_id)).one_or_none()
    return (row[0], row[1]) if row is not None else (None, None)


def spent(db: Session, run_id: str) -> tuple[float, int]:
    """What a run has paid for so far: USD and tokens; what the ledger answered costs nothing."""
    a = AttemptRow
    paid = select(func.sum(a.usd), func.sum(a.prompt_tokens + a.completion_tokens))
    usd, tokens = db.execute(paid.where(a.run_id == run_id, ~a.cached)).one()
    return float(usd or 0.0), int(tokens or 0)


def conservation(db: Session, run_id: str) -> Conservation:
    """Count a run's rows, each term by itself; what a cancelled run left over counts as cancelled."""

    def count(table: type[RunRowRow] | type[OutcomeRow] | type[QuarantinedRow]) -> int:
        return db.scalar(select(func.count()).select_from(table).where(table.run_id == run_id)) or 0

    def ended(table: type[OutcomeRow] | type[QuarantinedRow]) -> ColumnElement[bool]:
        return exists().where(table.run_id == run_id, table.record_key == RunRowRow.record_key)

    # As anti-joins: NOT IN is a look through all outcomes for each row once the planner knows how many there are.
    pending = select(func.count()).where(RunRowRow.run_id == run_id, ~ended(OutcomeRow), ~ended(QuarantinedRow))
    left = db.scalar(pending.select_from(RunRowRow))
    stopped = db.scalar(select(RunRow.state).where(RunRow.id == run_id)) == "cancelled"
    return Conservation(
        records=count(RunRowRow),
        outcomes=count(OutcomeRow),
        quarantined=count(QuarantinedRow),
        cancelled=(left or 0) if stopped else 0,
        pending=0 if stopped else left or 0,
    )


def save_progress(db: Session, run_id: str, stage: str, *, done: int, total: int, unit: str) -> None:
    """Say how far a stage is."""
    changing = {"done": done, "total": total, "unit": unit}
    statement = insert(ProgressRow).values(run_id=run_id, stage=stage, **changing)
    db.execute(
        statement.on_conflict_do_update(
            index_elements=["run_id", "stage"], set_={**changing, "updated_at": func.clock_timestamp()}
        )
    )


@dataclass(frozen=True, slots=True)
class StageProgress:
    """How far a stage is; `seconds` from its beginning to its last word."""

    stage: str
    done: int
    total: int
    unit: str
    seconds: float


def load_progress(db: Session, run_id: str) -> list[StageProgress]:
    """The stages of a run in the order in which they began."""
    rows = db.scalars(select(ProgressRow).where(ProgressRow.run_id == run_id).order_by(ProgressRow.started_at))
    return [
        StageProgress(row.stage, row.done, row.total, row.unit, (row.updated_at - row.started_at).total_seconds())
        for row in rows
    ]
