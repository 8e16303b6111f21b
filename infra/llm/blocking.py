"""The ledgered engine for libraries that call from threads of their own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import uvloop

from domain.ledgers import Stage
from domain.requests import Completion, Request
from domain.workloads import EngineName, Tier, TierName
from infra.llm.ledgered import Call, open_ledgered
from infra.settings import Settings

T = TypeVar("T")


@contextmanager
def blocking_ask(
    run_id: str, name: TierName, tier: Tier, settings: Settings, *, stage: Stage
) -> Generator[Callable[[Request, str], Completion]]:
    """A thread-safe function that blocks: (request, record key) -> completion, from the ledger or the wire.

    Searches ask one thing after the other: whatever engine answers the tier's rows, they go to its servers.
    """
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="headrace-calls", daemon=True)
    thread.start()

    def wait(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    served = tier.model_copy(update={"engine": EngineName.HTTP})
    opened = open_ledgered(run_id, name, served, settings)
    ledgered = wait(opened.__aenter__())
    try:
        yield lambda request, record_key: wait(ledgered.ask(Call(request, record_key), stage=stage))
    finally:
        wait(opened.__aexit__(None, None, None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
