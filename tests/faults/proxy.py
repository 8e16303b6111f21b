"""A TCP proxy that misbehaves on purpose, between a run and Postgres or a model server.

`with Proxy(to, plan) as proxy` in a thread of the test, or `python -m tests.faults.proxy LISTEN TO` as a process, in a
network namespace for example, where it only passes on. Addresses are HOST:PORT, or unix:PATH, which no namespace keeps
apart.
"""

import asyncio
import contextlib
import socket
import struct
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Self

COMMIT = b"COMMIT\0"
"""The statement by itself; tables that are emptied ON COMMIT are none."""
Harm = Literal["cut", "deaf", "mute"]
BACKLOG = 256


@dataclass
class Plan:
    """What is done to a connection that says `pattern`, and to how many.

    `cut` delivers it, waits for the answer, swallows that and resets the connection. `mute` delivers it and passes
    nothing more on, either way; `deaf` does not even deliver it. The sockets of both stay open: nobody is told.
    """

    harm: Harm = "cut"
    pattern: bytes = COMMIT
    after: bytes = b""
    """Only a pattern in whose transaction this was said before counts."""
    every: int = 1
    most: int = 1_000_000
    seen: int = 0
    done: int = 0
    harmed_at: list[float] = field(default_factory=list)
    """When, on the monotonic clock."""
    passed_at: list[float] = field(default_factory=list)
    """When a pattern came through unharmed."""

    def strikes(self) -> bool:
        """Whether this one is to be harmed."""
        self.seen += 1
        if self.done >= self.most or self.seen % self.every:
            self.passed_at.append(time.monotonic())
            return False
        self.done += 1
        self.harmed_at.append(time.monotonic())
        return True


@dataclass
class _Link:
    """One connection, and whether anything passes."""

    client: asyncio.StreamWriter
    told: bool = False
    silent: bool = False
    cutting: bool = False


class Proxy:
    """Passes bytes on both ways but for what its plan says, from a port of its own on loopback."""

    def __init__(self, to: str, plan: Plan | None = None, *, listen: str = "127.0.0.1:0") -> None:
        self.plan = plan
        self.address = listen
        self.connections = 0
        self._to, self._listen = to, listen
        self._bound: Future[str] = Future()
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)
        self._thread.start()
        self.address = self._bound.result(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.address.rpartition(":")[2])

    async def serve(self) -> None:
        """Pass on until the end."""
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        kind, _, place = self._listen.partition(":")
        if kind == "unix":
            server = await asyncio.start_unix_server(self._take, place, backlog=BACKLOG)
            self._bound.set_result(self._listen)
        else:
            server = await asyncio.start_server(self._take, kind, int(place), backlog=BACKLOG)
            self._bound.set_result(f"{kind}:{server.sockets[0].getsockname()[1]}")
        async with server:
            await self._over.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        link, server = _Link(client), None
        try:
            kind, _, place = self._to.partition(":")
            opening = asyncio.open_unix_connection(place) if kind == "unix" else asyncio.open_connection(kind, place)
            answers, server = await opening
            async with asyncio.TaskGroup() as both:
                both.create_task(self._outward(reader, server, link))
                both.create_task(self._homeward(answers, link))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for writer in (client, server):
                if writer is not None:
                    writer.close()

    async def _outward(self, source: asyncio.StreamReader, server: asyncio.StreamWriter, link: _Link) -> None:
        while data := await source.read(65536):
            if self.plan is not None and not link.silent and self._harmful(self.plan, data, link):
                link.cutting, link.silent = self.plan.harm == "cut", self.plan.harm != "cut"
                if self.plan.harm == "mute":
                    server.write(data)
            if not link.silent:
                server.write(data)
                await server.drain()
        if not link.silent:
            server.close()

    def _harmful(self, plan: Plan, data: bytes, link: _Link) -> bool:
        link.told = link.told or plan.after in data
        if plan.pattern not in data or not link.told:
            return False
        link.told = False
        return plan.strikes()

    async def _homeward(self, source: asyncio.StreamReader, link: _Link) -> None:
        while data := await source.read(65536):
            if link.cutting:  # what was sent is done, and its sender is told nothing but that the line is dead
                held: socket.socket = link.client.get_extra_info("socket")
                held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                link.client.transport.abort()
                return
            if not link.silent:
                link.client.write(data)
                await link.client.drain()
        if not link.silent:
            link.client.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Proxy(sys.argv[2], listen=sys.argv[1]).serve())
