"""The wire: raw HTTP to OpenAI-compatible servers, several a tier, with one retry layer.

The protocol is POST {base_url}/chat/completions as documented by OpenAI and served by vLLM.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp
import orjson

from domain.errors import AnswerGarbled, ModelError, ModelUnavailable, RequestRefused
from domain.ledgers import OutcomeClass
from domain.requests import Completion, Request
from infra.llm.addresses import is_loopback
from infra.llm.replies import Reply, Try
from infra.llm.wire import Garbled, read_completion

RETRY_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})
MAX_TRIES = 5
LONGEST_PAUSE_S = 20.0
REST_S = 5.0
"""How long a server that did not answer at all is passed over while another one is there."""
LONGEST_ANSWER = 32 * 1024 * 1024
"""Bytes; an answer of 24 tokens with its log-probabilities has about 50,000."""


@dataclass(slots=True)
class _Worker:
    base_url: str
    in_flight: int = 0
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    resting_until: float = float("-inf")


@dataclass(frozen=True, slots=True)
class _Failure:
    outcome: OutcomeClass
    error: ModelError
    pause: float | None = None


class Gateway:
    """Sends requests to the least loaded of several workers; `async with` opens and closes the connections."""

    def __init__(
        self,
        base_urls: Sequence[str],
        *,
        api_key: str | None,
        in_flight: int,
        deadline_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._workers = [_Worker(url.rstrip("/"), slots=asyncio.Semaphore(in_flight)) for url in base_urls]
        self.window = in_flight * len(self._workers)
        self._api_key = api_key
        self._deadline_s = deadline_s
        self._sleep = sleep
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # Answers come as they are: nothing is unpacked, so nothing can unpack without end.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._deadline_s, sock_connect=10),
            headers=headers,
            auto_decompress=False,
            trust_env=not all(is_loopback(worker.base_url) for worker in self._workers),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()

    async def send(self, request: Request) -> Reply:
        """Ask until there is an answer, a refusal or no try left; a ModelError is in the reply, never raised."""
        tries: list[Try] = []
        while True:
            # A dead server answers nothing quickly: without its rest it would look the least loaded.
            worker = min(self._workers, key=lambda w: (w.resting_until > time.monotonic(), w.in_flight))
            worker.in_flight += 1
            try:
                async with worker.slots:
                    result, once = await self._post(worker, request)
            finally:
                worker.in_flight -= 1
            tries.append(once)
            if isinstance(result, Completion):
                return Reply(request, tries, result)
            if not result.error.retryable or len(tries) == MAX_TRIES:
                return Reply(request, tries, None, result.error)
            backoff = min(0.25 * 2 ** len(tries), LONGEST_PAUSE_S)
            await self._sleep(backoff if result.pause is None else min(result.pause, LONGEST_PAUSE_S))

    async def _post(self, worker: _Worker, request: Request) -> tuple[Completion | _Failure, Try]:
        if self._http is None:
            raise RuntimeError("the gateway is not open: use `async with`")
        base_url, started = worker.base_url, time.monotonic()
        try:
            # A redirect is a refusal: rows go to the servers that were named and to no other.
            async with self._http.post(
                f"{base_url}/chat/completions", data=orjson.dumps(request.body), allow_redirects=False
            ) as response:
                body = await _body(response)
                result = _read(request, response.status, body, response.headers.get("Retry-After"))
        except TimeoutError:
            message = f"{base_url} did not answer within {self._deadline_s:g} s"
            result = _silent(worker, OutcomeClass.TIMEOUT, message)
        except (aiohttp.ClientError, OSError) as error:
            message = f"{base_url} could not be reached ({type(error).__name__})"
            result = _silent(worker, OutcomeClass.UNAVAILABLE, message)
        seconds = time.monotonic() - started
        if isinstance(result, Completion):
            outcome = OutcomeClass.ANSWERED if result.finish_reason == "stop" else OutcomeClass.TRUNCATED
            return result, Try(base_url, seconds, outcome, result.usage)
        return result, Try(base_url, seconds, result.outcome, detail=result.error.message)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """The body up to the first piece beyond LONGEST_ANSWER; cut there it is no JSON and is refused as garbled."""
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > LONGEST_ANSWER:
            response.close()
            break
    return b"".join(pieces)


def _silent(worker: _Worker, outcome: OutcomeClass, message: str) -> _Failure:
    worker.resting_until = time.monotonic() + REST_S
    return _Failure(outcome, ModelUnavailable(message))


def _read(request: Request, status: int, body: bytes, retry_after: str | None) -> Completion | _Failure:
    if status == 200:
        try:
            return read_completion(request, body)
        except Garbled as error:
            return _Failure(OutcomeClass.GARBLED, AnswerGarbled(f"the answer is not a chat completion: {error}"))
    detail = body[:300].decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    if status in RETRY_STATUSES:
        pause = float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else None
        return _Failure(OutcomeClass.UNAVAILABLE, ModelUnavailable(f"HTTP {status}: {detail}"), pause)
    return _Failure(OutcomeClass.REFUSED, RequestRefused(f"HTTP {status}: {detail}"))
