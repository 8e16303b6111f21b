"""One tier's answer to one row, made again from the ledger and compared with the one on record."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import cast

from pydantic import JsonValue

from domain.errors import ModelError
from domain.replays import Cause, Comparison, Kind
from domain.requests import Completion, Request
from infra.db.session import transaction
from infra.db.store import replays as store
from infra.db.store.answers import StoredAnswer
from infra.db.store.datasets import StoredRecord
from infra.db.store.replays import StoredCompletion
from infra.db.store.runs import RunRecord
from infra.deciding import decide
from infra.tiers import Deployment
from infra.workloads import LoadedWorkload


class LedgerGap(Exception):
    """A completion that the run must have had is not in the ledger."""


@dataclass(frozen=True, slots=True)
class Recording:
    """The completions that a run could know: those that came before it ended."""

    until: datetime | None

    def completions(self, hashes: Collection[str]) -> dict[str, StoredCompletion]:
        """The stored answers among these request hashes."""
        with transaction() as db:
            return store.load_completions(db, hashes, until=self.until)

    async def ask(self, request: Request) -> Completion:
        """A model that knows nothing but the ledger; raises LedgerGap."""
        known = self.completions([request.hash]).get(request.hash)
        if known is None:
            raise LedgerGap(request.hash)
        return known.completion

    async def ask_further(self, request: Request) -> Completion:
        """The same for a signal's own calls: what is not there was refused then, and the signal left out."""
        try:
            return await self.ask(request)
        except LedgerGap as gap:
            raise ModelError("it is not in the ledger") from gap


@dataclass(slots=True)
class Setting:
    """A replay under way; `cause` is what a divergence is put down to when its own inputs are intact."""

    run: RunRecord
    loaded: LoadedWorkload
    seen: Comparison
    recording: Recording
    cause: Cause
    notes: list[str] = field(default_factory=list[str])
    unproven: int = 0


@dataclass(frozen=True, slots=True)
class RowReplay:
    """Makes rows' answers again."""

    setting: Setting

    async def answer(
        self,
        deployment: Deployment,
        row: StoredRecord,
        recorded: StoredAnswer,
        known: Mapping[str, StoredCompletion],
        cause: Cause,
    ) -> StoredAnswer:
        """The answer that the recorded completions lead to today; the recorded one where they are gone."""
        what = f"{deployment.name.value}, {row.record.record_id} ({row.record.place})"
        if recorded.signals is None:
            deployment = replace(deployment, signals=())  # none were read then: it is of a time before there were any
        rendered = _render(deployment, row)
        asked = known.get(recorded.request_hash)
        if asked is None or asked.request is None:
            return self._without_completion(what, recorded, rendered, cause)
        first = asked.request if recorded.reasks == 0 else _first_of(asked.request, rendered)
        self._compare_requests(what, recorded, first, rendered, cause)
        try:
            completion = asked.completion if recorded.reasks == 0 else await self.setting.recording.ask(first)
        except LedgerGap:
            return self._gap(what, recorded)
        try:
            answer = await decide(
                deployment,
                row.key,
                first,
                completion,
                self.setting.recording.ask,
                ask_further=self.setting.recording.ask_further,
            )
        except LedgerGap:
            if recorded.output is None and recorded.reasks > 0:
                return self._gap(what, recorded)  # its re-ask was refused
            asks = "it fails its schema and is asked again, which this run never did"
            self.setting.seen.same(Kind.OUTPUTS, what, self._output(recorded), asks, cause=cause)
            return recorded
        self.setting.seen.same(Kind.OUTPUTS, what, self._output(recorded), self._output(answer), cause=cause)
        self.setting.seen.same(Kind.CONFIDENCES, what, self._decision(recorded), self._decision(answer), cause=cause)
        return answer

    def _compare_requests(
        self, what: str, recorded: StoredAnswer, first: Request, rendered: Request | None, cause: Cause
    ) -> None:
        """The messages, and the hash that the row was asked under beside that of what is stored as sent."""
        messages = _messages(rendered) if rendered else "the row lacks a field of the prompt"
        self.setting.seen.same(Kind.PROMPTS, what, _messages(first), messages, cause=cause)
        now = rendered.hash if rendered else None
        asked_under = recorded.request_hash if recorded.reasks == 0 else first.hash
        self.setting.seen.same(
            Kind.REQUESTS, what, {"asked": asked_under, "sent": first.hash}, {"asked": now, "sent": now}, cause=cause
        )

    def _without_completion(
        self, what: str, recorded: StoredAnswer, rendered: Request | None, cause: Cause
    ) -> StoredAnswer:
        if recorded.reasks == 0:
            self.setting.seen.same(
                Kind.REQUESTS, what, recorded.request_hash, rendered.hash if rendered else None, cause=cause
            )
        return self._gap(what, recorded)

    def _gap(self, what: str, recorded: StoredAnswer) -> StoredAnswer:
        """A refused row has no completion, and nothing to make its answer from; an answered one must have it."""
        if recorded.output is None:
            self.setting.unproven += 1
        else:
            self.setting.seen.same(Kind.OUTPUTS, what, recorded.output, "its completion is gone", cause=Cause.LEDGER)
        return recorded

    @property
    def _decisive(self) -> str:
        return self.setting.loaded.workload.decisive

    def _output(self, answer: StoredAnswer) -> JsonValue:
        output = answer.output
        free = None if output is None else {name: said for name, said in output.items() if name != self._decisive}
        return {
            "valid": output is not None,
            "output": cast(JsonValue, free),
            "failed": answer.failed,
            "reasks": answer.reasks,
            "request": answer.request_hash,
            "tokens": answer.tokens,
            "usd": answer.usd,
            "signal_usd": cast(JsonValue, answer.signal_usd),
        }

    def _decision(self, answer: StoredAnswer) -> JsonValue:
        label = (answer.output or {}).get(self._decisive)
        return {"label": label, "confidence": answer.confidence, "signals": cast(JsonValue, answer.signals)}


def _render(deployment: Deployment, row: StoredRecord) -> Request | None:
    try:
        return deployment.request(row)
    except KeyError:
        return None


def _first_of(asked: Request, rendered: Request | None) -> Request:
    """The request that a conversation began with: as many of its messages as the prompt has."""
    if rendered is None:
        return asked
    beginning = _messages(asked)[: len(_messages(rendered))]
    return Request.of({**asked.frame.body, "messages": beginning}, asked.revision)


def _messages(request: Request) -> list[JsonValue]:
    return [*cast(list[JsonValue], request.frame.body["messages"]), cast(JsonValue, request.last)]
