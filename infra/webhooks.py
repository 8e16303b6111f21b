"""The receiver of webhooks: POST /hooks/{source}. What it believes it writes down first, and answers then."""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from domain.doors import is_loopback
from domain.errors import HeadraceError, InputError, NotFound, Place, StoreError, WorkloadError
from infra import credentials, metrics
from infra.background import Loop, going_on
from infra.receiving import IdTaken, receive
from infra.settings import Settings
from infra.signatures import NotBelieved, same
from infra.triggers import load_triggers
from infra.webhook_document import HEALTH, HOOK, PROBE, SCHEMES

log = logging.getLogger("headrace")
LARGEST = 256 * 1024
"""Bytes of a body; nothing of what is beyond is kept."""
READ_S = 10.0
"""Time for a body to arrive, seconds."""
LINGER_S = 2.0
"""So long a sender may go on with a body that is too large, unread, so that it sees its answer and not a reset."""
LARGEST_HEAD = 32 * 1024
AGAIN_S = "30"
"""When a sender should try again while Postgres is away, seconds."""
GRACE_S = 10
CLOSE = {"connection": "close"}


def make_app(settings: Settings, *, clock: Callable[[], float] = time.time) -> FastAPI:
    """The receiver as an ASGI application; `clock` gives seconds since 1970."""
    # No documentation pages: they load scripts from elsewhere. No redirects: they are built from the Host header.
    app = FastAPI(title="Headrace webhooks", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)

    async def hook(request: Request) -> Response:
        source = str(request.path_params["source"])
        body = await _body(request)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
        try:
            receipt = await run_in_threadpool(receive, settings, source, headers, body, now=clock())
        except HeadraceError as error:
            raise _refusal(source, error) from error
        return JSONResponse(asdict(receipt), status_code=202)

    async def probe(_request: Request) -> Response:
        return Response()  # MinIO asks without credentials whether somebody is there; every name gets the same

    async def health() -> dict[str, str]:
        return {"status": "ok"}

    app.add_api_route("/hooks/{source}", hook, methods=["POST"], response_model=None, **HOOK)
    for method in ("GET", "HEAD"):
        name = f"probe_{method.lower()}"
        app.add_api_route("/hooks/{source}", probe, methods=[method], response_model=None, operation_id=name, **PROBE)
    app.add_api_route("/health", health, methods=["GET"], **HEALTH)
    app.add_api_route("/metrics", _metrics(settings), methods=["GET"], include_in_schema=False)
    app.add_exception_handler(_TooLarge, _too_large)
    app.add_exception_handler(405, _not_allowed)
    app.add_middleware(_AccessLog)
    app.openapi()["components"] = {"securitySchemes": SCHEMES}
    return app


def _metrics(settings: Settings) -> Callable[[Request], Awaitable[Response]]:
    """Figures for Prometheus: free on this machine; who comes from elsewhere, or through a proxy, needs the token."""
    figures = metrics.registry()

    async def scraped(request: Request) -> Response:
        near = request.client is not None and is_loopback(request.client.host)
        if not near or "x-forwarded-for" in request.headers or "forwarded" in request.headers:
            token = await run_in_threadpool(credentials.secret, settings, "metrics-token")
            given = request.headers.get("authorization", "")
            if not same(given.encode(), f"Bearer {token}".encode()):
                raise HTTPException(401, "The metrics need a token.", {"www-authenticate": "Bearer"})
        return Response(await run_in_threadpool(generate_latest, figures), media_type=CONTENT_TYPE_LATEST)

    return scraped


