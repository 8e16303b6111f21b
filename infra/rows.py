"""The row path: what a tier answers to the rows of a chunk, streaming from Postgres through the wire and back."""

import asyncio
import gc
import sys
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from pydantic import JsonValue
from sqlalchemy.orm import Session

from domain.answers import Answer, settle
from domain.bundles import keeps
from domain.canonical import digest
from domain.confidences import LabelPrior
from domain.errors import ModelUnavailable
from domain.ledgers import Stage
from domain.prompts import PromptVersion
from domain.requests import Completion, Frame, Request, row_frame
from domain.schemas import OutputSchema
from domain.workloads import Tier, TierName
from infra.db.session import retried
from infra.db.store import answers as answer_store
from infra.db.store import calls as call_store
from infra.db.store import paging
from infra.db.store.answers import StoredAnswer
from infra.db.store.datasets import StoredRecord
from infra.deciding import decide, stored_answer
from infra.llm.ledgered import Answered, Call, Ledgered, open_ledgered
from infra.progress import Progress
from infra.settings import Settings

PAGE_ROWS = 500
"""Rows that are read, looked up and sent together."""
PAGE_KEYS = 5_000
"""Rows that are found, and taken over from earlier runs, together: of these only the keys are read."""
ALL_ROWS = 10_000_000
"""A page for engines that answer many together: a round of re-asks is one batch, whatever its size."""


@dataclass(frozen=True)
class Deployment:
    """One tier as it answers rows: model, prompt, prior, schema with its code, and re-ask rule."""

    name: TierName
    tier: Tier
    prompt: PromptVersion
    prior: LabelPrior
    schema: OutputSchema
    max_reasks: int
    code: str = ""

    @cached_property
    def frame(self) -> Frame:
        """What all requests have in common."""
        return row_frame(self.prompt.opening(), tier=self.tier, schema=self.schema)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that an answer and its price depend on beside the row; a changed renderer changes it
        too."""
        probe = Request(self.frame, self.prompt.question(dict.fromkeys(self.prompt.input_fields, "probe")))
        means: dict[str, JsonValue] = {**self.prior.means}
        prices: JsonValue = self.tier.usd_per_million.model_dump(mode="json")
        return digest([probe.hash, means, self.schema.decisive, self.max_reasks, self.code, prices])

    def request(self, row: StoredRecord) -> Request:
        """Exactly what is sent for a row."""
        return Request(self.frame, self.prompt.question(row.record.inputs))


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a run: positions `first` to `last` - 1 of a dataset version; the strong tier gets those not `kept`."""

    run_id: str
    version: str
    first: int
    last: int
    cascade: bool = False
    threshold: float | None = None

    def first_open(self, tier: TierName) -> int:
        """No row before this position is a tier's to answer any more."""
        strong = self.cascade and tier is TierName.STRONG
        return _first_open(self.run_id, tier, self.threshold if strong else None) if self.first else 0

    def wanted(self, tier: TierName) -> Callable[[paging.Unanswered], bool]:
        """Whether a tier is asked about a row."""
        if not self.cascade:
            return lambda row: True
        if tier is TierName.CHEAP:
            return lambda row: self.threshold is not None
        return lambda row: not keeps(row.cheap_confidence, self.threshold)


@dataclass(slots=True)
class Tally:
    """What a chunk came to; USD."""

    calls: int = 0
    cached: int = 0
    reused: int = 0
    reasks: int = 0
    failed: int = 0
    usd: float = 0.0
    models: set[str] = field(default_factory=set[str])


