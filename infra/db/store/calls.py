"""Attempts and completions: what was asked, what it cost, what came back."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import ARRAY, String, func, literal, select
from sqlalchemy.orm import Session

from domain.ledgers import Attempt
from domain.prompts import Message
from domain.requests import Completion, Frame, Reading, Request, Usage
from infra.db.store.writing import add, copy_new
from infra.db.tables import AttemptRow, CompletionRow, FrameRow


def load_completions(db: Session, hashes: Collection[str]) -> dict[str, Completion]:
    """The stored answers among these request hashes."""
    if not hashes:
        return {}
    c = CompletionRow
    usage = (c.prompt_tokens, c.completion_tokens, c.cached_tokens)
    said = (c.request_hash, c.text, c.finish_reason, c.label_logprobs, c.fingerprint, c.readings)
    query = select(*said, *usage).where(
        c.sample_index == 0, c.request_hash == func.any(literal(list(hashes), ARRAY(String)))
    )
    return {
        key: Completion(key, text, reason, Usage(*tokens), logprobs, fingerprint, readings_of(readings))
        for key, text, reason, logprobs, fingerprint, readings, *tokens in db.execute(query)
    }


def readings_of(stored: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Reading] | None:
    """Readings as a completion has them, from the column; None where nobody had read them yet."""
    return None if stored is None else {field: Reading(**reading) for field, reading in stored.items()}


def _column(readings: Mapping[str, Reading] | None) -> dict[str, dict[str, float]] | None:
    """Readings as the column has them: what is not known is left out."""
    if readings is None:
        return None
    return {
        field: {"logprob": r.logprob, "least": r.least, "tokens": r.tokens}
        | ({} if r.allowed is None else {"allowed": r.allowed})
        for field, r in readings.items()
    }


def load_request(db: Session, request_hash: str) -> Request:
    """The request behind a stored answer, as it was sent."""
    frame, last = db.execute(
        select(FrameRow, CompletionRow.last_message)
        .join(FrameRow, FrameRow.hash == CompletionRow.frame_hash)
        .where(CompletionRow.request_hash == request_hash)
    ).one()
    return Request(Frame(frame.body, frame.revision), cast(Message, last))


def save_completions(db: Session, answers: Sequence[tuple[Request, Completion]]) -> None:
    """Keep answers for ever; the first answer to a request stays."""
    frames = {request.frame.hash: request.frame for request, _ in answers}
    add(db, FrameRow, ({"hash": key, "body": f.body, "revision": f.revision} for key, f in frames.items()))
    copy_new(
        db,
        CompletionRow,
        (
            {
                "request_hash": request.hash,
                "sample_index": 0,
                "model": request.model,
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "label_logprobs": completion.label_logprobs,
                "readings": _column(completion.readings),
                "prompt_tokens": completion.usage.prompt,
                "completion_tokens": completion.usage.completion,
                "cached_tokens": completion.usage.cached,
                "fingerprint": completion.fingerprint,
                "frame_hash": request.frame.hash,
                "last_message": request.last,
            }
            for request, completion in answers
        ),
    )


def save_attempts(db: Session, run_id: str, attempts: Iterable[Attempt]) -> None:
    """Record calls; repeating a record changes nothing."""
    copy_new(
        db,
        AttemptRow,
        (
            {
                "attempt_id": attempt.attempt_id,
                "run_id": run_id,
                "stage": attempt.stage,
                "tier": attempt.tier,
                "record_key": attempt.record_key,
                "request_hash": attempt.request_hash,
                "number": attempt.number,
                "cached": attempt.cached,
                "prompt_tokens": attempt.usage.prompt,
                "completion_tokens": attempt.usage.completion,
                "cached_tokens": attempt.usage.cached,
                "seconds": attempt.seconds,
                "usd": attempt.usd,
                "worker": attempt.worker,
                "outcome": attempt.outcome,
                "detail": attempt.detail,
            }
            for attempt in attempts
        ),
    )


@dataclass(frozen=True, slots=True)
class Spending:
    """What a run spent at one server, for one stage, and what the ledger spared it; money in USD, tokens paid for."""

    stage: str
    tier: str
    worker: str
    calls: int
    cached: int
    usage: Usage
    usd: float
    spared_usd: float


def spending(db: Session, run_id: str) -> list[Spending]:
    """A run's calls by stage, tier and server."""
    a = AttemptRow
    rows = db.execute(
        select(
            a.stage,
            a.tier,
            a.worker,
            func.count().filter(~a.cached),
            func.count().filter(a.cached),
            *(
                func.coalesce(func.sum(tokens).filter(~a.cached), 0)
                for tokens in (a.prompt_tokens, a.completion_tokens, a.cached_tokens)
            ),
            func.coalesce(func.sum(a.usd).filter(~a.cached), 0.0),
            func.coalesce(func.sum(a.usd).filter(a.cached), 0.0),
        )
        .where(a.run_id == run_id)
        .group_by(a.stage, a.tier, a.worker)
        .order_by(a.stage, a.tier, a.worker)
    )
    return [Spending(*r[:5], Usage(int(r[5]), int(r[6]), int(r[7])), float(r[8]), float(r[9])) for r in rows]
