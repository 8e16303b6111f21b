"""A stream of requests in rounds, for engines that answer many together.

Whoever feeds an engine may wait for replies before sending more (a bounded window, a budget): an engine that waited for
the end of the stream would then wait for ever.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator

from domain.requests import Request


class Rounds:
    """Iterated again and again, each time one round; a round ends with the stream, or when nothing came for a while."""

    def __init__(self, requests: AsyncIterable[Request], *, linger_s: float) -> None:
        self._source = aiter(requests)
        self._next: asyncio.Task[Request | None] | None = None
        self._some = False
        self._linger_s = linger_s
        self.ended = False

    def __aiter__(self) -> AsyncIterator[Request]:
        self._some = False
        return self

    async def __anext__(self) -> Request:
        if self.ended:
            raise StopAsyncIteration
        if self._next is None:
            self._next = asyncio.create_task(self._pull())
        # The pull goes on when the round ends without it.
        done, _ = await asyncio.wait({self._next}, timeout=self._linger_s if self._some else None)
        if not done:
            raise StopAsyncIteration
        request, self._next = self._next.result(), None
        if request is None:
            self.ended = True
            raise StopAsyncIteration
        self._some = True
        return request

    async def close(self) -> None:
        """Take no more."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait({self._next})

    async def _pull(self) -> Request | None:
        return await anext(self._source, None)