@contextmanager
def _calm_collector() -> Generator[None]:
    """Rows are freed by their reference counts; looking for cycles among them took a tenth of the time."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def generate(deployment: Deployment, rows: Rows, *, settings: Settings, progress: Progress) -> Tally:
    """Get an answer to every row: from an earlier run with the same deployment, from the ledger, or from the model.

    An answer that fails its schema is left for `validate`; a row whose request is refused is stored as a failed
    answer. Raises ModelUnavailable when no server answers any more, BudgetReached and RunCancelled; what had been
    answered by then is stored.
    """
    tally = Tally()
    if await asyncio.to_thread(rows.first_open, deployment.name) >= rows.last:
        return tally
    await asyncio.to_thread(_note_deployment, rows.run_id, deployment)

    def keep(db: Session, batch: Sequence[Answered]) -> None:
        answer_store.save_answers(db, rows.run_id, _settled(deployment, batch))

    def told(batch: Sequence[Answered]) -> None:
        tally.calls += sum(not a.cached for a in batch)
        tally.cached += sum(a.cached for a in batch)
        tally.failed += sum(a.completion is None for a in batch)
        tally.usd += sum(a.usd for a in batch)
        progress.advance(len(batch))
        progress.say()

    async def calls() -> AsyncGenerator[list[Call]]:
        async with aclosing(_pages(deployment, rows, limit=PAGE_KEYS)) as pages:
            async for page in pages:
                left = await asyncio.to_thread(_reuse, deployment, rows, page, tally)
                progress.advance(len(page) - len(left))
                for first in range(0, len(left), PAGE_ROWS):
                    records = await asyncio.to_thread(_load_records, rows, left[first : first + PAGE_ROWS])
                    yield [Call(deployment.request(record), record.key) for record in records]

    with _calm_collector():
        async with open_ledgered(rows.run_id, deployment.name, deployment.tier, settings) as ledgered:
            await ledgered.answer(calls(), stage=Stage.GENERATE, keep=keep, told=told)
    return tally


async def validate(deployment: Deployment, rows: Rows, *, settings: Settings, progress: Progress) -> Tally:
    """Re-ask through Instructor, about every row whose answer failed its schema, and store what it comes to."""
    tally = Tally()
    if await asyncio.to_thread(rows.first_open, deployment.name) >= rows.last:
        return tally
    async with (
        open_ledgered(rows.run_id, deployment.name, deployment.tier, settings) as ledgered,
        aclosing(_pages(deployment, rows, limit=PAGE_ROWS if ledgered.online else ALL_ROWS)) as pages,
    ):
        async for page in pages:
            wrong = await asyncio.to_thread(_load_wrong, deployment, rows, page)
            asking = [asyncio.ensure_future(_reask(ledgered, deployment, *item)) for item in wrong]
            try:
                for finished in asyncio.as_completed(asking):
                    stored = await finished
                    tally.reasks += stored.reasks
                    tally.failed += stored.failed is not None
                    await asyncio.to_thread(_save, rows.run_id, [stored])
                    progress.advance()
                    await asyncio.to_thread(progress.say)
            finally:
                for task in asking:
                    task.cancel()
                await asyncio.gather(*asking, return_exceptions=True)
    return tally


async def _pages(deployment: Deployment, rows: Rows, *, limit: int) -> AsyncGenerator[list[paging.Unanswered]]:
    """The rows of the chunk that this tier is asked about and has not answered, a page at a time."""
    wanted = rows.wanted(deployment.name)
    after = max(rows.first, await asyncio.to_thread(rows.first_open, deployment.name)) - 1
    while True:
        page = await asyncio.to_thread(_load_page, deployment, rows, after, limit)
        if not page:
            return
        after = page[-1].position
        yield [row for row in page if wanted(row)]


@lru_cache(maxsize=8)
def _first_open(run_id: str, tier: TierName, kept_from: float | None) -> int:
    """Asked once a process: a run's answers become more and never fewer, so what was true stays so."""
    first = retried(lambda db: paging.first_open(db, run_id, tier, kept_from=kept_from))
    return sys.maxsize if first is None else first


def _load_page(deployment: Deployment, rows: Rows, after: int, limit: int) -> list[paging.Unanswered]:
    def work(db: Session) -> list[paging.Unanswered]:
        return paging.load_unanswered(
            db, rows.run_id, deployment.name, after=after, last=rows.last, limit=limit, with_cheap=rows.cascade
        )

    return retried(work)


def _reuse(deployment: Deployment, rows: Rows, page: Sequence[paging.Unanswered], tally: Tally) -> list[str]:
    """Take over what earlier runs of this deployment answered; the keys of the rows that are left."""
    keys = [row.key for row in page]

    def work(db: Session) -> Collection[str]:
        return paging.reuse_answers(db, rows.run_id, deployment.name, deployment.fingerprint, keys)

    reused = retried(work)
    tally.reused += len(reused)
    return [key for key in keys if key not in reused] if reused else keys


def _load_records(rows: Rows, keys: Sequence[str]) -> list[StoredRecord]:
    return retried(lambda db: paging.load_records(db, rows.version, keys))


def _note_deployment(run_id: str, deployment: Deployment) -> None:
    retried(lambda db: paging.note_deployment(db, run_id, deployment.name, deployment.fingerprint))


def _settled(deployment: Deployment, batch: Iterable[Answered]) -> Iterator[StoredAnswer]:
    """The answers that need nothing more: valid ones, and those of rows that a server refused."""
    for answered in batch:
        completion, call = answered.completion, answered.call
        if completion is not None:
            answer = settle(completion, deployment.schema, deployment.prior)
            if answer.valid:
                used = [completion.usage]
                yield stored_answer(deployment, call.record_key, call.request.hash, answer, reasks=0, used=used)
        elif answered.error is not None and not isinstance(answered.error, ModelUnavailable):
            failed = Answer(output=None, confidence=None, reason=f"not answered: {answered.error.message}")
            yield stored_answer(deployment, call.record_key, call.request.hash, failed, reasks=0, used=[])


def _load_wrong(
    deployment: Deployment, rows: Rows, page: Sequence[paging.Unanswered]
) -> list[tuple[str, Request, Completion]]:
    """The completions of a page's rows; each of them failed its schema."""

    def work(db: Session) -> list[tuple[str, Request, Completion]]:
        records = paging.load_records(db, rows.version, [row.key for row in page])
        requests = {row.key: deployment.request(row) for row in records}
        known = call_store.load_completions(db, {request.hash for request in requests.values()})
        return [(key, request, known[request.hash]) for key, request in requests.items()]

    return retried(work)


async def _reask(
    ledgered: Ledgered, deployment: Deployment, key: str, request: Request, completion: Completion
) -> StoredAnswer:
    async def ask(again: Request) -> Completion:
        return await ledgered.ask(Call(again, key), stage=Stage.REASK)

    return await decide(deployment, key, request, completion, ask)


def _save(run_id: str, answers: Sequence[StoredAnswer]) -> None:
    retried(lambda db: answer_store.save_answers(db, run_id, answers))
