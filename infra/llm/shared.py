"""Single calls for an engine that answers many together: calls made at about the same time travel in one stream.

A re-ask is one call, and a Ray job or a batch file for each would take minutes; a hundred rows are re-asked at once.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Self

from domain.errors import ModelUnavailable
from domain.requests import Request
from infra.llm.replies import Engine, Reply


class Shared:
    """`async with` keeps one stream to the engine open; its pauses are what makes the engine begin."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asked: asyncio.Queue[Request] = asyncio.Queue()
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._pump: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pump is not None:
            self._pump.cancel()
            with suppress(asyncio.CancelledError):
                await self._pump

    async def send(self, request: Request) -> Reply:
        """One request's reply; the same request at once is asked once. A ModelError is in the reply, never raised."""
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())
        reply = self._waiting.get(request.hash)
        if reply is None:
            reply = self._waiting[request.hash] = asyncio.get_running_loop().create_future()
            self._asked.put_nowait(request)
        return await asyncio.shield(reply)

    async def _run(self) -> None:
        try:
            async with aclosing(self._engine.answer(self._requests())) as replies:
                async for reply in replies:
                    self._waiting.pop(reply.request.hash).set_result(reply)
        finally:
            # Whatever ended the stream, nobody is left waiting.
            waiting, self._waiting = self._waiting, {}
            for future in waiting.values():
                if not future.done():
                    future.set_exception(ModelUnavailable("the engine's stream ended"))

    async def _requests(self) -> AsyncGenerator[Request]:
        while True:
            yield await self._asked.get()
