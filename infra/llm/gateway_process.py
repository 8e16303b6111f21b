"""The gateway as a process of its own: `python -m infra.llm.gateway_process FD`, started by `gateway_client`.

A run's own process reads and writes the ledger meanwhile, on another core. Connections arrive over the socket FD; one
that is closed gives up what it asked for, and when FD itself is closed this process ends. Gateways stay: what they
learnt of their workers holds for the next chunk too.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Sequence

import uvloop

from domain.errors import ModelError
from domain.requests import Frame, Request
from infra.llm.gateway import Gateway
from infra.llm.gateway_link import Ask, Asked, Link, NewFrame, Opening, Told
from infra.llm.replies import Reply


class _Gateways:
    """The gateways of this process, by what they were opened with."""

    def __init__(self) -> None:
        self._open: dict[Opening, asyncio.Future[Gateway]] = {}

    async def get(self, opening: Opening) -> Gateway:
        """An open gateway; the first to ask opens it."""
        if opening not in self._open:
            gateway = Gateway(
                opening.base_urls,
                api_key=opening.api_key,
                in_flight=opening.in_flight,
                deadline_s=opening.deadline_s,
                patience_s=opening.patience_s,
            )
            self._open[opening] = asyncio.ensure_future(gateway.__aenter__())
        return await asyncio.shield(self._open[opening])

    async def close(self) -> None:
        """Close all of them."""
        for opened in self._open.values():
            await (await opened).__aexit__(None, None, None)


class _Client:
    """One connection: its requests wait for a free lane; each reply goes back at once."""

    def __init__(self, gateways: _Gateways) -> None:
        self._gateways = gateways
        self._frames: list[Frame] = []
        self._todo: asyncio.Queue[tuple[int, Request]] = asyncio.Queue()
        self._serving: asyncio.Task[None] | None = None
        self.link: Link[Asked] = Link(Asked, self._take, self._lost)

    def _take(self, said: list[Asked]) -> None:
        for one in said:
            if isinstance(one, Ask):
                self._todo.put_nowait((one.number, Request(self._frames[one.frame], one.last)))
            elif isinstance(one, NewFrame):
                self._frames.append(Frame(one.body, one.revision))
            else:
                self._serving = asyncio.create_task(self._serve(one))

    def _lost(self) -> None:
        if self._serving is not None:
            self._serving.cancel()

    async def _serve(self, opening: Opening) -> None:
        try:
            gateway = await self._gateways.get(opening)
            gateway.fleet.hope()
            async with asyncio.TaskGroup() as lanes:
                for _ in range(gateway.in_flight):
                    lanes.create_task(self._lane(gateway))
        finally:
            # A lane that failed has said why on stderr; the client learns that nothing comes any more.
            self.link.close()

    async def _lane(self, gateway: Gateway) -> None:
        while True:
            number, request = await self._todo.get()
            self.link.say(_told(number, await gateway.send(request)))


def _told(number: int, reply: Reply) -> Told:
    error: ModelError | None = reply.error
    return Told(number, reply.tries, reply.completion, error and (type(error).__name__, error.message))


async def serve(door: socket.socket) -> None:
    """Take connections that arrive over `door`, until its other end is closed."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    gateways = _Gateways()
    arriving: set[asyncio.Task[object]] = set()

    def arrived() -> None:
        word, sockets, _, _ = socket.recv_fds(door, 1, 1)
        for connection in sockets:
            client = _Client(gateways)
            task: asyncio.Task[object] = loop.create_task(
                loop.create_unix_connection(lambda client=client: client.link, sock=socket.socket(fileno=connection))
            )
            arriving.add(task)
            task.add_done_callback(arriving.discard)
        if not word:
            loop.remove_reader(door)
            ended.set()

    loop.add_reader(door, arrived)
    await ended.wait()
    await gateways.close()


def main(arguments: Sequence[str]) -> None:
    """Serve until the process that started this one is gone."""
    # Ctrl-C is for the run: it closes its connections, and this process with them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    uvloop.run(serve(socket.socket(fileno=int(arguments[0]))))
    # Whatever is still under way has nobody to answer to.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
