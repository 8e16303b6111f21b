"""What the ledger can forget: whole runs, rows of snapshots and answers that nothing refers to any more.

A running run is never in the way: it holds a lease, and whoever marks or deletes here locks the leases for the length
of one short transaction; what takes long is looked for without a lock. A run that is to go is marked first and loses
its deployments, so that no other takes its answers over; its rows go in batches after that, its own row last.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, select, text, update
from sqlalchemy.orm import Session, aliased

from domain.retentions import PRUNED, Need, Past
from infra.db.audit_tables import AuditedRow, AuditRow
from infra.db.bundle_tables import AliasRow, BundleRow, PromotionAuditRow, PromotionRow, TuningRow
from infra.db.store import runs
from infra.db.tables import (
    AnswerRow,
    AttemptRow,
    BadRowRow,
    Base,
    CompletionRow,
    DatasetVersionRow,
    FrameRow,
    ImportedAnswerRow,
    LeaseRow,
    OutcomeRow,
    ProgressRow,
    QuarantinedRow,
    RecordRow,
    RunDeploymentRow,
    RunRow,
    RunRowRow,
    ScoreRow,
)
from infra.db.trigger_tables import ChangeRow

RUNS_OWN: tuple[type[Base], ...] = (
    RunDeploymentRow, ScoreRow, OutcomeRow, QuarantinedRow, AnswerRow, AttemptRow, RunRowRow, ProgressRow,
    ImportedAnswerRow,
)  # fmt: skip
SLICES = "0123456789abcdef"
"""First digits of hashes: a sixteenth of the answers is looked at in one transaction."""


@dataclass(frozen=True, slots=True)
class Size:
    """Rows and bytes of a table, as they are stored in it (indexes and what Postgres compresses apart)."""

    table: str
    rows: int
    bytes: int


def hold_leases(db: Session) -> None:
    """Nobody begins a run, or renews the lease of one, until this transaction ends: it has to be a short one."""
    db.execute(text("LOCK TABLE leases IN SHARE MODE"))


def under_way(db: Session) -> set[str]:
    """The workloads of which a run is under way."""
    held = exists().where(LeaseRow.run_id == RunRow.id, LeaseRow.expires_at > func.clock_timestamp())
    return set(db.scalars(select(RunRow.workload).where(held)))


def anything_under_way(db: Session) -> bool:
    """Whether any run is under way, also one that is not opened yet."""
    return bool(db.scalar(select(exists().where(LeaseRow.expires_at > func.clock_timestamp()))))


Heads = frozenset[tuple[str, str, datetime | None]]
"""Every run with its state and end: these differ once any run has begun, ended or been gone on with."""


def heads_if_quiet(db: Session) -> Heads | None:
    """The runs as they are, or None while any run is under way."""
    if anything_under_way(db):
        return None
    return frozenset(db.execute(select(RunRow.id, RunRow.state, RunRow.ended_at)).tuples())


def load_past(db: Session) -> list[Past]:
    """Every run with what needs it."""
    r = RunRow
    needs: dict[Need, ColumnElement[bool]] = {
        Need.BUNDLE: exists().where(BundleRow.run_id == r.id),
        Need.CERTIFICATE: exists().where(TuningRow.run_id == r.id),
        Need.PROMOTION: exists().where(PromotionRow.run_id == r.id) | exists().where(PromotionAuditRow.run_id == r.id),
        Need.AUDIT: exists().where(AuditRow.run_id == r.id)
        | exists().where((AuditedRow.audit_run == r.id) | (AuditedRow.route_run == r.id)),
        Need.UNAUDITED: _unaudited(),
        Need.COMPILE: exists().where(AttemptRow.run_id == r.id, AttemptRow.stage == "compile"),
    }
    query = select(runs.requeued(), r.id, r.kind, r.workload, r.state, r.ended_at, *needs.values())
    return [
        Past(*row[1:6], frozenset(need for need, held in zip(needs, row[6:], strict=True) if held), requeued=row[0])
        for row in db.execute(query)
    ]


def _unaudited() -> ColumnElement[bool]:
    """Whether the next audit of a bundle that is champion or challenger would look at a run."""
    r, named = RunRow, select(func.jsonb_array_elements_text(AuditRow.routes))
    voided = select(AuditRow.bundle_hash).where(AuditRow.verdict == "alarm")
    return (
        ((r.kind == "route") & (r.state == "completed") & r.summary["threshold"].as_string().is_not(None))
        & (r.bundle_hash.in_(select(AliasRow.bundle_hash)) & r.bundle_hash.not_in(voided))
        & r.id.not_in(named)
    )


def still_behind(db: Session, removable: Collection[str]) -> set[str]:
    """Of runs that may go, those whose calls stand behind answers that a run which stays has taken over.

    An answer is taken over with the last request that led to it; the requests before it, and those of its signals, are
    known from the first run's attempts alone.
    """
    mine, theirs = aliased(RunDeploymentRow), aliased(RunDeploymentRow)
    a, own = AttemptRow, aliased(AttemptRow)
    known = exists().where(
        own.run_id == AnswerRow.run_id, own.record_key == a.record_key, own.request_hash == a.request_hash
    )
    query = (
        select(a.run_id)
        .distinct()
        .join(mine, (mine.run_id == a.run_id) & (mine.tier == a.tier))
        .join(theirs, (theirs.deployment == mine.deployment) & (theirs.tier == mine.tier))
        .join(AnswerRow, (AnswerRow.run_id == theirs.run_id) & (AnswerRow.tier == theirs.tier))
        .where(
            a.run_id.in_(removable),
            theirs.run_id.not_in(removable),
            AnswerRow.record_key == a.record_key,
            AnswerRow.request_hash != a.request_hash,
            ~known,
        )
    )
    return set(db.scalars(query))


def share_deployments(db: Session, run_ids: Collection[str], others: Collection[str]) -> set[str]:
    """Of some runs those that answered as one of the others does, which may therefore have taken answers over."""
    mine, theirs = aliased(RunDeploymentRow), aliased(RunDeploymentRow)
    same = (theirs.deployment == mine.deployment) & (theirs.tier == mine.tier)
    query = select(mine.run_id).join(theirs, same)
    return set(db.scalars(query.where(mine.run_id.in_(run_ids), theirs.run_id.in_(others))))


def mark(db: Session, run_ids: Collection[str]) -> None:
    """Say of runs that they are being forgotten; from here on nobody takes their answers over."""
    db.execute(delete(RunDeploymentRow).where(RunDeploymentRow.run_id.in_(run_ids)))
    db.execute(update(RunRow).where(RunRow.id.in_(run_ids)).values(state=PRUNED))


def sizes(db: Session, run_ids: Collection[str]) -> list[Size]:
    """What these runs take up in each table."""
    tables = (*RUNS_OWN, RunRow)
    return [measured(db, table, _key(table).in_(run_ids)) for table in tables]


def remove_some(db: Session, run_id: str, *, most: int) -> int:
    """Delete up to so many rows of a marked run, its own row when nothing else is left; how many went. Of a run that is
    not marked none goes."""
    marked = "EXISTS (SELECT FROM runs WHERE id = :run AND state = :pruned)"
    for table in RUNS_OWN:
        name = table.__tablename__
        some = text(
            f"DELETE FROM {name} WHERE {marked}"  # noqa: S608
            f" AND ctid = ANY(ARRAY(SELECT ctid FROM {name} WHERE run_id = :run LIMIT :most))"
        )
        gone: Any = db.execute(some, {"run": run_id, "most": most, "pruned": PRUNED})
        if gone.rowcount:
            return int(gone.rowcount)
    gone = db.execute(delete(RunRow).where(RunRow.id == run_id, RunRow.state == PRUNED))
    return int(gone.rowcount)


def unused_versions(db: Session, before: datetime, *, without: Iterable[str] = ()) -> list[str]:
    """Snapshots from before a moment that no run, certificate or coming comparison refers to.

    `without` are runs that are taken for gone.
    """
    v = DatasetVersionRow
    query = select(v.hash).where(
        v.created_at < before,
        ~exists().where(RunRow.dataset_version == v.hash, RunRow.id.not_in(list(without))),
        ~exists().where(TuningRow.dataset_version == v.hash),
        v.hash.not_in(newest_starts(func.coalesce(ChangeRow.dataset_version, ""))),
    )
    return list(db.scalars(query))


def newest_starts(column: Any) -> Select[Any]:
    """A column of the newest start for each dataset: what the next news ask for is held against it."""
    c = ChangeRow
    started = select(column).distinct(c.dataset).where(c.state.in_(("started", "announced")))
    return started.order_by(c.dataset, c.settled_at.desc().nulls_last(), c.number.desc())


def version_sizes(db: Session, versions: Collection[str]) -> list[Size]:
    """What these snapshots take up."""
    return [
        measured(db, RecordRow, RecordRow.dataset_version.in_(versions)),
        measured(db, BadRowRow, BadRowRow.dataset_version.in_(versions)),
        measured(db, DatasetVersionRow, DatasetVersionRow.hash.in_(versions)),
    ]


def hold_version(db: Session, version: str) -> None:
    """Nobody finds a snapshot stored already until this transaction ends: whoever stores it waits."""
    db.execute(select(DatasetVersionRow.hash).where(DatasetVersionRow.hash == version).with_for_update())


def remove_version(db: Session, version: str) -> None:
    """Delete a snapshot whole: half of one would be taken for the whole by the next run on the same rows."""
    db.execute(delete(RecordRow).where(RecordRow.dataset_version == version))
    db.execute(delete(BadRowRow).where(BadRowRow.dataset_version == version))
    db.execute(delete(DatasetVersionRow).where(DatasetVersionRow.hash == version))


def unused_completions(db: Session, before: datetime, *, without: Iterable[str] = ()) -> Size:
    """Answers from before a moment that no attempt and no answer of a run refers to, `without` runs taken for gone."""
    return measured(db, CompletionRow, _unused(before, list(without)))


def unused_hashes(db: Session, before: datetime, digit: str) -> list[str]:
    """The requests of such answers whose hash begins with a digit. It reads all attempts: hold no lock meanwhile."""
    following = chr(ord(digit) + 1)
    mine = (CompletionRow.request_hash >= digit, CompletionRow.request_hash < following)
    return list(db.scalars(select(CompletionRow.request_hash).where(*mine, _unused(before, []))))


def remove_completions(db: Session, hashes: Collection[str]) -> None:
    """Delete the answers to these requests."""
    db.execute(delete(CompletionRow).where(CompletionRow.request_hash.in_(hashes)))


def unused_frames(db: Session) -> list[str]:
    """The frames of requests that no answer has any more."""
    used = exists().where(CompletionRow.frame_hash == FrameRow.hash)
    return list(db.scalars(select(FrameRow.hash).where(~used)))


def remove_frames(db: Session, hashes: Collection[str]) -> None:
    """Delete these frames."""
    db.execute(delete(FrameRow).where(FrameRow.hash.in_(hashes)))


def _unused(before: datetime, without: list[str]) -> ColumnElement[bool]:
    c = CompletionRow
    used = (
        exists().where(table.request_hash == c.request_hash, table.run_id.not_in(without))
        for table in (AttemptRow, AnswerRow, ImportedAnswerRow)
    )
    return and_(c.created_at < before, *(~each for each in used))


def _key(table: type[Base]) -> Any:
    return table.__table__.c["id" if table is RunRow else "run_id"]


def measured(db: Session, table: type[Base], which: ColumnElement[bool]) -> Size:
    """What the rows of a table for which a condition holds take up."""
    name = table.__tablename__
    row = db.execute(
        select(func.count(), func.coalesce(func.sum(func.pg_column_size(text(f"{name}.*"))), 0))
        .select_from(table)
        .where(which)
    ).one()
    return Size(name, int(row[0]), int(row[1]))
