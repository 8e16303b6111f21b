"""Audits in the ledger: which routed rows there are, which were looked at, what each audit concluded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from domain.audit_verdicts import Report
from domain.audits import Pending, Watched
from domain.errors import NotFound
from domain.workloads import TierName
from infra.db.audit_tables import AuditedRow, AuditRow
from infra.db.store import labels
from infra.db.store.writing import copy_new
from infra.db.tables import AnswerRow, OutcomeRow, RunRow, RunRowRow

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Route:
    """A completed batch that a bundle routed by its threshold."""

    run_id: str
    version: str


def unaudited_routes(db: Session, bundle_hash: str) -> list[Route]:
    """The completed batches of a bundle that no concluded audit has looked at, in the order in which they began."""
    looked = select(func.jsonb_array_elements_text(AuditRow.routes)).where(AuditRow.bundle_hash == bundle_hash)
    query = select(RunRow.id, RunRow.dataset_version).where(
        RunRow.kind == "route",
        RunRow.state == "completed",
        RunRow.bundle_hash == bundle_hash,
        RunRow.summary["threshold"].as_string().is_not(None),  # else all its rows went to the strong tier
        RunRow.id.not_in(looked),
    )
    return [
        Route(run_id, version)
        for run_id, version in db.execute(query.order_by(RunRow.started_at, RunRow.id))
        if version
    ]


def mean_strong_usd(db: Session, bundle_hash: str) -> float | None:
    """What a strong answer has cost on average in the runs of a bundle, USD at list price; None before any."""
    a = AnswerRow
    query = select(func.avg(a.usd)).join(RunRow, RunRow.id == a.run_id)
    return db.scalar(query.where(RunRow.bundle_hash == bundle_hash, a.tier == TierName.STRONG))


@dataclass(frozen=True, slots=True)
class RoutedRow:
    """A row of a batch: was its cheap answer kept, and how sure was the cheap tier (None: it was not, or not asked)."""

    position: int
    key: str
    kept: bool
    confidence: float | None


def load_routed(db: Session, run_id: str, *, after: int, limit: int) -> list[RoutedRow]:
    """The next rows of a batch behind a position, in order. Three look-ups by key: a join of tables that have just been
    filled may be planned badly."""
    rows = select(RunRowRow.position, RunRowRow.record_key).where(
        RunRowRow.run_id == run_id, RunRowRow.position > after
    )
    page = db.execute(rows.order_by(RunRowRow.position).limit(limit)).tuples().all()
    keys = [key for _, key in page]
    o, a = OutcomeRow, AnswerRow
    kept = set(
        db.scalars(select(o.record_key).where(o.run_id == run_id, o.record_key.in_(keys), o.tier == TierName.CHEAP))
    )
    sure = select(a.record_key, a.confidence).where(
        a.run_id == run_id, a.tier == TierName.CHEAP, a.record_key.in_(keys)
    )
    confidences = dict(db.execute(sure).tuples().all())
    return [RoutedRow(position, key, key in kept, confidences.get(key)) for position, key in page]


def already_audited(db: Session, bundle_hash: str) -> set[str]:
    """The keys of the rows that concluded audits of a bundle chose: no row is counted twice."""
    row = AuditedRow
    concluded = select(AuditRow.run_id).where(AuditRow.bundle_hash == bundle_hash)
    return set(db.scalars(select(row.record_key).where(row.bundle_hash == bundle_hash, row.audit_run.in_(concluded))))


@dataclass(frozen=True, slots=True)
class Chosen:
    """A row that an audit has chosen."""

    key: str
    record_id: str
    route_run: str
    kept: bool


def take_rows(db: Session, bundle_hash: str, run_id: str, rows: Iterable[Chosen]) -> None:
    """Make rows an audit's own, behind those of audits before; what an audit that never ended had chosen is free."""
    row = AuditedRow
    concluded = select(AuditRow.run_id).where(AuditRow.bundle_hash == bundle_hash)
    db.execute(delete(row).where(row.bundle_hash == bundle_hash, row.audit_run.not_in(concluded)))
    base = db.scalar(select(func.max(row.place)).where(row.bundle_hash == bundle_hash))
    first = 0 if base is None else base + 1
    copy_new(
        db,
        AuditedRow,
        (
            {
                "bundle_hash": bundle_hash,
                "record_key": chosen.key,
                "place": first + n,
                "audit_run": run_id,
                "route_run": chosen.route_run,
                "record_id": chosen.record_id,
                "kept": chosen.kept,
            }
            for n, chosen in enumerate(rows)
        ),
    )


class Seen(Pending):
    """An audited row with what both tiers said to it, and what is right (None: a field has no label yet)."""

    kept: bool
    cheap: Json | None
    strong: Json | None
    gold: Json | None


def load_own(db: Session, bundle_hash: str, run_id: str) -> list[Seen]:
    """The rows that an audit chose, in their order; of their gold nothing is said."""
    query = _with_answers().where(AuditedRow.bundle_hash == bundle_hash, AuditedRow.audit_run == run_id)
    return [_seen(*row, gold=None, every=False) for row in db.execute(query)]


