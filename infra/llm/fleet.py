"""The fleet: which worker takes the next request, breakers, progress, and the lane for suspects."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from urllib.parse import urlsplit

import aiohttp

from domain.errors import ModelUnavailable
from infra.llm.metering import read_queue
from infra.llm.workers import FIRST_WINDOW, Ticket, Worker

FIRST_BREAK_S = 0.25
LONGEST_BREAK_S = 5.0
ERRORS_IN_A_ROW = 8
QUEUE_SHARE = 0.5
"""A worker that lets more than this share of its window wait has too much."""
LOOK_AGAIN_S = 2.0
"""A window that was narrowed for its queue is not narrowed again before the queue had time to shorten."""
LANE_POLL_S = 0.01
CONNECT_S = 5.0
STAYS_S = 0.25
"""A connection that stays open for so long has somebody at its other end."""


class Fleet:
    """The workers of one tier. All methods run in one event loop; none of them blocks it."""

    def __init__(self, base_urls: Sequence[str], *, widest: int, stall_s: float, patience_s: float) -> None:
        self.workers = [Worker(url.rstrip("/"), widest) for url in base_urls]
        self.stall_s = stall_s
        self.patience_s = patience_s
        self.useful = time.monotonic()
        """When a worker last answered anything but "not now"."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._lane = asyncio.Lock()
        self._suspects = 0

    def hope(self) -> None:
        """Somebody comes anew, perhaps because a server was mended: broken workers are tried at once."""
        for worker in self.workers:
            worker.closed_until = min(worker.closed_until, time.monotonic())
        self._wake()

    async def take(self, *, cautious: bool = False) -> Ticket:
        """A place at the least loaded worker that admits one; waits for it as long as its patience lasts.

        A `cautious` request is no probe for a broken worker while there is one that works.

        Raises ModelUnavailable when no worker has answered anything for `patience_s` seconds.
        """
        entered = time.monotonic()
        while (worker := self._choose(cautious=cautious)) is None:
            self._check_patience(entered)
            await self._wait()
        return self._ticket(worker, alone=False)

    async def take_alone(self) -> Ticket:
        """A place at a worker that has nothing else to do, for a request that may kill it; one at a time.

        Raises ModelUnavailable like `take`.
        """
        self._suspects += 1
        try:
            await self._lane.acquire()
        except asyncio.CancelledError:
            self._suspects -= 1
            raise
        entered = time.monotonic()
        try:
            while (worker := self._reserved() or self._choose()) is None or not self._drained(worker):
                self._check_patience(entered)
                await asyncio.sleep(LANE_POLL_S)
        except BaseException:
            self._leave_lane()
            raise
        return self._ticket(worker, alone=True)

    def answered(self, ticket: Ticket) -> None:
        """The worker gave a definite answer: it lives, and its window may grow."""
        worker = ticket.worker
        self.useful = worker.progressed = time.monotonic()
        worker.failures, worker.errors, worker.inquest = 0, 0, None
        worker.grow()
        self._give_back(ticket)

    def pushed_back(self, ticket: Ticket) -> None:
        """The worker said "not now": it lives, and gets less."""
        worker = ticket.worker
        worker.progressed = time.monotonic()
        worker.failures, worker.inquest = 0, None
        worker.shrink(ticket.sent)
        self._give_back(ticket)

    def silent(self, ticket: Ticket) -> None:
        """The worker could not be reached, hung up or made no progress: its breaker opens."""
        worker, now = ticket.worker, time.monotonic()
        if now >= worker.closed_until:
            pause = min(FIRST_BREAK_S * 2**worker.failures, LONGEST_BREAK_S)
            worker.failures += 1
            worker.closed_until = now + pause
            worker.window, worker.congested = float(min(FIRST_WINDOW, worker.widest)), False
            asyncio.get_running_loop().call_later(pause, self._wake)
        self._give_back(ticket)

    def failed(self, ticket: Ticket) -> bool:
        """The worker said that it failed. False when it says nothing else any more: then no row is to blame."""
        ticket.worker.errors += 1
        if ticket.worker.errors >= ERRORS_IN_A_ROW:
            self.silent(ticket)
            return False
        ticket.worker.progressed = time.monotonic()
        self._give_back(ticket)
        return True

    def dropped(self, ticket: Ticket) -> None:
        """Nothing was learnt: the request was cancelled or ran past its own deadline while others were answered."""
        self._give_back(ticket)

    async def died(self, worker: Worker) -> bool:
        """Whether a worker that hung up is gone: nobody listens where it was. One look for all who lost it."""
        if worker.inquest is None:
            worker.inquest = asyncio.ensure_future(_nobody_listens(worker.base_url))
        return await asyncio.shield(worker.inquest)

    def watch(self) -> None:
        """Cut off what is past its deadline, and everything at a worker that answered nothing for `stall_s` seconds."""
        now = time.monotonic()
        for worker in self.workers:
            oldest = min((ticket.sent for ticket in worker.under_way), default=now)
            stalled = now - max(worker.progressed, oldest) > self.stall_s
            for ticket in list(worker.under_way):
                if ticket.task is not None and (stalled or now > ticket.until):
                    ticket.stalled, ticket.expired = stalled, not stalled
                    ticket.cut()

    async def look_at_queues(self, http: aiohttp.ClientSession) -> None:
        """Read the counters of busy workers: tokens that flow are progress, rows that queue there are congestion."""
        for worker in self.workers:
            if not (worker.in_flight and worker.counts) or worker.failures:
                continue
            try:
                seen = await read_queue(http, worker.base_url)
            except (aiohttp.ClientError, OSError, TimeoutError):
                continue  # its requests will tell
            if seen is None:
                worker.counts = False
                continue
            if seen.tokens != worker.tokens:
                worker.tokens, worker.progressed = seen.tokens, time.monotonic()
            if seen.waiting > QUEUE_SHARE * worker.window:
                worker.shrink(time.monotonic() - LOOK_AGAIN_S)

    def _choose(self, *, cautious: bool = False) -> Worker | None:
        now = time.monotonic()
        free = [worker for worker in self.workers if not worker.reserved and worker.admits(now)]
        if cautious and any(not worker.failures for worker in self.workers):
            free = [worker for worker in free if not worker.failures]
        return min(free, key=lambda worker: worker.in_flight) if free else None

    def _ticket(self, worker: Worker, *, alone: bool) -> Ticket:
        worker.in_flight += 1
        ticket = Ticket(worker, time.monotonic(), alone)
        worker.under_way.add(ticket)
        return ticket

    def _give_back(self, ticket: Ticket) -> None:
        ticket.worker.in_flight -= 1
        ticket.worker.under_way.discard(ticket)
        if ticket.alone:
            self._leave_lane()
        self._wake()

    def _reserved(self) -> Worker | None:
        return next((worker for worker in self.workers if worker.reserved), None)

    def _drained(self, worker: Worker) -> bool:
        worker.reserved = True
        if worker.failures and not worker.admits(time.monotonic()):
            worker.reserved = False  # it broke: another one may do
            return False
        return worker.in_flight == 0

    def _leave_lane(self) -> None:
        self._suspects -= 1
        self._lane.release()
        if not self._suspects and (worker := self._reserved()):
            worker.reserved = False
            self._wake()

    def _check_patience(self, entered: float) -> None:
        if time.monotonic() - max(self.useful, entered) > self.patience_s:
            names = ", ".join(worker.base_url for worker in self.workers)
            raise ModelUnavailable(f"{names} could not be reached for {self.patience_s:g} s")

    async def _wait(self) -> None:
        """Until a place may be free, or a second has passed and patience is to be looked at."""
        free: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(free)
        timer = asyncio.get_running_loop().call_later(1.0, _resolve, free)
        try:
            await free
        except asyncio.CancelledError:
            self._wake()  # the place it may have been given is another's
            raise
        finally:
            timer.cancel()

    def _wake(self) -> None:
        if not self._waiting:
            return
        now = time.monotonic()
        free = sum(
            1 if worker.failures else max(0, int(worker.window) - worker.in_flight)
            for worker in self.workers
            if not worker.reserved and worker.admits(now)
        )
        while self._waiting and free > 0:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                free -= 1


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _nobody_listens(base_url: str) -> bool:
    """Whether connections are refused; one that is broken at once says nothing yet.

    A process that ends may close its connections before the socket that takes new ones.
    """
    address = urlsplit(base_url)
    port = address.port or (443 if address.scheme == "https" else 80)
    deadline = time.monotonic() + CONNECT_S
    while time.monotonic() < deadline:
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(address.hostname, port), CONNECT_S)
        except ConnectionRefusedError:
            return True
        except (OSError, TimeoutError):
            return False  # cut off, not gone
        try:
            await asyncio.wait_for(reader.read(1), STAYS_S)
        except TimeoutError:
            return False
        except OSError:
            pass
        finally:
            writer.close()
        await asyncio.sleep(LANE_POLL_S)
    return False
