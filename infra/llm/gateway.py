"""The wire: raw HTTP to OpenAI-compatible servers, several a tier, with one retry layer.

The protocol is POST {base_url}/chat/completions as documented by OpenAI and served by vLLM.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp
import orjson
from yarl import URL

from domain.errors import (
    AnswerGarbled,
    ModelError,
    ModelUnavailable,
    RequestFailed,
    RequestRefused,
    RequestTimedOut,
    WorkerKilled,
)
from domain.ledgers import OutcomeClass
from domain.requests import Completion, Request
from infra.llm.addresses import is_loopback
from infra.llm.bodies import read_body
from infra.llm.fleet import Fleet
from infra.llm.lengths import Lengths
from infra.llm.replies import Reply, Try
from infra.llm.wire import Garbled, read_completion
from infra.llm.workers import Ticket
from infra.redaction import redacted

THROTTLED = frozenset({429, 503})
"""Not now: waited out for as long as anything else is answered, and never counted against the request."""
FAILED = frozenset({408, 409, 500, 502, 504})
MOST = {
    OutcomeClass.FAILED: 4,
    OutcomeClass.LOST: 4,
    OutcomeClass.GARBLED: 3,
    OutcomeClass.TIMEOUT: 1,
    OutcomeClass.REFUSED: 1,
}
"""After so many tries that ended in this way a request is given up; others are not limited."""
ENDLESS = 1_000_000
DEATHS = 2
LONGEST_BACKOFF_S = 20.0
WATCH_EVERY_S = 0.25
LOOK_EVERY_S = 2.0
CONNECT_S = 10.0
KEPT_S = 4.0
"""An idle connection is closed before the server does it, vLLM after 5 s: no request meets a closed one."""
LONGEST_ANSWER = 32 * 1024 * 1024
"""Bytes; an answer of 24 tokens with its log-probabilities has about 50,000."""


@dataclass(frozen=True, slots=True)
class _Failure:
    outcome: OutcomeClass
    error: ModelError
    pause: float | None = None


@dataclass(slots=True)
class _Ride:
    """One request's way: its tries, and the seconds of its deadline that are left."""

    request: Request
    body: bytes
    left: float
    began: float = field(default_factory=time.monotonic)
    tries: list[Try] = field(default_factory=list[Try])
    deaths: int = 0

    def ended(self, outcome: OutcomeClass) -> int:
        """How many tries ended in this way."""
        return sum(once.outcome is outcome for once in self.tries)