def load_waiting(
    db: Session, bundle_hash: str, run_id: str, *, workload: str, fields: Sequence[str], every: bool
) -> list[Seen]:
    """The rows that the gold stream has not counted, of this audit and of those before, in their order.

    `every` says that rows which were escalated need gold as well.
    """
    concluded = select(AuditRow.run_id).where(AuditRow.bundle_hash == bundle_hash)
    query = _with_answers().where(
        AuditedRow.bundle_hash == bundle_hash,
        AuditedRow.counted_by.is_(None),
        AuditedRow.audit_run.in_(concluded) | (AuditedRow.audit_run == run_id),
    )
    found = db.execute(query).all()
    ids = {row[1] for row in found}
    known = labels.load_gold(db, workload, ids, fields)
    return [_seen(*row, gold=known.get(row[1]), every=every) for row in found]


def _with_answers() -> Select[str, str, bool, Json | None, Json | None, Json | None]:
    """Key, record id, kept, the cheap answer, and the strong answer of the audit or else of the batch."""
    row, cheap, asked, routed = AuditedRow, aliased(AnswerRow), aliased(AnswerRow), aliased(AnswerRow)
    answers = ((cheap, row.route_run, TierName.CHEAP), (asked, row.audit_run, TierName.STRONG))
    query = select(row.record_key, row.record_id, row.kept, cheap.output, asked.output, routed.output)
    for table, run, tier in (*answers, (routed, row.route_run, TierName.STRONG)):
        on = (table.run_id == run) & (table.tier == tier) & (table.record_key == row.record_key)
        query = query.outerjoin(table, on)
    return query.order_by(row.place)


def _seen(
    key: str,
    _record_id: str,
    kept: bool,
    cheap: Json | None,
    asked: Json | None,
    routed: Json | None,
    *,
    gold: Json | None,
    every: bool,
) -> Seen:
    return Seen(
        key=key,
        needs_gold=kept or every,
        has_gold=gold is not None,
        kept=kept,
        cheap=cheap,
        strong=asked or routed,
        gold=gold,
    )


@dataclass(frozen=True, slots=True)
class Audit:
    """A concluded audit."""

    run_id: str
    at: datetime
    workload: str
    bundle_hash: str
    report: Report
    state: Watched
    usd: float


def conclude(
    db: Session,
    run_id: str,
    *,
    workload: str,
    bundle_hash: str,
    found: tuple[Watched, Report],
    routes: Sequence[str],
    usd: float,
) -> None:
    """Add an audit; one that is there stays as it is."""
    state, report = found
    values = {
        "run_id": run_id,
        "workload": workload,
        "bundle_hash": bundle_hash,
        "verdict": report.verdict,
        "state": state.model_dump(mode="json"),
        "report": report.model_dump(mode="json"),
        "routes": list(routes),
        "usd": usd,
    }
    db.execute(insert(AuditRow).values(values).on_conflict_do_nothing())


def note_losses(
    db: Session, bundle_hash: str, run_id: str, *, differing: Mapping[str, float], losses: Mapping[str, float]
) -> None:
    """Keep what each row was found to be, and that an audit's gold stream has counted it."""
    changed: list[Json] = [{"record_key": key, "differs": value} for key, value in differing.items()]
    counted: list[Json] = [{"record_key": key, "loss": value, "counted_by": run_id} for key, value in losses.items()]
    for rows in (changed, counted):
        if rows:
            db.execute(update(AuditedRow), [{"bundle_hash": bundle_hash, **row} for row in rows])


def is_concluded(db: Session, run_id: str) -> bool:
    """Whether an audit has been concluded."""
    return db.get(AuditRow, run_id) is not None


def load_audit(db: Session, run_id: str) -> Audit:
    """A concluded audit by its run; raises NotFound."""
    row = db.get(AuditRow, run_id)
    if row is None:
        raise NotFound(f"the run {run_id[:8]} is no concluded audit.", hint="List audits with `headrace audits`.")
    return _audit(row)


def load_audits(db: Session, *, workload: str, bundle_hash: str | None = None) -> list[Audit]:
    """A workload's audits, or those of one of its bundles, in their order."""
    query = select(AuditRow).where(AuditRow.workload == workload).order_by(AuditRow.number)
    if bundle_hash is not None:
        query = query.where(AuditRow.bundle_hash == bundle_hash)
    return [_audit(row) for row in db.scalars(query)]


def last_state(db: Session, bundle_hash: str) -> Watched:
    """What the next audit of a bundle goes on from."""
    query = select(AuditRow.state).where(AuditRow.bundle_hash == bundle_hash).order_by(AuditRow.number.desc()).limit(1)
    found = db.scalar(query)
    return Watched() if found is None else Watched.model_validate(found)


def alarms(db: Session, bundle_hash: str) -> tuple[str, ...]:
    """Why audits have voided a bundle's certificate, the first alarm first; nothing while none has."""
    query = select(AuditRow.run_id, AuditRow.report).where(
        AuditRow.bundle_hash == bundle_hash, AuditRow.verdict == "alarm"
    )
    return tuple(
        f"audit {run_id[:8]}: {reason}"
        for run_id, said in db.execute(query.order_by(AuditRow.number).limit(1))
        for reason in said["alarms"]
    )


def _audit(row: AuditRow) -> Audit:
    report, state = Report.model_validate(row.report), Watched.model_validate(row.state)
    return Audit(row.run_id, row.at, row.workload, row.bundle_hash, report, state, row.usd)
