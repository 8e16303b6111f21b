"""The gateway's process as an engine: one a process of ours, started with the first need, gone when ours is."""

import asyncio
import atexit
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from domain.errors import ModelUnavailable
from domain.requests import Request
from infra.llm.gateway_link import ERRORS, Ask, Link, NewFrame, Opening, Told
from infra.llm.lengths import Lengths
from infra.llm.replies import Reply

ROOT = Path(__file__).parents[2]
AHEAD = 8
"""So many times the requests that the workers take at once are handed over: none of them waits for this process."""
ENDS_S = 10.0
INHERITED = frozenset(
    {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"}
) | {f"{scheme}_PROXY" for scheme in ("HTTP", "HTTPS", "ALL", "NO")}
"""Of our environment the process gets what leads to servers; it needs no password and no key."""
Hear = Callable[[Reply], None]


@dataclass(slots=True)
class _Process:
    """The running process and the socket over which connections are handed to it."""

    process: subprocess.Popen[bytes]
    door: socket.socket

    def close(self) -> None:
        """End it and wait until it has ended."""
        self.door.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDS_S)
        self.process.kill()
        self.process.wait()


_lock = threading.Lock()
_running: dict[int, _Process] = {}
"""By the id of the process that started it: a fork has no claim to its parent's."""


def start() -> int:
    """Start the gateway's process unless it runs; returns its id. It takes half a second, in the background."""
    with _lock:
        return _start().process.pid


def stop() -> None:
    """End the gateway's process, if it runs."""
    with _lock:
        if running := _running.pop(os.getpid(), None):
            running.close()


def _start() -> _Process:
    running = _running.get(os.getpid())
    if running is not None and running.process.poll() is None:
        return running
    if running is None:
        atexit.register(stop)
    else:
        running.door.close()
    environment = {name: value for name, value in os.environ.items() if name.upper() in INHERITED}
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.llm.gateway_process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**environment, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
    _running[os.getpid()] = _Process(process, ours)
    return _running[os.getpid()]


def _connection() -> socket.socket:
    """A new connection to the process; raises ModelUnavailable when two processes in a row die at once."""
    ours, theirs = socket.socketpair()
    with theirs, _lock:
        for _ in range(2):
            running = _start()
            try:
                socket.send_fds(running.door, [b"+"], [theirs.fileno()])
            except OSError:  # it died after it was looked at: its end of the door is closed, it is gone in a moment
                running.close()
            else:
                ours.setblocking(False)
                return ours
    ours.close()
    raise ModelUnavailable("the gateway's process ends as soon as it is started; its last words are in the log")


@dataclass(slots=True)
class _Line:
    """One connection to the gateway; whoever closes it gives up what it asked for."""

    opening: Opening
    lengths: Lengths
    link: Link[Told] = field(init=False)
    open: bool = True
    _asked: dict[int, tuple[Request, Hear]] = field(default_factory=dict[int, tuple[Request, Hear]])
    _frames: dict[str, int] = field(default_factory=dict[str, int])
    _numbers: "count[int]" = field(default_factory=count)

    async def connect(self) -> Self:
        """Open the connection."""
        self.link = Link(Told, self._take, self._lost)
        ours = await asyncio.to_thread(_connection)
        await asyncio.get_running_loop().create_unix_connection(lambda: self.link, sock=ours)
        self.link.say(self.opening)
        return self

    def ask(self, request: Request, hear: Hear) -> None:
        """Send a request; `hear` is called once, with the reply."""
        if not self.open:
            hear(_gone(request))
            return
        frame = self._frames.get(request.frame.hash)
        if frame is None:
            frame = self._frames[request.frame.hash] = len(self._frames)
            self.link.say(NewFrame(request.frame.body, request.frame.revision))
        number = next(self._numbers)
        self._asked[number] = request, hear
        self.link.say(Ask(number, frame, request.last))

    @property
    def busy(self) -> bool:
        """Whether a reply is still to come."""
        return bool(self._asked)

    def _take(self, said: list[Told]) -> None:
        for told in said:
            request, hear = self._asked.pop(told.number)
            completion = told.completion
            if completion is not None:
                if completion.request_hash != request.hash:
                    raise RuntimeError(f"the answer to {completion.request_hash[:12]} came for {request.hash[:12]}")
                self.lengths.learn(request, completion.usage.prompt)
            error = ERRORS[told.error[0]](told.error[1]) if told.error else None
            hear(Reply(request, told.tries, completion, error))

    def _lost(self) -> None:
        self.open = False
        asked, self._asked = self._asked, {}
        for request, hear in asked.values():
            hear(_gone(request))


def _gone(request: Request) -> Reply:
    return Reply(request, (), None, ModelUnavailable("the gateway's process has ended; its last words are in the log"))


class GatewayClient:
    """Answers requests through the gateway's process; `async with` opens and closes the connection for single ones."""

    def __init__(self, opening: Opening) -> None:
        self.lengths = Lengths()
        self._opening = opening
        self._ahead = AHEAD * opening.in_flight * len(opening.base_urls)

    async def __aenter__(self) -> Self:
        self._single = await _Line(self._opening, self.lengths).connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._single.link.close()

    async def send(self, request: Request) -> Reply:
        """Ask until there is an answer, a refusal or no try left; a ModelError is in the reply, never raised."""
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def hear(reply: Reply) -> None:
            if not answered.done():
                answered.set_result(reply)

        self._single.ask(request, hear)
        return await answered

    async def answer(self, requests: AsyncIterable[Request]) -> AsyncGenerator[Reply]:
        """Send requests as they come, as many at once as the workers take; replies in the order of their arrival."""
        line = await _Line(self._opening, self.lengths).connect()
        arrived: asyncio.Queue[Reply | None] = asyncio.Queue()
        room = asyncio.Semaphore(self._ahead)

        async def feed() -> None:
            async for request in requests:
                await room.acquire()
                line.ask(request, arrived.put_nowait)

        feeding = asyncio.create_task(feed())
        feeding.add_done_callback(lambda _: arrived.put_nowait(None))
        try:
            while not feeding.done() or line.busy or not arrived.empty():
                if (reply := await arrived.get()) is None:
                    await feeding
                    continue
                room.release()
                yield reply
        finally:
            line.link.close()
            feeding.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await feeding