class Gateway:
    """Sends requests to a tier's workers; `async with` opens and closes the connections.

    `in_flight` bounds the requests under way at each worker, `deadline_s` is the time one request may spend being
    answered, over all its tries; `patience_s` is how long an outage of all workers is waited out.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        *,
        api_key: str | None,
        in_flight: int,
        deadline_s: float,
        patience_s: float = 300.0,
        stall_s: float | None = None,
        sleep: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        stall_s = deadline_s / 2 if stall_s is None else stall_s
        self.fleet = Fleet(base_urls, widest=in_flight, stall_s=stall_s, patience_s=patience_s)
        self.in_flight = in_flight * len(self.fleet.workers)
        self.lengths = Lengths()
        self._urls = {worker: URL(f"{worker.base_url}/chat/completions") for worker in self.fleet.workers}
        self._api_key = api_key
        self._deadline_s = deadline_s
        self._sleep = sleep or sleep_out
        self._http: aiohttp.ClientSession | None = None
        self._watches: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        # Answers come as they are: nothing is unpacked, so nothing can unpack without end.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, keepalive_timeout=KEPT_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            auto_decompress=False,
            trust_env=not all(is_loopback(worker.base_url) for worker in self.fleet.workers),
        )
        self._watches = [
            asyncio.create_task(self._watch_progress()),
            asyncio.create_task(self._watch_queues(self._http)),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    async def send(self, request: Request) -> Reply:
        """Ask until there is an answer, a refusal or no try left; a ModelError is in the reply, never raised."""
        if self._http is None:
            raise RuntimeError("the gateway is not open: use `async with`")
        if refusal := await self.lengths.refuse(self._http, self.fleet.workers[0].base_url, request):
            return Reply(request, (), None, refusal)
        ride = _Ride(request, orjson.dumps(request.body), self._deadline_s)
        while True:
            try:
                ticket = await self._take(ride)
            except ModelUnavailable as error:
                return Reply(request, ride.tries, None, error)
            started = time.monotonic()
            try:
                result = await self._post(self._http, ticket, ride)
            except asyncio.CancelledError:
                self.fleet.dropped(ticket)
                raise
            seconds = time.monotonic() - started
            if isinstance(result, Completion):
                self.fleet.answered(ticket)
                self.lengths.learn(request, result.usage.prompt)
                outcome = OutcomeClass.ANSWERED if result.finish_reason == "stop" else OutcomeClass.TRUNCATED
                ride.tries.append(Try(ticket.worker.base_url, seconds, outcome, result.usage))
                return Reply(request, ride.tries, result)
            ride.tries.append(Try(ticket.worker.base_url, seconds, result.outcome, detail=result.error.message[:1000]))
            if error := await self._give_up(ticket, ride, result):
                return Reply(request, ride.tries, None, error)
            await self._pause(ride, result)

    async def _take(self, ride: _Ride) -> Ticket:
        if ride.deaths:
            return await self.fleet.take_alone()
        return await self.fleet.take(cautious=ride.ended(OutcomeClass.STALLED) > 0)

    async def _give_up(self, ticket: Ticket, ride: _Ride, failure: _Failure) -> ModelError | None:
        """Tell the fleet how the try ended; the error to end with, or None for another try."""
        outcome = failure.outcome
        if outcome is OutcomeClass.LOST and await self.fleet.died(ticket.worker):
            self.fleet.silent(ticket)
            ride.deaths += 1
            killed = WorkerKilled(f"{ticket.worker.base_url} died of it twice, the second time of it alone")
            return killed if ride.deaths == DEATHS else None
        charged = self._report(ticket, outcome)
        if outcome is OutcomeClass.STALLED:
            ride.left -= ticket.charged
            # A row that nobody answers looks like a worker that answers nobody: after its time it is no excuse.
            charged = ride.ended(outcome) > 1 and time.monotonic() - ride.began >= self._deadline_s
            return failure.error if charged else None
        if outcome is not OutcomeClass.UNAVAILABLE:
            ride.left -= ride.tries[-1].seconds
        if outcome is OutcomeClass.THROTTLED:
            waited = time.monotonic() - max(self.fleet.useful, ride.began)
            return failure.error if waited > self.fleet.patience_s else None
        return failure.error if charged and ride.ended(outcome) >= MOST.get(outcome, ENDLESS) else None

    def _report(self, ticket: Ticket, outcome: OutcomeClass) -> bool:
        """Let the fleet know; False when the worker is to blame and not the request."""
        match outcome:
            case OutcomeClass.FAILED:
                return self.fleet.failed(ticket)
            case OutcomeClass.UNAVAILABLE | OutcomeClass.STALLED:
                self.fleet.silent(ticket)
            case OutcomeClass.THROTTLED:
                self.fleet.pushed_back(ticket)
            case OutcomeClass.LOST | OutcomeClass.TIMEOUT:
                self.fleet.dropped(ticket)
            case _:
                self.fleet.answered(ticket)
        return True

    async def _pause(self, ride: _Ride, failure: _Failure) -> None:
        if failure.pause is not None:
            await self._sleep(min(failure.pause, self.fleet.patience_s))
        elif failure.outcome not in (OutcomeClass.UNAVAILABLE, OutcomeClass.STALLED) and not ride.deaths:
            # Half of it at random: rows that failed together do not come back together.
            backoff = min(0.25 * 2 ** len(ride.tries), LONGEST_BACKOFF_S)
            await self._sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - no secret depends on it

    async def _post(self, http: aiohttp.ClientSession, ticket: Ticket, ride: _Ride) -> Completion | _Failure:
        name = ticket.worker.base_url
        ticket.begin(ride.left)
        try:
            # A redirect is a refusal: rows go to the servers that were named and to no other.
            response = await http.post(self._urls[ticket.worker], data=ride.body, allow_redirects=False)
            try:
                body = await read_body(response, LONGEST_ANSWER)
            finally:
                response.release()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return _unavailable(OutcomeClass.UNAVAILABLE, f"{name} could not be reached ({type(error).__name__})")
        except (aiohttp.ClientError, OSError) as error:
            message = f"{name} ended the connection ({type(error).__name__})"
            return _Failure(OutcomeClass.LOST, RequestFailed(message))
        except asyncio.CancelledError:
            return _cut(ticket, name, self.fleet.stall_s, self._deadline_s)
        finally:
            ticket.end()
        return _read(ride.request, response.status, body, response.headers.get("Retry-After"), self._api_key)

    async def _watch_progress(self) -> None:
        while True:
            await asyncio.sleep(min(WATCH_EVERY_S, self.fleet.stall_s / 4))
            self.fleet.watch()

    async def _watch_queues(self, http: aiohttp.ClientSession) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.fleet.look_at_queues(http)


def _cut(ticket: Ticket, name: str, stall_s: float, deadline_s: float) -> _Failure:
    """What a try came to that was broken off; raises CancelledError when it was not the watch that broke it off."""
    task = asyncio.current_task()
    if not ticket.was_cut or task is None or task.uncancel() > 0:
        raise asyncio.CancelledError
    if ticket.stalled:
        return _Failure(OutcomeClass.STALLED, RequestTimedOut(f"{name} answered nothing for {stall_s:g} s"))
    return _Failure(OutcomeClass.TIMEOUT, RequestTimedOut(f"{name} did not answer within {deadline_s:g} s"))


async def sleep_out(seconds: float) -> None:
    """Sleep at least so long: uvloop counts whole milliseconds, and may wake one too early."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:  # noqa: ASYNC110 - it waits for the clock, not for a state
        await asyncio.sleep(left)


def _unavailable(outcome: OutcomeClass, message: str, pause: float | None = None) -> _Failure:
    return _Failure(outcome, ModelUnavailable(message), pause)


def _read(
    request: Request, status: int, body: bytes, retry_after: str | None, key: str | None
) -> Completion | _Failure:
    if status == 200:
        try:
            return read_completion(request, body)
        except Garbled as error:
            return _Failure(OutcomeClass.GARBLED, AnswerGarbled(f"the answer is not a chat completion: {error}"))
    # A server may repeat our key, and what it said is kept with the row.
    detail = redacted(body[:4096].decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}"), key)
    message = f"HTTP {status}: {detail[:300]}"
    if status in THROTTLED:
        pause = float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else None
        return _unavailable(OutcomeClass.THROTTLED, message, pause)
    if status in FAILED:
        return _Failure(OutcomeClass.FAILED, RequestFailed(message))
    return _Failure(OutcomeClass.REFUSED, RequestRefused(message))
