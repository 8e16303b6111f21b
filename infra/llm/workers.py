"""One model server as the gateway sees it: a window that adapts, a breaker, and the requests on their way to it."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

FIRST_WINDOW = 8


@dataclass(slots=True, eq=False)
class Worker:
    """One model server: how much it is given, and whether it is given anything at all."""

    base_url: str
    widest: int
    window: float = field(init=False)
    congested: bool = False
    shrunk: float = float("-inf")
    in_flight: int = 0
    failures: int = 0
    """In a row; the breaker is open while this is not 0."""
    closed_until: float = float("-inf")
    """Nothing is sent before; afterwards one request at a time, until one is answered."""
    errors: int = 0
    """Answers in a row that said the server itself failed."""
    progressed: float = 0.0
    tokens: float = -1.0
    counts: bool = True
    """Whether it has a page of counters to look at."""
    reserved: bool = False
    under_way: set["Ticket"] = field(default_factory=set["Ticket"])
    inquest: asyncio.Task[bool] | None = None

    def __post_init__(self) -> None:
        self.window = float(min(FIRST_WINDOW, self.widest))

    def admits(self, now: float) -> bool:
        """Whether one more request may go to it."""
        if self.failures:
            return self.in_flight == 0 and now >= self.closed_until
        return self.in_flight < int(self.window)

    def grow(self) -> None:
        """Widen the window: double it in a round trip until the first congestion, then by one a round trip."""
        self.window = min(self.window + (1 / self.window if self.congested else 1), float(self.widest))

    def shrink(self, sent: float) -> None:
        """Halve the window, once for all the requests that met the same congestion."""
        if sent > self.shrunk:
            self.congested = True
            self.shrunk = time.monotonic()
            self.window = max(1.0, self.window / 2)


@dataclass(slots=True, eq=False)
class Ticket:
    """One request on its way to one worker."""

    worker: Worker
    sent: float
    alone: bool
    until: float = float("inf")
    task: asyncio.Task[Any] | None = None
    stalled: bool = False
    expired: bool = False

    @property
    def charged(self) -> float:
        """Seconds of the request's deadline that are its own fault: up to its worker's last sign of progress."""
        until = self.worker.progressed if self.stalled else time.monotonic()
        return max(0.0, until - self.sent)

    def begin(self, seconds: float) -> None:
        """From now on the task that called this is cut off after so many seconds, or when its worker stalls."""
        # One watch over all of them costs a fraction of a timer each.
        self.task, self.until = asyncio.current_task(), self.sent + seconds

    def end(self) -> None:
        """The try is over: it is not cut off any more."""
        self.task = None

    def cut(self) -> None:
        """Break the try off; its task gets a CancelledError, and `was_cut` is true."""
        if self.task is not None:
            self.task.cancel()
            self.task = None

    @property
    def was_cut(self) -> bool:
        """Whether the try was broken off by the watch."""
        return self.stalled or self.expired
