"""What the tiers say to a run's rows, and what becomes of each row: an outcome, or quarantine with a reason."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from domain.errors import Place
from domain.ledgers import OutcomeClass
from domain.outcomes import Outcome, TierAnswer, Unanswered
from domain.workloads import TierName
from infra.db.store.writing import copy_over, put
from infra.db.tables import (
    AnswerRow,
    AttemptRow,
    CompletionRow,
    OutcomeRow,
    QuarantinedRow,
    RecordRow,
    RunRow,
    ScoreRow,
)

Json = dict[str, Any]
PAID_FOR = (OutcomeClass.ANSWERED, OutcomeClass.TRUNCATED)
"""How an attempt ends that leaves a completion."""


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """One tier's answer to one row; tokens and `usd` (list price) are of every call that led to it, `signal_usd` the
    part of that which signals with calls of their own took."""

    record_key: str
    tier: str
    request_hash: str
    output: Json | None
    confidence: float | None
    reasks: int
    tokens: int
    usd: float
    failed: str | None
    signals: dict[str, float] | None = None
    signal_usd: dict[str, float] | None = None

    def as_tier_answer(self) -> TierAnswer:
        """The answer as the router looks at it."""
        return TierAnswer(
            self.output,
            self.confidence,
            tokens=self.tokens,
            usd=self.usd,
            failed=self.failed,
            signals=self.signals or {},
            signal_usd=self.signal_usd or {},
        )


@dataclass(frozen=True, slots=True)
class StoredQuarantine:
    """A row that could not be answered."""

    record_key: str
    stage: str
    place: Place
    reason: str


@dataclass(frozen=True, slots=True)
class StoredScore:
    """A metric's value, in [0, 1] for quality."""

    record_key: str
    tier: str
    metric: str
    value: float
    label: str | None = None
    explanation: str | None = None


def save_answers(db: Session, run_id: str, answers: Iterable[StoredAnswer]) -> None:
    """Store answers; a later one to the same row replaces the earlier."""
    copy_over(db, AnswerRow, ({"run_id": run_id, **_columns(answer)} for answer in answers))


def load_answers(db: Session, run_id: str, tier: str) -> dict[str, StoredAnswer]:
    """A tier's answers in a run, by record key."""
    rows = db.scalars(select(AnswerRow).where(AnswerRow.run_id == run_id, AnswerRow.tier == tier))
    return {row.record_key: answer_of(row) for row in rows}


def answer_of(row: AnswerRow) -> StoredAnswer:
    """A row of the table as the rest of the program knows it."""
    return StoredAnswer(
        row.record_key,
        row.tier,
        row.request_hash,
        row.output,
        row.confidence,
        row.reasks,
        row.tokens,
        row.usd,
        row.failed,
        row.signals,
        row.signal_usd,
    )


def save_settled(db: Session, run_id: str, dataset_version: str, settled: Sequence[Outcome | Unanswered]) -> None:
    """Store what became of rows: outcomes, and quarantine for those that nobody could answer."""
    copy_over(
        db,
        OutcomeRow,
        (
            {
                "run_id": run_id,
                "record_key": o.key,
                "tier": o.tier,
                "output": o.output,
                "confidence": o.confidence,
                "escalated": o.escalated,
                "usd": o.usd,
            }
            for o in settled
            if isinstance(o, Outcome)
        ),
    )
    unanswered = [o for o in settled if isinstance(o, Unanswered)]
    where = places(db, dataset_version, [row.key for row in unanswered])
    save_quarantine(db, run_id, (StoredQuarantine(u.key, "validate", where[u.key], u.reason) for u in unanswered))


def load_outcomes(db: Session, run_id: str) -> list[Outcome]:
    """The final answers of a run."""
    return [
        Outcome(row.record_key, TierName(row.tier), row.output, row.confidence, escalated=row.escalated, usd=row.usd)
        for row in db.scalars(select(OutcomeRow).where(OutcomeRow.run_id == run_id))
    ]


def save_quarantine(db: Session, run_id: str, rows: Iterable[StoredQuarantine]) -> None:
    """Put rows into quarantine."""
    put(
        db,
        QuarantinedRow,
        (
            {
                "run_id": run_id,
                "record_key": row.record_key,
                "stage": row.stage,
                "file": row.place.file,
                "line": row.place.line,
                "field": row.place.field,
                "reason": row.reason,
            }
            for row in rows
        ),
    )


def load_quarantine(db: Session, run_id: str) -> list[StoredQuarantine]:
    """The quarantine of a run, by file and line."""
    query = (
        select(QuarantinedRow)
        .where(QuarantinedRow.run_id == run_id)
        .order_by(QuarantinedRow.file, QuarantinedRow.line, QuarantinedRow.record_key)
    )
    return [
        StoredQuarantine(row.record_key, row.stage, Place(row.file, row.line, field=row.field), row.reason)
        for row in db.scalars(query)
    ]


def save_scores(db: Session, run_id: str, scores: Iterable[StoredScore]) -> None:
    """Store scores."""
    put(db, ScoreRow, ({"run_id": run_id, **_columns(score)} for score in scores))


def load_scores(db: Session, run_id: str, tier: str, metric: str) -> dict[str, float]:
    """One metric's values of one tier, by record key."""
    query = select(ScoreRow.record_key, ScoreRow.value).where(
        ScoreRow.run_id == run_id, ScoreRow.tier == tier, ScoreRow.metric == metric
    )
    return dict(db.execute(query).tuples().all())


def places(db: Session, dataset_version: str, keys: Sequence[str]) -> dict[str, Place]:
    """Where these records of a snapshot stand in their file."""
    query = select(RecordRow.key, RecordRow.file, RecordRow.line).where(
        RecordRow.dataset_version == dataset_version, RecordRow.key.in_(keys)
    )
    return {key: Place(file, line) for key, file, line in db.execute(query)} if keys else {}


def _columns(value: StoredAnswer | StoredScore) -> Json:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def payers(db: Session, run_id: str, tier: str) -> set[str | None]:
    """The runs that paid for a run's answers: itself, or earlier ones of the same workload; None for any other."""
    workload = select(RunRow.workload).where(RunRow.id == run_id).scalar_subquery()
    paid = (
        select(AttemptRow.request_hash, AttemptRow.run_id)
        .join(RunRow, RunRow.id == AttemptRow.run_id)
        .where(RunRow.workload == workload, ~AttemptRow.cached, AttemptRow.outcome.in_(PAID_FOR))
        .subquery()
    )
    query = select(paid.c.run_id).select_from(AnswerRow)
    query = query.join(CompletionRow, CompletionRow.request_hash == AnswerRow.request_hash)  # what was refused has none
    query = query.outerjoin(paid, paid.c.request_hash == AnswerRow.request_hash)
    return set(db.scalars(query.where(AnswerRow.run_id == run_id, AnswerRow.tier == tier).distinct()))


def fingerprints(db: Session, run_id: str, tier: str) -> set[str | None]:
    """The different system fingerprints of a run's answers."""
    query = select(CompletionRow.fingerprint).join(AnswerRow, AnswerRow.request_hash == CompletionRow.request_hash)
    return set(db.scalars(query.where(AnswerRow.run_id == run_id, AnswerRow.tier == tier).distinct()))
