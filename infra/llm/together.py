"""Single requests of several conversations, sent as one batch once every conversation waits for an answer."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager

from domain.errors import ModelUnavailable
from domain.requests import Request
from infra.llm.replies import Engine, Reply


class Together:
    """For engines that answer many requests at once and a single one no faster."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._going = 0
        self._waiting: dict[str, tuple[Request, asyncio.Future[Reply]]] = {}
        self._batches: set[asyncio.Task[None]] = set()

    @contextmanager
    def conversation(self) -> Generator[None]:
        """Others wait for this one's next request until the block ends."""
        self._going += 1
        try:
            yield
        finally:
            self._going -= 1
            self._look()

    @contextmanager
    def aside(self) -> Generator[None]:
        """Meanwhile this conversation waits for something else: nobody waits for it."""
        self._going -= 1
        self._look()
        try:
            yield
        finally:
            self._going += 1

    async def send(self, request: Request) -> Reply:
        """The reply to a request, once all conversations that go on have asked something."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[request.hash] = (request, future)
        self._look()
        return await future

    async def close(self) -> None:
        """Stop what is under way: nobody waits for it any more."""
        batches = list(self._batches)
        for batch in batches:
            batch.cancel()
        await asyncio.gather(*batches, return_exceptions=True)

    def _look(self) -> None:
        if self._waiting and len(self._waiting) >= self._going:
            batch, self._waiting = self._waiting, {}
            task = asyncio.ensure_future(self._send(batch))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    async def _send(self, batch: dict[str, tuple[Request, asyncio.Future[Reply]]]) -> None:
        async def requests() -> AsyncGenerator[Request]:
            for request, _ in batch.values():
                yield request

        try:
            async with aclosing(self._engine.answer(requests())) as replies:
                async for reply in replies:
                    _, future = batch[reply.request.hash]
                    if not future.done():
                        future.set_result(reply)
        except Exception as error:  # noqa: BLE001 - it is raised where the answers are awaited
            for _, future in batch.values():
                if not future.done():
                    future.set_exception(error)
        for request, future in batch.values():
            if not future.done():
                future.set_result(Reply(request, (), None, ModelUnavailable("the engine gave no answer")))
