"""From the ledger's evidence to what Phoenix shows: experiment rows, and spans of a sampled share."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from domain.canonical import canonical, share
from domain.prompts import Message
from infra.db.store.evidence import Evidence
from infra.spans import LlmCall, SpanData, SpanKind, trace_id
from infra.tracing import AnnotatorKind, ExperimentRow, ScoreValue


def span_sample(evidence: Sequence[Evidence], *, run_id: str, share_of_rows: float) -> list[SpanData]:
    """Spans of a share of the rows, chosen by hash, so that every tier and every retry chooses the same rows."""
    chosen = [e for e in evidence if share(e.record_key, salt="headrace-spans") < share_of_rows]
    return [span for e in chosen for span in _spans(e, run_id)]


def experiment_rows(evidence: Sequence[Evidence], spans: Sequence[SpanData], *, run_id: str) -> list[ExperimentRow]:
    """One row an answer, linked to its trace where one is sent."""
    traced = {span.trace_key for span in spans}
    return [
        ExperimentRow(
            record_key=e.record_key,
            output=e.answer.output,
            error=e.answer.failed,
            started=e.started,
            ended=e.ended,
            trace_id=trace_id(key) if (key := _key(e, run_id)) in traced else None,
            scores=[_score(s.metric, s.value, s.label, s.explanation) for s in e.scores] + _confidence(e),
        )
        for e in evidence
    ]


def _key(e: Evidence, run_id: str) -> str:
    return f"{run_id}/{e.record_key}/{e.answer.tier}"


def _score(name: str, value: float, label: str | None, explanation: str | None) -> ScoreValue:
    kind = AnnotatorKind.LLM if name == "llm_judge" else AnnotatorKind.CODE
    return ScoreValue(name, value, label, explanation, kind)


def _confidence(e: Evidence) -> list[ScoreValue]:
    if e.answer.confidence is None:
        return []
    return [ScoreValue("confidence", e.answer.confidence, None, "margin of the calibrated label probabilities")]


def _spans(e: Evidence, run_id: str) -> list[SpanData]:
    """The row, and the call below it where there was one."""
    key = _key(e, run_id)
    facts: Mapping[str, str | int | float | bool] = {
        "headrace.run_id": run_id,
        "headrace.record_key": e.record_key,
        "headrace.record_id": e.record_id,
        "headrace.tier": e.answer.tier,
        "headrace.request_hash": e.answer.request_hash,
        "headrace.reasks": e.answer.reasks,
    }
    root = SpanData(
        name=f"row {e.answer.tier}",
        kind=SpanKind.CHAIN,
        key=key,
        trace_key=key,
        parent_key=None,
        started=e.started,
        ended=e.ended,
        input=canonical(e.inputs).decode(),
        output=canonical(e.answer.output).decode() if e.answer.output is not None else "",
        error=e.answer.failed,
        session=run_id,
        metadata=facts,
    )
    return [root] if e.request is None else [root, _chat(e, e.request, root)]


def _chat(e: Evidence, request: Mapping[str, Any], root: SpanData) -> SpanData:
    call = LlmCall(
        model=str(request["model"]),
        messages=cast(list[Message], request["messages"]),
        output=e.text,
        prompt_tokens=e.prompt_tokens,
        completion_tokens=e.completion_tokens,
        finish_reason=e.finish_reason,
    )
    return replace(
        root,
        name="chat",
        kind=SpanKind.LLM,
        key=f"{root.key}/chat",
        parent_key=root.key,
        input=canonical(request["messages"]).decode(),
        output=e.text,
        error=None,
        llm=call,
    )
