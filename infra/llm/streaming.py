"""The stream of a batch: looked up, sent, stored, all at once; a slow part holds up the ones before it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import aclosing

from domain.errors import BudgetReached, ModelUnavailable
from domain.ledgers import Attempt, Stage
from domain.requests import Completion, Request
from infra import leases
from infra.llm.ledgered import Answered, Call, Held, Keep, Ledgered, Told
from infra.llm.replies import Reply

LINGER_S = 0.05
"""Answers that come within this time are stored together."""
FULL = 500
LOOK_FOR_STOP_S = 0.25


class Stream:
    """One batch of calls on its way through the ledger and an engine."""

    def __init__(self, ledgered: Ledgered, stage: Stage, keep: Keep, told: Told) -> None:
        self._ledgered, self._stage, self._keep, self._told = ledgered, stage, keep, told
        self._room = asyncio.Semaphore(ledgered.window)
        self._todo: asyncio.Queue[Request | None] = asyncio.Queue()
        self._waiting: dict[str, tuple[list[Call], Held]] = {}
        self._done: list[tuple[Answered, list[Attempt]]] = []
        self._fresh: dict[str, Completion] = {}
        self._some = asyncio.Event()
        self._moved = asyncio.Event()
        self._over: BudgetReached | None = None
        self._ended = False

    async def run(self, pages: AsyncGenerator[Sequence[Call]]) -> None:
        """Take every page through; the first error ends it, after what was answered is stored."""
        stop: asyncio.Task[None] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                stop = group.create_task(self._look_for_stop())
                group.create_task(self._feed_and_close(pages))
                group.create_task(self._pump())
                await self._write()
                stop.cancel()
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            if self._done:
                await self._flush()
        if self._over is not None:
            raise self._over

    async def _feed_and_close(self, pages: AsyncGenerator[Sequence[Call]]) -> None:
        async with aclosing(pages):
            await self._feed(pages)

    async def _feed(self, pages: AsyncIterable[Sequence[Call]]) -> None:
        async for calls in pages:
            self._fresh = {}
            known = await asyncio.to_thread(self._ledgered.look_up, calls)
            for call in calls:
                key = call.request.hash
                # Stored while the look-up was under way: it may have missed that.
                if completion := known.get(key) or self._fresh.get(key):
                    self._put(self._ledgered.hit(call, completion, self._stage))
                elif key in self._waiting:
                    self._waiting[key][0].append(call)
                elif not await self._send(call):
                    self._todo.put_nowait(None)
                    return
            while len(self._done) > FULL:
                await self._step()
        self._todo.put_nowait(None)

    async def _send(self, call: Call) -> bool:
        """Hand a call to the engine when there is room and money for it; False when the money has run out."""
        await self._room.acquire()
        held, budget = self._ledgered.most(call.request), self._ledgered.budget
        while not budget.fits(*held):
            if not self._waiting:
                self._over = budget.reached()
                return False
            await self._step()
        budget.hold(*held)
        self._waiting[call.request.hash] = ([call], held)
        self._todo.put_nowait(call.request)
        return True

    async def _requests(self) -> AsyncGenerator[Request]:
        while (request := await self._todo.get()) is not None:
            yield request

    async def _pump(self) -> None:
        async with aclosing(self._ledgered.engine.answer(self._requests())) as replies:
            async for reply in replies:
                self._take(reply)
        self._ended = True
        self._some.set()

    def _take(self, reply: Reply) -> None:
        (first, *_), held = self._waiting[reply.request.hash]
        self._put(self._ledgered.settle(first, reply, self._stage, held))

    def _put(self, settled: tuple[Answered, list[Attempt]]) -> None:
        self._done.append(settled)
        self._some.set()

    async def _write(self) -> None:
        while not self._ended or self._done:
            await self._some.wait()
            if not (self._ended or self._room.locked() or len(self._done) >= FULL):
                await asyncio.sleep(LINGER_S)
            self._some.clear()
            await self._flush()

    async def _flush(self) -> None:
        """Store what is done; a store that has begun is finished, whatever happens meanwhile."""
        batch, self._done = self._done, []
        saving = asyncio.ensure_future(asyncio.to_thread(self._store, batch))
        try:
            await asyncio.shield(saving)
        except asyncio.CancelledError:
            await saving
            raise
        for answered, _ in batch:
            if not answered.cached:
                self._room.release()
                self._settle_others(answered)
        self._moved.set()
        for answered, _ in batch:
            if isinstance(answered.error, ModelUnavailable):
                raise answered.error

    def _store(self, batch: list[tuple[Answered, list[Attempt]]]) -> None:
        self._ledgered.save(batch, self._keep)
        self._told([answered for answered, _ in batch])

    def _settle_others(self, answered: Answered) -> None:
        """Other rows with the same words get the same answer, for nothing."""
        (_, *others), _ = self._waiting.pop(answered.call.request.hash)
        if answered.completion is not None:
            self._fresh[answered.call.request.hash] = answered.completion
        for call in others:
            if answered.completion is not None:
                self._put(self._ledgered.hit(call, answered.completion, self._stage))
            else:
                self._put((Answered(call, None, answered.error, cached=True, usd=0.0), []))

    async def _step(self) -> None:
        """Until something was stored."""
        self._moved.clear()
        await self._moved.wait()

    async def _look_for_stop(self) -> None:
        while True:
            await asyncio.sleep(LOOK_FOR_STOP_S)
            leases.check()
