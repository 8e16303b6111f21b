"""What follows a row's first completion: re-asks where it failed its schema, and the further answers that some signals
are read from."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from domain.errors import ModelError
from domain.ledgers import Stage
from domain.requests import Completion, Request
from domain.schemas import Invalid, check
from infra.db.session import retried
from infra.db.store import calls, paging
from infra.db.store.answers import StoredAnswer
from infra.deciding import Reached, decide, further_requests, reach
from infra.llm.asking import Ask
from infra.llm.ledgered import Answered, Call, Ledgered
from infra.tiers import Deployment

if TYPE_CHECKING:
    from infra.rows import Rows

AT_ONCE = 500
"""Rows whose further answers are looked up and settled together."""
Pages = Callable[[], AsyncGenerator[list[paging.Unanswered]]]


@dataclass(frozen=True, slots=True)
class First:
    """A row's request and the completion that answered it."""

    key: str
    request: Request
    completion: Completion


def load_first(deployment: Deployment, rows: "Rows", keys: Sequence[str]) -> list[First]:
    """The first completions of rows that have been asked about."""

    def work(db: Session) -> list[First]:
        requests = {row.key: deployment.request(row) for row in paging.load_records(db, rows.version, keys)}
        known = calls.load_completions(db, {request.hash for request in requests.values()})
        return [First(key, request, known[request.hash]) for key, request in requests.items()]

    return retried(work)


def load_wrong(deployment: Deployment, rows: "Rows", page: Sequence[paging.Unanswered]) -> list[First]:
    """Those of a page's first completions that fail their schema: the others wait for their signals, where there are
    such as need further answers, or are stored already."""
    keys = [row.key for row in page]
    if not deployment.asks_further:
        return load_first(deployment, rows, keys)
    return [
        first
        for start in range(0, len(keys), AT_ONCE)
        for first in load_first(deployment, rows, keys[start : start + AT_ONCE])
        if isinstance(check(first.completion.text, first.completion.finish_reason, deployment.schema), Invalid)
    ]


async def reask(ledgered: Ledgered, deployment: Deployment, first: First) -> tuple[First, Reached]:
    """One row's conversation until its answer is valid or no more tries are allowed."""

    async def ask(again: Request) -> Completion:
        return await ledgered.ask(Call(again, first.key), stage=Stage.REASK)

    with ledgered.conversation():
        return first, await reach(deployment, first.request, first.completion, ask)


async def answer_further(
    ledgered: Ledgered,
    deployment: Deployment,
    rows: "Rows",
    pages: Pages,
    *,
    keep: Callable[[Sequence[StoredAnswer]], None],
) -> None:
    """Ask everything that the signals of valid answers need, in one stream, then settle these answers page by page.

    What the ledger has is not asked again. Raises what `Ledgered.answer` raises; what had been answered by then is in
    the ledger. A refused call leaves its signal out.
    """
    refused: dict[str, ModelError] = {}

    def told(batch: Sequence[Answered]) -> None:
        refused.update({a.call.request.hash: a.error for a in batch if a.completion is None and a.error is not None})

    further = _Further(ledgered, deployment, rows, refused)
    await ledgered.answer(further.calls(pages), stage=Stage.SIGNAL, keep=lambda db, batch: None, told=told)
    async with aclosing(_in_parts(pages)) as parts:
        async for keys in parts:
            answers = await further.settle(keys)
            await asyncio.to_thread(keep, answers)


async def _in_parts(pages: Pages) -> AsyncGenerator[list[str]]:
    async with aclosing(pages()) as given:
        async for page in given:
            for start in range(0, len(page), AT_ONCE):
                yield [row.key for row in page[start : start + AT_ONCE]]


@dataclass(frozen=True, slots=True)
class _Further:
    """The further answers of a tier's rows."""

    ledgered: Ledgered
    deployment: Deployment
    rows: "Rows"
    refused: dict[str, ModelError]

    async def calls(self, pages: Pages) -> AsyncGenerator[list[Call]]:
        """What the signals of each row need, some rows at a time."""
        async with aclosing(_in_parts(pages)) as parts:
            async for keys in parts:
                firsts = await asyncio.to_thread(load_first, self.deployment, self.rows, keys)
                yield [Call(request, first.key) for first in firsts for request in await self._requests(first)]

    async def _requests(self, first: First) -> list[Request]:
        reached = await reach(self.deployment, first.request, first.completion, self._asking(first.key, Stage.REASK))
        wanted = further_requests(self.deployment, first.request, reached)
        return [request for requests in wanted.values() for request in requests]

    async def settle(self, keys: Sequence[str]) -> list[StoredAnswer]:
        """The answers of some rows, once everything has been asked."""
        firsts = await asyncio.to_thread(load_first, self.deployment, self.rows, keys)
        requests = {request.hash: first.key for first in firsts for request in await self._requests(first)}
        known = await asyncio.to_thread(lambda: retried(lambda db: calls.load_completions(db, requests.keys())))
        return [
            await decide(
                self.deployment,
                first.key,
                first.request,
                first.completion,
                self._asking(first.key, Stage.REASK),
                ask_further=self._asking(first.key, Stage.SIGNAL, known),
            )
            for first in firsts
        ]

    def _asking(self, key: str, stage: Stage, known: dict[str, Completion] | None = None) -> Ask:
        """A door to the ledger that knows what was asked just now; another request is asked in the usual way."""

        async def ask(request: Request) -> Completion:
            if (error := self.refused.get(request.hash)) is not None:
                raise error
            if known and (completion := known.get(request.hash)) is not None:
                return completion
            found = await asyncio.to_thread(lambda: retried(lambda db: calls.load_completions(db, {request.hash})))
            return found.get(request.hash) or await self.ledgered.ask(Call(request, key), stage=stage)

        return ask
