"""Every model call goes through the ledger: looked up first, sent only when missing, recorded before it is believed."""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import cast

from sqlalchemy.orm import Session

from domain.costs import usd
from domain.errors import ModelError
from domain.ledgers import Attempt, OutcomeClass, Stage
from domain.requests import Completion, Request
from domain.workloads import EngineName, Prices, Tier, TierName
from infra import leases
from infra.db.session import retried
from infra.db.store import calls as store
from infra.db.store import runs
from infra.llm.budgets import Budget
from infra.llm.engines import Opened, open_engine
from infra.llm.gateway_client import GatewayClient
from infra.llm.replies import Reply
from infra.llm.together import Together
from infra.settings import Settings

Held = tuple[float, int]
"""USD and tokens that a call costs at most."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request and the row it is made for."""

    request: Request
    record_key: str


@dataclass(frozen=True, slots=True)
class Answered:
    """What the ledger now knows of one call: the completion, or the error that its last try ended with."""

    call: Call
    completion: Completion | None
    error: ModelError | None
    cached: bool
    usd: float


Keep = Callable[[Session, Sequence[Answered]], None]
"""Stores what follows from answers, in the transaction that stores the answers themselves; it may be repeated."""
Told = Callable[[Sequence[Answered]], None]


class Ledgered:
    """One tier's engine behind the ledger, for one run."""

    def __init__(
        self,
        opened: Opened,
        *,
        run_id: str,
        tier: TierName,
        prices: Prices,
        budget: Budget,
    ) -> None:
        self.engine = opened.engine
        self.window = opened.window
        self.online = opened.online
        self.budget = budget
        self._run_id = run_id
        self._tier = tier
        self._prices = prices
        self._lengths = opened.lengths
        self._together = None if opened.online else Together(opened.engine)
        self._asking: dict[str, asyncio.Future[Completion]] = {}

    async def answer(self, pages: AsyncGenerator[Sequence[Call]], *, stage: Stage, keep: Keep, told: Told) -> None:
        """Settle every call of every page and store it, with what `keep` makes of it; memory is that of a few pages.

        `told` hears of each batch once it is stored, in the thread that stored it.

        Raises ModelUnavailable when no worker answers any more, BudgetReached before a limit is crossed, and
        RunCancelled; whatever had been answered by then is stored.
        """
        from infra.llm.streaming import Stream

        await Stream(self, stage, keep, told).run(pages)

    async def ask(self, call: Call, *, stage: Stage) -> Completion:
        """One call; raises the ModelError that it ended with, BudgetReached or RunCancelled.

        The same call at once is made once.
        """
        key = call.request.hash
        if (asking := self._asking.get(key)) is not None:
            with self._together.aside() if self._together else nullcontext():
                return await asyncio.shield(asking)
        self._asking[key] = asyncio.ensure_future(self._ask(call, stage))
        try:
            return await asyncio.shield(self._asking[key])
        finally:
            del self._asking[key]

    async def _ask(self, call: Call, stage: Stage) -> Completion:
        leases.check()
        known = await asyncio.to_thread(self.look_up, [call])
        if completion := known.get(call.request.hash):
            await asyncio.to_thread(self.save, [self.hit(call, completion, stage)])
            return completion
        held = self.most(call.request)
        if not self.budget.fits(*held):
            raise self.budget.reached()
        self.budget.hold(*held)
        reply = await self._one(call.request)
        answered, attempts = self.settle(call, reply, stage, held)
        await asyncio.to_thread(self.save, [(answered, attempts)])
        if answered.completion is None:
            raise answered.error or ModelError("the engine gave no answer")
        return answered.completion

    async def _one(self, request: Request) -> Reply:
        if self._together is not None:
            return await self._together.send(request)
        return await cast(GatewayClient, self.engine).send(request)

    def conversation(self) -> AbstractContextManager[None]:
        """Wherever single requests of several rows are asked: an engine for batches waits until all have asked."""
        return self._together.conversation() if self._together else nullcontext()

    async def close(self) -> None:
        """Stop batches that nobody waits for any more."""
        if self._together is not None:
            await self._together.close()

    def look_up(self, calls: Sequence[Call]) -> dict[str, Completion]:
        """The stored answers among these calls, by request hash."""
        return retried(lambda db: store.load_completions(db, {call.request.hash for call in calls}))

    def save(self, settled: Sequence[tuple[Answered, Sequence[Attempt]]], keep: Keep | None = None) -> None:
        """Store attempts and completions, and what `keep` makes of them, in one transaction."""

        def work(db: Session) -> None:
            store.save_attempts(db, self._run_id, [attempt for _, attempts in settled for attempt in attempts])
            sent = [(a.call.request, a.completion) for a, _ in settled if a.completion and not a.cached]
            store.save_completions(db, sent)
            if keep is not None:
                keep(db, [answered for answered, _ in settled])

        retried(work)

    def most(self, request: Request) -> Held:
        """USD and tokens that a call costs at most."""
        prompt, answer = self._lengths.most(request), request.max_tokens
        price = (prompt * self._prices.input + answer * self._prices.output) / 1e6
        return price, prompt + answer

    def hit(self, call: Call, completion: Completion, stage: Stage) -> tuple[Answered, list[Attempt]]:
        """A call that the ledger answers; its attempt says what it would have cost."""
        spared = usd(completion.usage, self._prices)
        # The same look-up by the same run is the same fact: repeating a task does not repeat it.
        name = f"{self._run_id}{stage}{self._tier}{call.record_key}{call.request.hash}"
        attempt = Attempt(
            attempt_id=str(uuid.uuid5(uuid.NAMESPACE_OID, name)),
            stage=stage,
            tier=self._tier,
            record_key=call.record_key,
            request_hash=call.request.hash,
            number=0,
            cached=True,
            usage=completion.usage,
            seconds=0.0,
            usd=spared,
            worker="ledger",
            outcome=OutcomeClass.ANSWERED,
        )
        return Answered(call, completion, None, cached=True, usd=0.0), [attempt]

    def settle(self, call: Call, reply: Reply, stage: Stage, held: Held) -> tuple[Answered, list[Attempt]]:
        """What a reply comes to: an attempt for every try, and what was spent in the place of what was held."""
        attempts = [
            Attempt(
                attempt_id=_attempt_id(),
                stage=stage,
                tier=self._tier,
                record_key=call.record_key,
                request_hash=call.request.hash,
                number=number,
                cached=False,
                usage=once.usage,
                seconds=once.seconds,
                usd=usd(once.usage, self._prices),
                worker=once.worker,
                outcome=once.outcome,
                detail=once.detail,
            )
            for number, once in enumerate(reply.tries, start=1)
        ]
        spent = sum(attempt.usd for attempt in attempts)
        tokens = sum(attempt.usage.prompt + attempt.usage.completion for attempt in attempts)
        self.budget.settle(*held, usd=spent, tokens=tokens)
        return Answered(call, reply.completion, reply.error, cached=False, usd=spent), attempts


def _attempt_id() -> str:
    """A random UUID that begins with the time (version 7, RFC 9562): its index grows at one end only."""
    bits = os.urandom(9).hex()
    return f"{time.time_ns() // 1_000_000:012x}7{bits[:3]}8{bits[3:]}"


@asynccontextmanager
async def open_ledgered(run_id: str, name: TierName, tier: Tier, settings: Settings) -> AsyncGenerator[Ledgered]:
    """A tier's engine, connected, behind the ledger."""
    budget = await asyncio.to_thread(load_budget, run_id)
    hosted = tier.engine is EngineName.BATCH and bool(tier.base_urls)
    prices = tier.usd_per_million.in_batches() if hosted else tier.usd_per_million
    async with open_engine(tier, settings) as opened:
        ledgered = Ledgered(opened, run_id=run_id, tier=name, prices=prices, budget=budget)
        try:
            yield ledgered
        finally:
            await ledgered.close()


def load_budget(run_id: str) -> Budget:
    """A run's limits and what it has spent so far."""
    limits, spent = retried(lambda db: (runs.limits(db, run_id), runs.spent(db, run_id)))
    return Budget(*limits, *spent)
