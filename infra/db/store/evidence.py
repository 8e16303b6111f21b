"""What is known of each answer of a run, in one look: for Phoenix, and for people."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from infra.db.store.answers import StoredAnswer, StoredScore, answer_of
from infra.db.tables import AnswerRow, AttemptRow, CompletionRow, FrameRow, RecordRow, RunRow, ScoreRow

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One tier's answer to one row with the call behind it; `request` is the body that was sent."""

    record_key: str
    record_id: str
    inputs: Json
    answer: StoredAnswer
    scores: tuple[StoredScore, ...]
    request: Json | None
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    started: datetime
    ended: datetime


def load_evidence(db: Session, run_id: str, tier: str) -> list[Evidence]:
    """A tier's answers in a run, in the dataset's order."""
    scores = _scores(db, run_id, tier)
    asked = select(AnswerRow.request_hash).where(AnswerRow.run_id == run_id, AnswerRow.tier == tier)
    seconds = (
        select(AttemptRow.request_hash, func.max(AttemptRow.seconds).label("seconds"))
        .where(~AttemptRow.cached, AttemptRow.request_hash.in_(asked))
        .group_by(AttemptRow.request_hash)
        .subquery()
    )
    query = (
        select(AnswerRow, RecordRow, CompletionRow, FrameRow.body, seconds.c.seconds, RunRow.started_at)
        .join(RunRow, RunRow.id == AnswerRow.run_id)
        .join(
            RecordRow,
            (RecordRow.key == AnswerRow.record_key) & (RecordRow.dataset_version == RunRow.dataset_version),
        )
        .outerjoin(CompletionRow, CompletionRow.request_hash == AnswerRow.request_hash)
        .outerjoin(FrameRow, FrameRow.hash == CompletionRow.frame_hash)
        .outerjoin(seconds, seconds.c.request_hash == AnswerRow.request_hash)
        .where(AnswerRow.run_id == run_id, AnswerRow.tier == tier)
        .order_by(RecordRow.ordinal)
    )
    return [
        _evidence(answer, record, completion, frame, took, begun, scores.get(record.key, ()))
        for answer, record, completion, frame, took, begun in db.execute(query)
    ]


def _scores(db: Session, run_id: str, tier: str) -> Mapping[str, tuple[StoredScore, ...]]:
    found: dict[str, tuple[StoredScore, ...]] = {}
    for row in db.scalars(select(ScoreRow).where(ScoreRow.run_id == run_id, ScoreRow.tier == tier)):
        score = StoredScore(row.record_key, row.tier, row.metric, row.value, row.label, row.explanation)
        found[row.record_key] = (*found.get(row.record_key, ()), score)
    return found


def _evidence(
    answer: AnswerRow,
    record: RecordRow,
    completion: CompletionRow | None,
    frame: Json | None,
    seconds: float | None,
    begun: datetime,
    scores: tuple[StoredScore, ...],
) -> Evidence:
    ended = completion.created_at if completion else begun
    return Evidence(
        record_key=record.key,
        record_id=record.record_id,
        inputs=record.inputs,
        answer=answer_of(answer),
        scores=scores,
        request={**frame, "messages": [*frame["messages"], completion.last_message]} if completion and frame else None,
        text=completion.text if completion else "",
        finish_reason=completion.finish_reason if completion else "",
        prompt_tokens=completion.prompt_tokens if completion else 0,
        completion_tokens=completion.completion_tokens if completion else 0,
        started=ended - timedelta(seconds=seconds or 0.0),
        ended=ended,
    )
