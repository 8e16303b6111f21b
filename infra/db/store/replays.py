"""What a past run decided and what it decided on, a page of rows at a time."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from domain.datasets import BadRow
from domain.errors import Place
from domain.outcomes import Outcome
from domain.prompts import Message
from domain.requests import Completion, Frame, Request, Usage
from domain.workloads import TierName
from infra.db.bundle_tables import BundleRow, PromotionRow
from infra.db.store.answers import StoredAnswer, StoredScore, answer_of
from infra.db.store.calls import readings_of
from infra.db.store.datasets import StoredRecord, stored_record
from infra.db.tables import (
    AnswerRow,
    BadRowRow,
    CompletionRow,
    DatasetVersionRow,
    FrameRow,
    OutcomeRow,
    PromptVersionRow,
    QuarantinedRow,
    RecordRow,
    ScoreRow,
)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredCompletion:
    """An answer with what the ledger says was asked; `request` is None when its frame is gone."""

    completion: Completion
    request: Request | None


@dataclass(frozen=True, slots=True)
class StoredPrompt:
    """A prompt version as it stands in the ledger, unread."""

    compile_key: str
    hash: str
    body: Json
    prior: dict[str, float]


def load_page(db: Session, version: str, *, after: int, limit: int) -> list[StoredRecord]:
    """The next records of a snapshot, of every split, whose ordinal is above `after`."""
    query = (
        select(RecordRow)
        .where(RecordRow.dataset_version == version, RecordRow.ordinal > after)
        .order_by(RecordRow.ordinal)
        .limit(limit)
    )
    return [stored_record(row) for row in db.scalars(query)]


def load_sizes(db: Session, version: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Records and bad rows of a snapshot, as it says and as they are."""
    said = db.execute(
        select(DatasetVersionRow.records, DatasetVersionRow.bad_rows).where(DatasetVersionRow.hash == version)
    ).one()
    there = [
        db.scalar(select(func.count()).select_from(table).where(table.dataset_version == version)) or 0
        for table in (RecordRow, BadRowRow)
    ]
    return (said[0], said[1]), (there[0], there[1])


def load_bad_rows(db: Session, version: str) -> list[tuple[str, BadRow]]:
    """The bad rows of a snapshot with the keys they are stored under."""
    rows = db.scalars(select(BadRowRow).where(BadRowRow.dataset_version == version))
    return [(row.key, BadRow(Place(row.file, row.line, field=row.field), row.reason, row.excerpt)) for row in rows]


def load_prompts(db: Session, workload: str, tier: str, prompt_hash: str) -> list[StoredPrompt]:
    """What was compiled for a tier under this hash, the newest first."""
    query = (
        select(PromptVersionRow)
        .where(
            PromptVersionRow.hash == prompt_hash, PromptVersionRow.workload == workload, PromptVersionRow.tier == tier
        )
        .order_by(PromptVersionRow.created_at.desc())
    )
    return [StoredPrompt(row.compile_key, row.hash, row.body, row.report["prior"]) for row in db.scalars(query)]


def load_bundle_body(db: Session, bundle_hash: str) -> Json | None:
    """A bundle as it stands in the ledger, unread."""
    return db.scalar(select(BundleRow.body).where(BundleRow.hash == bundle_hash))


def load_promotion(db: Session, run_id: str) -> tuple[bool, list[str]] | None:
    """What the gate decided in a run."""
    row = db.scalar(select(PromotionRow).where(PromotionRow.run_id == run_id))
    return (row.passed, row.reasons["reasons"]) if row else None


def load_completions(
    db: Session, hashes: Collection[str], *, until: datetime | None = None
) -> dict[str, StoredCompletion]:
    """The answers to these requests that came until a moment; later ones were not the run's to know."""
    query = (
        select(CompletionRow, FrameRow)
        .outerjoin(FrameRow, FrameRow.hash == CompletionRow.frame_hash)
        .where(CompletionRow.request_hash.in_(list(hashes)), CompletionRow.sample_index == 0)
    )
    if until is not None:
        query = query.where(CompletionRow.created_at <= until)
    frames: dict[str, Frame] = {}  # one for all rows that share it, so that it is hashed once
    found: dict[str, StoredCompletion] = {}
    for row, stored in db.execute(query).tuples():
        frame = frames.setdefault(stored.hash, Frame(stored.body, stored.revision)) if stored else None
        request = Request(frame, cast(Message, row.last_message)) if frame else None
        found[row.request_hash] = StoredCompletion(_completion(row), request)
    return found


def _completion(row: CompletionRow) -> Completion:
    return Completion(
        request_hash=row.request_hash,
        text=row.text,
        finish_reason=row.finish_reason,
        usage=Usage(row.prompt_tokens, row.completion_tokens, row.cached_tokens),
        label_logprobs=row.label_logprobs,
        fingerprint=row.fingerprint,
        readings=readings_of(row.readings),
    )


def load_answers(db: Session, run_id: str, keys: Collection[str]) -> dict[tuple[str, str], StoredAnswer]:
    """Answers of a run to these rows, by tier and record key."""
    rows = db.scalars(select(AnswerRow).where(AnswerRow.run_id == run_id, AnswerRow.record_key.in_(list(keys))))
    return {(row.tier, row.record_key): answer_of(row) for row in rows}


def load_scores(db: Session, run_id: str, keys: Collection[str]) -> dict[tuple[str, str, str], StoredScore]:
    """Scores of a run of these rows, by tier, record key and metric."""
    rows = db.scalars(select(ScoreRow).where(ScoreRow.run_id == run_id, ScoreRow.record_key.in_(list(keys))))
    return {
        (row.tier, row.record_key, row.metric): StoredScore(
            row.record_key, row.tier, row.metric, row.value, row.label, row.explanation
        )
        for row in rows
    }


def load_settled(db: Session, run_id: str, keys: Collection[str]) -> dict[str, Outcome | str]:
    """What became of these rows: an outcome, or the reason of its quarantine."""
    chosen = list(keys)
    refused = db.execute(
        select(QuarantinedRow.record_key, QuarantinedRow.reason).where(
            QuarantinedRow.run_id == run_id, QuarantinedRow.record_key.in_(chosen)
        )
    )
    settled: dict[str, Outcome | str] = dict(refused.tuples().all())
    for row in db.scalars(select(OutcomeRow).where(OutcomeRow.run_id == run_id, OutcomeRow.record_key.in_(chosen))):
        settled[row.record_key] = Outcome(
            row.record_key, TierName(row.tier), row.output, row.confidence, escalated=row.escalated, usd=row.usd
        )
    return settled


def count_settled(db: Session, run_id: str) -> int:
    """Outcomes of a run, and rows of it that no tier could answer."""
    outcomes = db.scalar(select(func.count()).select_from(OutcomeRow).where(OutcomeRow.run_id == run_id))
    refused = select(func.count()).select_from(QuarantinedRow).where(QuarantinedRow.run_id == run_id)
    return (outcomes or 0) + (db.scalar(refused.where(QuarantinedRow.stage != "snapshot")) or 0)


def answered_keys(db: Session, run_id: str) -> Iterator[str]:
    """Keys of the rows that any tier answered in a run, one after the other."""
    query = select(AnswerRow.record_key).where(AnswerRow.run_id == run_id).distinct()
    yield from db.scalars(query.execution_options(yield_per=5000))
