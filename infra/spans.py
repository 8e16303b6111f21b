"""Spans in Phoenix with ids that follow from their keys, so that sending them again adds nothing.

Phoenix acknowledges spans before it stores them and forgets its queue when it is killed: `missing` tells what has to
be sent again. A span that exists already makes it refuse a whole batch: it names them, and the others are sent alone.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from http import HTTPStatus
from urllib.parse import quote

from httpx import HTTPStatusError
from phoenix.client import Client
from phoenix.client.__generated__ import v1
from phoenix.client.exceptions import SpanCreationError

from domain.prompts import Message
from infra.tracing import opened

PAYLOAD_BYTES = 64 * 1024
_BATCH = 100
_TIMEOUT_S = 60


class SpanKind(StrEnum):
    """OpenInference's kinds that Headrace uses."""

    CHAIN = "CHAIN"
    LLM = "LLM"
    EVALUATOR = "EVALUATOR"


@dataclass(frozen=True, slots=True)
class LlmCall:
    """What an LLM span says about its call."""

    model: str
    messages: Sequence[Message]
    output: str | None
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class SpanData:
    """One span. Its id follows from `key`, its trace's id from `trace_key`; times carry a timezone."""

    name: str
    kind: SpanKind
    key: str
    trace_key: str
    parent_key: str | None
    started: datetime
    ended: datetime
    input: str = ""
    output: str = ""
    error: str | None = None
    llm: LlmCall | None = None
    session: str | None = None
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict[str, str | int | float | bool])


def span_id(key: str) -> str:
    """The span id of a key: 16 hex digits."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def trace_id(trace_key: str) -> str:
    """The trace id of a key: 32 hex digits."""
    return hashlib.sha256(trace_key.encode()).hexdigest()[:32]


def export(spans: Sequence[SpanData], *, project: str) -> int:
    """Send the spans that Phoenix does not hold yet; returns how many were new to it.

    Raises TraceStoreError when Phoenix cannot be reached, is at capacity or refuses.
    """
    sent = 0
    unique = list({span.key: span for span in spans}.values())
    with opened("take spans") as client:
        for start in range(0, len(unique), _BATCH):
            sent += _send(client, [_wire(span) for span in unique[start : start + _BATCH]], project)
    return sent


def missing(span_ids: Sequence[str], *, project: str) -> set[str]:
    """The ids that Phoenix does not show (yet: it stores about 50 spans a second after acknowledging them).

    Raises TraceStoreError when Phoenix cannot be reached or refuses.
    """
    wanted = list(dict.fromkeys(span_ids))
    left = set(wanted)
    with opened("list spans") as client:
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            try:
                found = client.spans.get_spans(
                    project_identifier=quote(project, safe=""), span_ids=batch, limit=len(batch), timeout=_TIMEOUT_S
                )
            except HTTPStatusError as error:
                if error.response.status_code == HTTPStatus.NOT_FOUND:  # the first span makes the project
                    return left
                raise
            left.difference_update(span["context"]["span_id"] for span in found)
    return left


def _send(client: Client, spans: list[v1.Span], project: str) -> int:
    """Asking first would cost a request that usually finds nothing; the refusal answers the same question."""
    while spans:
        try:
            client.spans.log_spans(project_identifier=quote(project, safe=""), spans=spans, timeout=_TIMEOUT_S)
            break
        except SpanCreationError as error:
            known = {duplicate["span_id"] for duplicate in error.duplicate_spans}
            if error.invalid_spans or not known:
                raise
            spans = [span for span in spans if span["context"]["span_id"] not in known]
    return len(spans)


def _wire(span: SpanData) -> v1.Span:
    wire: v1.Span = {
        "name": span.name,
        "context": {"trace_id": trace_id(span.trace_key), "span_id": span_id(span.key)},
        "span_kind": span.kind.value,
        "start_time": span.started.isoformat(),
        "end_time": span.ended.isoformat(),
        "status_code": "ERROR" if span.error else "OK",
        "status_message": cut(span.error or ""),
        "attributes": dict(_attributes(span)),
    }
    if span.parent_key is not None:
        wire["parent_id"] = span_id(span.parent_key)
    return wire


def _attributes(span: SpanData) -> Iterator[tuple[str, str | int | float | bool]]:
    """OpenInference attributes by their flat names."""
    if span.input:
        yield "input.value", cut(span.input)
        yield "input.mime_type", _mime_type(span.input)
    if span.output:
        yield "output.value", cut(span.output)
        yield "output.mime_type", _mime_type(span.output)
    if span.session:
        yield "session.id", span.session
    if span.llm:
        yield from _llm_attributes(span.llm)
    for name, value in span.metadata.items():
        yield f"metadata.{name}", cut(value) if isinstance(value, str) else value


def _llm_attributes(call: LlmCall) -> Iterator[tuple[str, str | int]]:
    yield "llm.model_name", call.model
    yield "llm.token_count.prompt", call.prompt_tokens
    yield "llm.token_count.completion", call.completion_tokens
    yield "llm.token_count.total", call.prompt_tokens + call.completion_tokens
    if call.finish_reason:
        yield "llm.finish_reason", call.finish_reason
    for number, message in enumerate(call.messages):
        yield f"llm.input_messages.{number}.message.role", message["role"]
        yield f"llm.input_messages.{number}.message.content", cut(message["content"])
    if call.output is not None:
        yield "llm.output_messages.0.message.role", "assistant"
        yield "llm.output_messages.0.message.content", cut(call.output)


def _mime_type(text: str) -> str:
    return "application/json" if text[:1] in ("{", "[") else "text/plain"


def cut(text: str) -> str:
    """Text of at most 64 KiB as UTF-8, with a note where something was left out."""
    raw = text.encode(errors="replace")
    if len(raw) <= PAYLOAD_BYTES:
        return text
    note = f" [cut: {len(raw):,} bytes in all]"
    return raw[: PAYLOAD_BYTES - len(note)].decode(errors="ignore") + note
