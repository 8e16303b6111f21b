"""Every model call goes through the ledger: looked up first, sent only when missing, recorded before it is believed."""

import asyncio
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from domain.costs import usd
from domain.errors import ModelError
from domain.ledgers import Attempt, OutcomeClass, Stage
from domain.requests import Completion, Request, Usage
from domain.workloads import Prices, Tier, TierName
from infra.db.session import transaction
from infra.db.store import calls as store
from infra.llm.gateway import Gateway
from infra.llm.replies import Reply
from infra.settings import Settings

SAVE_EVERY = 16
"""Answers in one transaction; what a killed process can lose is this many and the gateway's window."""

T = TypeVar("T")


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


class Ledgered:
    """One tier's servers behind the ledger, for one run."""

    def __init__(self, gateway: Gateway, *, run_id: str, tier: TierName, prices: Prices) -> None:
        self._gateway = gateway
        self._run_id = run_id
        self._tier = tier
        self._prices = prices

    async def answer(self, calls: Sequence[Call], *, stage: Stage) -> AsyncGenerator[Answered]:
        """Yield every call once, as it is settled and stored: first the known ones, then the sent ones.

        Whoever stops half-way closes it (`aclosing`), else it goes on sending.
        """
        known = await asyncio.to_thread(self._look_up, calls, stage)
        waiting: dict[str, list[Call]] = {}
        for call in calls:
            if completion := known.get(call.request.hash):
                yield Answered(call, completion, None, cached=True, usd=0.0)
            else:
                waiting.setdefault(call.request.hash, []).append(call)
        async with aclosing(_batches(self._gateway, [same[0].request for same in waiting.values()])) as batches:
            async for batch in batches:
                settled = [self._settle(waiting[reply.request.hash][0], reply, stage) for reply in batch]
                await asyncio.to_thread(self._save, settled)
                for answered, _ in settled:
                    yield answered
                    for call in waiting[answered.call.request.hash][1:]:  # other rows with the same words
                        yield replace(answered, call=call, cached=True, usd=0.0)

    async def ask(self, call: Call, *, stage: Stage) -> Completion:
        """One call; raises the ModelError that it ended with."""
        async with aclosing(self.answer([call], stage=stage)) as answers:
            async for answered in answers:
                if answered.completion is not None:
                    return answered.completion
                if answered.error is not None:
                    raise answered.error
        raise AssertionError("answer() settles every call")

    def _look_up(self, calls: Sequence[Call], stage: Stage) -> dict[str, Completion]:
        with transaction() as db:
            known = store.load_completions(db, {call.request.hash for call in calls})
            hits = [self._hit(call, stage) for call in calls if call.request.hash in known]
            store.save_attempts(db, self._run_id, hits)
        return known

    def _hit(self, call: Call, stage: Stage) -> Attempt:
        return Attempt(
            # The same look-up by the same run is the same fact: repeating a task does not repeat it.
            attempt_id=str(
                uuid.uuid5(uuid.NAMESPACE_OID, f"{self._run_id}{stage}{self._tier}{call.record_key}{call.request.hash}")
            ),
            stage=stage,
            tier=self._tier,
            record_key=call.record_key,
            request_hash=call.request.hash,
            number=0,
            cached=True,
            usage=Usage(),
            seconds=0.0,
            usd=0.0,
            worker="ledger",
            outcome=OutcomeClass.ANSWERED,
        )

    def _settle(self, call: Call, reply: Reply, stage: Stage) -> tuple[Answered, list[Attempt]]:
        attempts = [
            Attempt(
                attempt_id=str(uuid.uuid4()),
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
        return Answered(call, reply.completion, reply.error, cached=False, usd=spent), attempts

    def _save(self, settled: Sequence[tuple[Answered, list[Attempt]]]) -> None:
        with transaction() as db:
            store.save_attempts(db, self._run_id, [attempt for _, attempts in settled for attempt in attempts])
            store.save_completions(db, [(a.call.request, a.completion) for a, _ in settled if a.completion])


async def _batches(gateway: Gateway, requests: Sequence[Request]) -> AsyncGenerator[list[Reply]]:
    """Send everything and hand replies on a few at a time; a store that is slow holds up the sending."""
    room = asyncio.Semaphore(gateway.window + SAVE_EVERY)

    async def send(request: Request) -> Reply:
        await room.acquire()
        return await gateway.send(request)

    tasks = [asyncio.ensure_future(send(request)) for request in requests]
    batch: list[Reply] = []
    try:
        for finished in asyncio.as_completed(tasks):
            batch.append(await finished)
            if len(batch) == SAVE_EVERY:
                yield batch
                for _ in batch:
                    room.release()
                batch = []
        if batch:
            yield batch
    finally:
        for task in tasks:
            task.cancel()


def base_urls(tier: Tier, settings: Settings) -> tuple[str, ...]:
    """Where a tier is served: its own base_urls, else the embedded server of that model.

    Raises ModelError when neither exists.
    """
    if tier.base_urls:
        return tier.base_urls
    if embedded := settings.engines.get(tier.model):
        return (embedded,)
    raise ModelError(
        f"nobody serves the model {tier.model!r}",
        hint="Give the tier base_urls in workload.yaml, or start the embedded servers with `headrace up`.",
    )


@asynccontextmanager
async def open_ledgered(run_id: str, name: TierName, tier: Tier, settings: Settings) -> AsyncGenerator[Ledgered]:
    """A tier's servers, connected, behind the ledger."""
    key = settings.model_api_key.get_secret_value() if settings.model_api_key else None
    gateway = Gateway(
        base_urls(tier, settings), api_key=key, in_flight=settings.in_flight, deadline_s=settings.request_deadline_s
    )
    async with gateway:
        yield Ledgered(gateway, run_id=run_id, tier=name, prices=tier.usd_per_million)


@contextmanager
def blocking_ask(
    run_id: str, name: TierName, tier: Tier, settings: Settings, *, stage: Stage
) -> Generator[Callable[[Request, str], Completion]]:
    """The same for libraries that call from threads of their own: a thread-safe function that blocks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="headrace-calls", daemon=True)
    thread.start()

    def wait(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    opened = open_ledgered(run_id, name, tier, settings)
    ledgered = wait(opened.__aenter__())
    try:
        yield lambda request, record_key: wait(ledgered.ask(Call(request, record_key), stage=stage))
    finally:
        wait(opened.__aexit__(None, None, None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