async def _body(request: Request) -> bytes:
    """The raw body; raises HTTPException 400 and 408, and _TooLarge before it has read more than a chunk too many."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > LARGEST:
        raise _TooLarge
    body = bytearray()
    try:
        async with asyncio.timeout(READ_S):
            async for chunk in request.stream():
                if len(body) + len(chunk) > LARGEST:
                    raise _TooLarge
                body += chunk
    except TimeoutError as error:
        raise HTTPException(408, "The body took too long.", CLOSE) from error
    except ClientDisconnect as error:  # nobody is there to read this, or the body was no HTTP
        raise HTTPException(400, "The body ended before its end.", CLOSE) from error
    return bytes(body)


def _refusal(source: str, error: HeadraceError) -> HTTPException:
    """What the sender is told: no more than helps an honest one. The log has the reason."""
    match error:
        case NotBelieved():
            log.warning("%s: a message was not believed: %s", source, error)
            return HTTPException(401, "The message is not signed as it should be.", {"www-authenticate": "Signature"})
        case NotFound():
            return HTTPException(404, "There is no such source.")
        case IdTaken():
            log.warning("%s: %s", source, error)
            return HTTPException(409, error.message)
        case StoreError():
            log.error("%s: a message could not be written down: %s", source, error)
            return HTTPException(503, "The message cannot be kept now; send it again.", {"retry-after": AGAIN_S})
        case WorkloadError():
            log.error("messages wait at their senders until triggers.yaml is mended: %s", error)
            return HTTPException(503, "Our configuration cannot be read; send it again.", {"retry-after": AGAIN_S})
        case InputError():
            return HTTPException(400, error.message)
        case _:
            raise error


class _TooLarge(Exception):
    """A body of more than LARGEST bytes."""


async def _too_large(_request: Request, _error: Exception) -> Response:
    return _Lingering({"detail": f"A body has at most {LARGEST} bytes."}, status_code=413, headers=CLOSE)


async def _not_allowed(request: Request, error: Exception) -> Response:
    """Starlette names the methods of the first route of this path only; here are two routes."""
    known = (error.headers or {}).get("allow", "") if isinstance(error, HTTPException) else ""
    allow = "GET, HEAD, POST" if request.url.path.startswith("/hooks/") else known
    return JSONResponse({"detail": "Method Not Allowed"}, status_code=405, headers={"allow": allow})


class _Lingering(JSONResponse):
    """An answer that is sent at once, and then lets the sender finish, unread, for a moment.

    Closing a connection with unread bytes resets it, and many a sender then never reads its answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _AccessLog:
    """One line a request: never its query, its headers or its body, which may hold secrets."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path: bytes = scope.get("raw_path", b"")  # as it was sent: no line breaks
                log.info("%s %s %s", scope["method"], path[:200].decode("latin-1"), message["status"])
            await send(message)

        await self._app(scope, receive, noted if scope["type"] == "http" else send)


def check_host(host: str, *, behind_proxy: bool) -> None:
    """Raises InputError for an address that others can reach, unless the user says that a proxy with TLS is there."""
    if not is_loopback(host) and not behind_proxy:
        hint = "Put a proxy with TLS in front and say --behind-proxy, or listen on 127.0.0.1."
        raise InputError(Place("--host"), f"{host} can be reached from elsewhere, without TLS", hint=hint)


class PortTaken(HeadraceError):
    """Somebody else listens there."""

    retryable = True
    hint = "Choose another with --port, or see `headrace status`."


def serve(settings: Settings, host: str, port: int, loops: Sequence[Loop]) -> None:
    """Receive until SIGTERM or Ctrl-C, with the loops beside; requests and turns under way are finished.

    Raises WorkloadError when triggers.yaml is wrong, and PortTaken.
    """
    load_triggers(settings)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines hold whole addresses
    config: dict[str, Any] = {
        "http": _Impatient,
        "ws": "none",
        "lifespan": "off",
        "log_config": None,
        "access_log": False,
    }
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(settings),
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=LARGEST_HEAD,
            timeout_graceful_shutdown=GRACE_S,
            **config,
        )
    )
    with _listening(host, port) as listening, going_on(loops), contextlib.suppress(KeyboardInterrupt):
        # uvicorn raises the signal once more when it has ended; the default handler would end us before the loops.
        signal.signal(signal.SIGTERM, _noted)
        log.info("receiving at http://%s:%d/hooks/…", *listening.getsockname()[:2])
        server.run(sockets=[listening])
    log.info("receiving no more")


class _Impatient(H11Protocol):
    """HTTP/1.1 that gives a sender up who does not come to the end of a request's head; uvicorn waits for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self.loop.call_later(READ_S, self._look, None)

    def _look(self, last: object) -> None:
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self.cycle is last:  # no head has come to its end since the last look
            self.transport.close()
        else:
            self.loop.call_later(READ_S, self._look, self.cycle)


def _noted(_number: int, _frame: object) -> None:
    pass


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise PortTaken(f"{host}:{port} cannot be listened on: {error.strerror}") from error
