"""The row path: what a tier answers to the rows of a chunk, streaming from Postgres through the wire and back."""

import asyncio
import gc
import sys
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial

from sqlalchemy.orm import Session

from domain.bundles import keeps
from domain.errors import ModelUnavailable
from domain.ledgers import Stage
from domain.workloads import TierName
from infra.conversations import answer_further, load_wrong, reask
from infra.db.session import retried
from infra.db.store import answers as answer_store
from infra.db.store import paging
from infra.db.store.answers import StoredAnswer
from infra.db.store.datasets import StoredRecord
from infra.deciding import reached_at_once, refused_answer, skipped_answer, stored_answer
from infra.llm.ledgered import Answered, Call, open_ledgered
from infra.progress import Progress
from infra.settings import Settings
from infra.tiers import Deployment

PAGE_ROWS = 500
"""Rows that are read, looked up and sent together."""
PAGE_KEYS = 5_000
"""Rows that are found, and taken over from earlier runs, together: of these only the keys are read."""
ALL_ROWS = 10_000_000
"""A page for engines that answer many together: a round of re-asks is one batch, whatever its size."""


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
                    yield await asyncio.to_thread(_asked, deployment, rows, records, progress)

    with _calm_collector():
        async with open_ledgered(rows.run_id, deployment.name, deployment.tier, settings) as ledgered:
            await ledgered.answer(calls(), stage=Stage.GENERATE, keep=keep, told=told)
    return tally


async def validate(deployment: Deployment, rows: Rows, *, settings: Settings, progress: Progress) -> Tally:
    """Re-ask through Instructor, about every row whose answer failed its schema, and store what it comes to.

    Where signals need further answers, those of every valid answer are asked here too, and it is stored with them.
    Raises as `generate` does.
    """
    tally = Tally()
    if await asyncio.to_thread(rows.first_open, deployment.name) >= rows.last:
        return tally

    def keep(stored: Sequence[StoredAnswer]) -> None:
        _save(rows.run_id, stored)
        tally.failed += sum(answer.failed is not None for answer in stored)
        progress.advance(len(stored))
        progress.say()

    async with open_ledgered(rows.run_id, deployment.name, deployment.tier, settings) as ledgered:
        limit = PAGE_ROWS if ledgered.online else ALL_ROWS
        async with aclosing(_pages(deployment, rows, limit=limit)) as pages:
            async for page in pages:
                wrong = await asyncio.to_thread(load_wrong, deployment, rows, page)
                asking = [asyncio.ensure_future(reask(ledgered, deployment, first)) for first in wrong]
                try:
                    for finished in asyncio.as_completed(asking):
                        first, reached = await finished
                        tally.reasks += reached.reasks
                        if not (deployment.asks_further and reached.answer.valid):
                            await asyncio.to_thread(keep, [stored_answer(deployment, first.key, reached)])
                finally:
                    for task in asking:
                        task.cancel()
                    await asyncio.gather(*asking, return_exceptions=True)
        if deployment.asks_further:
            left = partial(_pages, deployment, rows, limit=PAGE_KEYS)
            await answer_further(ledgered, deployment, rows, left, keep=keep)
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


def _asked(deployment: Deployment, rows: Rows, records: Sequence[StoredRecord], progress: Progress) -> list[Call]:
    """The calls that rows need; those that skip this tier are settled at once."""
    calls = [Call(deployment.request(record), record.key) for record in records]
    if deployment.routing.straight_from is None:
        return calls
    skipped = [call for call in calls if deployment.skips(call.request)]
    if skipped:
        _save(rows.run_id, [skipped_answer(deployment, call.record_key, call.request) for call in skipped])
        progress.advance(len(skipped))
    return [call for call in calls if not deployment.skips(call.request)]


def _note_deployment(run_id: str, deployment: Deployment) -> None:
    retried(lambda db: paging.note_deployment(db, run_id, deployment.name, deployment.fingerprint))


def _settled(deployment: Deployment, batch: Iterable[Answered]) -> Iterator[StoredAnswer]:
    """The answers that need nothing more: valid ones, and those of rows that a server refused."""
    for answered in batch:
        completion, call = answered.completion, answered.call
        if completion is not None:
            if not deployment.asks_further:
                reached = reached_at_once(deployment, call.request, completion)
                if reached.answer.valid:
                    yield stored_answer(deployment, call.record_key, reached)
        elif answered.error is not None and not isinstance(answered.error, ModelUnavailable):
            reason = f"not answered: {answered.error.message}"
            yield refused_answer(deployment, call.record_key, call.request.hash, reason)


def _save(run_id: str, answers: Sequence[StoredAnswer]) -> None:
    retried(lambda db: answer_store.save_answers(db, run_id, answers))
