"""The row path: render, look up, send, validate, re-ask, store, for a chunk of rows at one tier."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from domain.answers import Answer, settle
from domain.confidences import LabelPrior
from domain.costs import usd
from domain.errors import ModelError, ModelUnavailable
from domain.ledgers import Stage
from domain.prompts import PromptVersion
from domain.requests import Completion, Request, Usage, row_request
from domain.schemas import Invalid, OutputSchema, check
from domain.workloads import Tier, TierName
from infra.db.session import transaction
from infra.db.store import answers as answer_store
from infra.db.store import calls as call_store
from infra.db.store.answers import StoredAnswer
from infra.db.store.datasets import StoredRecord
from infra.llm.ledgered import Call, Ledgered, open_ledgered
from infra.progress import Progress
from infra.settings import Settings


@dataclass(frozen=True, slots=True)
class Deployment:
    """One tier as it answers rows: model, prompt, prior, schema and re-ask rule."""

    name: TierName
    tier: Tier
    prompt: PromptVersion
    prior: LabelPrior
    schema: OutputSchema
    max_reasks: int

    def request(self, row: StoredRecord) -> Request:
        """Exactly what is sent for a row."""
        return row_request(self.prompt.render(row.record.inputs), tier=self.tier, schema=self.schema)


@dataclass(slots=True)
class Tally:
    """What a chunk came to."""

    rows: int = 0
    calls: int = 0
    cached: int = 0
    reasks: int = 0
    failed: int = 0
    usd: float = 0.0


async def generate(
    run_id: str, deployment: Deployment, rows: Sequence[StoredRecord], *, settings: Settings, progress: Progress
) -> Tally:
    """Get a completion for every row, from the ledger or the wire.

    A row whose request is refused for what it says is stored as a failed answer; raises ModelUnavailable
    when the server is gone, and then every answer that came is already stored.
    """
    tally = Tally(rows=len(rows))
    calls = [Call(deployment.request(row), row.key) for row in rows]
    async with (
        open_ledgered(run_id, deployment.name, deployment.tier, settings) as ledgered,
        aclosing(ledgered.answer(calls, stage=Stage.GENERATE)) as answers,
    ):
        async for answered in answers:
            if isinstance(answered.error, ModelUnavailable):
                raise answered.error
            if answered.error is not None:
                tally.failed += 1
                failed = _failed(deployment, answered.call, answered.error.message)
                await asyncio.to_thread(_save, run_id, [failed])
            tally.calls += not answered.cached
            tally.cached += answered.cached
            tally.usd += answered.usd
            progress.advance()
            await asyncio.to_thread(progress.say)
    return tally


async def validate(
    run_id: str, deployment: Deployment, rows: Sequence[StoredRecord], *, settings: Settings, progress: Progress
) -> Tally:
    """Validate every completion, re-ask those that fail through Instructor, and store each row's answer."""
    tally = Tally(rows=len(rows))
    requests = {row.key: deployment.request(row) for row in rows}
    with transaction() as db:
        known = call_store.load_completions(db, {request.hash for request in requests.values()})
    done: list[StoredAnswer] = []
    wrong: list[tuple[str, Request, Completion]] = []
    for key, request in requests.items():
        completion = known.get(request.hash)
        if completion is None:
            tally.failed += 1  # refused while generating; its failed answer is stored already
            progress.advance()
        elif isinstance(check(completion.text, completion.finish_reason, deployment.schema), Invalid):
            wrong.append((key, request, completion))
        else:
            answer = settle(completion, deployment.schema, deployment.prior)
            done.append(_stored(deployment, key, request.hash, answer, reasks=0, used=[completion.usage]))
            progress.advance()
    await asyncio.to_thread(_save, run_id, done)
    async with open_ledgered(run_id, deployment.name, deployment.tier, settings) as ledgered:
        for finished in asyncio.as_completed([_reask(ledgered, deployment, *item) for item in wrong]):
            stored = await finished
            tally.reasks += stored.reasks
            tally.failed += stored.failed is not None
            await asyncio.to_thread(_save, run_id, [stored])
            progress.advance()
            await asyncio.to_thread(progress.say)
    return tally


async def _reask(
    ledgered: Ledgered, deployment: Deployment, key: str, request: Request, completion: Completion
) -> StoredAnswer:
    from infra.llm.reask import reask  # Instructor takes seconds to import; most chunks never need it

    used = [completion.usage]

    async def ask(again: Request) -> Completion:
        answer = await ledgered.ask(Call(again, key), stage=Stage.REASK)
        used.append(answer.usage)
        return answer

    try:
        reasked = await reask(
            request=request,
            completion=completion,
            schema=deployment.schema,
            max_reasks=deployment.max_reasks,
            ask=ask,
        )
    except ModelUnavailable:
        raise
    except ModelError as error:
        failed = Answer(output=None, confidence=None, reason=f"the re-ask was refused: {error.message}")
        return _stored(deployment, key, request.hash, failed, reasks=1, used=used)
    answer = settle(reasked.completion, deployment.schema, deployment.prior)
    return _stored(deployment, key, reasked.request_hash, answer, reasks=reasked.reasks, used=used)


def _stored(
    deployment: Deployment, key: str, request_hash: str, answer: Answer, *, reasks: int, used: Sequence[Usage]
) -> StoredAnswer:
    return StoredAnswer(
        record_key=key,
        tier=deployment.name,
        request_hash=request_hash,
        output=answer.output,
        confidence=answer.confidence,
        reasks=reasks,
        tokens=sum(usage.prompt + usage.completion for usage in used),
        usd=sum(usd(usage, deployment.tier.usd_per_million) for usage in used),
        failed=None if answer.valid else answer.reason,
    )


def _failed(deployment: Deployment, call: Call, reason: str) -> StoredAnswer:
    answer = Answer(output=None, confidence=None, reason=f"refused by the server: {reason}")
    return _stored(deployment, call.record_key, call.request.hash, answer, reasks=0, used=[])


def _save(run_id: str, answers: Sequence[StoredAnswer]) -> None:
    with transaction() as db:
        answer_store.save_answers(db, run_id, answers)
