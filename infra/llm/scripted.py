"""The fake model server that ships: deterministic, OpenAI-compatible, real HTTP on loopback."""

import argparse
import asyncio
import json
import os
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Self

from aiohttp import web
from pydantic import ValidationError

from infra.llm.scripted_answers import Answer, Ask, Rule, Script, answer
from infra.llm.scripted_batches import ScriptedBatches
from infra.llm.scripted_calls import Call, CallBook, CallReport, prometheus_text
from infra.llm.scripted_faults import SPOILING, Fault, choose, error_response, play

__all__ = ["Call", "CallReport", "Fault", "Rule", "Script", "ScriptedModel", "ScriptedServer", "main"]

CACHE_BLOCK = 16  # prefix-cache hits come in whole blocks of tokens, as vLLM's do
BODY_LIMIT = 64 * 2**20


class _RefusedError(Exception):
    """The request itself is wrong; nothing was scripted."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


class ScriptedModel:
    """The routes and the counts of one fake model; `die` is what a poison row does to it."""

    def __init__(self, script: Script, *, die: Callable[[], None]) -> None:
        self.script, self.die = script, die
        self.book = self._new_book()
        self.batches = ScriptedBatches(script.api_key)
        self._slots = None if script.max_running is None else asyncio.Semaphore(script.max_running)
        self._running = 0
        self._seen_prefixes: set[bytes] = set()

    def _new_book(self) -> CallBook:
        return CallBook(keep_rows=self.script.keep_rows, row_pattern=self.script.row_pattern)

    def app(self) -> web.Application:
        """The application to serve."""
        app = web.Application(client_max_size=BODY_LIMIT)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/_calls", self.calls)
        app.router.add_post("/_reset", self.reset)
        self.batches.serve(app)
        return app

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer one chat completion, or do to it what the script says."""
        book = self.book
        book.requests += 1
        book.in_flight += 1
        book.max_in_flight = max(book.max_in_flight, book.in_flight)
        try:
            return await self._serve(request, book)
        except _RefusedError as refused:
            book.refused += 1
            return error_response(refused.status, str(refused), param=refused.param)
        except asyncio.CancelledError:
            book.finished["abort"] += 1
            raise
        finally:
            book.in_flight -= 1

    async def _serve(self, request: web.Request, book: CallBook) -> web.StreamResponse:
        ask = self._read(request, await request.read())
        row = book.row_of(ask.users())
        number = book.next_number(row)
        fault = choose(self.script.faults, row=row, number=number, seen=book.requests, seed=self.script.seed)
        request_id = request.headers.get("X-Request-Id")
        book.arrived(row=row, number=number, request_id=request_id, prompt=ask.prompt(), fault=fault)
        async with self._slot():
            delay = self.script.latency_s + (fault.seconds if fault is not None and fault.kind == "latency" else 0.0)
            if delay:
                await asyncio.sleep(delay)
            return await self._reply(request, book, ask, row=row, number=number, fault=fault)

    async def _reply(
        self, request: web.Request, book: CallBook, ask: Ask, *, row: str, number: int, fault: Fault | None
    ) -> web.StreamResponse:
        kind = None if fault is None else fault.kind
        if kind == "die":
            self.die()
        reply = self._answer(ask, row=row, fault=fault)
        digest = blake2b(f"{number}\x1f{ask.prompt()}".encode(), digest_size=12).hexdigest()
        identity = request.headers.get("X-Request-Id") or digest
        payload = reply.payload(self.script, ask, identity=identity)
        if fault is None or kind == "latency" or kind in SPOILING:
            response = web.Response(body=payload, content_type="application/json")
        else:
            response = await play(fault, request, row=row, payload=payload)
            if kind != "drip":
                return response
        book.settle(
            row,
            finish=reply.finish,
            prompt=reply.prompt_tokens,
            completion=len(reply.tokens),
            cached=reply.cached_tokens,
            spoiled=kind in SPOILING,
        )
        return response

    def _answer(self, ask: Ask, *, row: str, fault: Fault | None) -> Answer:
        try:
            spoiled = None if fault is None else fault.kind
            return answer(self.script, ask, row=row, spoiled=spoiled, cached_tokens=self._cached_tokens(ask))
        except (KeyError, RecursionError) as error:
            raise _RefusedError(400, f"Grammar error: unsupported schema ({error})") from error

    def _read(self, request: web.Request, body: bytes) -> Ask:
        self._authorize(request)
        try:
            ask = Ask.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            param = ".".join(map(str, first["loc"])) or None
            raise _RefusedError(400, f"{param}: {first['msg']}", param=param) from error
        if ask.model != self.script.model:
            raise _RefusedError(404, f"The model `{ask.model}` does not exist.", param="model")
        return ask

    def _authorize(self, request: web.Request) -> None:
        key = self.script.api_key
        if key is not None and request.headers.get("Authorization") != f"Bearer {key}":
            raise _RefusedError(401, "Unauthorized")

    def _cached_tokens(self, ask: Ask) -> int:
        """Whole blocks of the longest run of leading messages seen before; a call's own last message is never kept."""
        digest, tokens, cached = blake2b(digest_size=8), 0, 0
        for message, pieces in zip(ask.messages[:-1], ask.piece_counts(), strict=False):
            digest.update(f"{message.role}\x1f{message.text()}\x1e".encode())
            tokens += pieces
            if digest.digest() in self._seen_prefixes:
                cached = tokens
            self._seen_prefixes.add(digest.digest())
        return cached // CACHE_BLOCK * CACHE_BLOCK

    @asynccontextmanager
    async def _slot(self) -> AsyncGenerator[None]:
        if self._slots is not None:
            await self._slots.acquire()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if self._slots is not None:
                self._slots.release()

    async def models(self, request: web.Request) -> web.Response:
        """The one model, as vLLM lists it."""
        try:
            self._authorize(request)
        except _RefusedError as refused:
            return error_response(refused.status, str(refused))
        card = {"id": self.script.model, "object": "model", "owned_by": "headrace"}
        return web.json_response({"object": "list", "data": [card]})

    async def health(self, request: web.Request) -> web.Response:
        """Alive, which says nothing about answering: a hung model is healthy."""
        return web.Response()

    async def metrics(self, request: web.Request) -> web.Response:
        """The counts under vLLM's names."""
        return web.Response(text=prometheus_text(self.script.model, self.book, running=self._running))

    async def calls(self, request: web.Request) -> web.Response:
        """The counts as JSON."""
        return web.Response(text=self.book.report().model_dump_json(), content_type="application/json")

    async def reset(self, request: web.Request) -> web.Response:
        """Forget everything, as a restart does."""
        self.book = self._new_book()
        self._seen_prefixes.clear()
        return web.Response()


class ScriptedServer:
    """A fake model on a port of its own, in a thread of this process: `with ScriptedServer(script) as server`."""

    def __init__(self, script: Script | None = None, *, port: int = 0) -> None:
        self.script = script or Script()
        self.port = port
        self.model = ScriptedModel(self.script, die=self._drop_everything)
        self._bound: Future[int] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="scripted-model", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: web.AppRunner | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = self._bound.result(timeout=30)
        return self

    def __exit__(self, *exc: object) -> None:
        self._call_soon(self._stop.set)
        self._thread.join(timeout=30)

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.__exit__)

    @property
    def root_url(self) -> str:
        """Where /health, /metrics and /_calls are."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client wants."""
        return f"{self.root_url}/v1"

    @property
    def calls(self) -> CallReport:
        """The counts so far."""
        return self.model.book.report()

    @property
    def log(self) -> list[Call]:
        """Every call so far, in order of arrival; empty with `keep_rows` off."""
        return list(self.model.book.log)

    def kill(self) -> None:
        """Die as a killed process does: connections reset, port closed, nothing answered."""
        self._call_soon(self._drop_everything)
        self._thread.join(timeout=30)

    def _call_soon(self, callback: Callable[[], None]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)

    def _drop_everything(self) -> None:
        server = self._runner and self._runner.server
        for connection in server.connections if server else ():
            if connection.transport is not None:
                connection.transport.abort()
        self._stop.set()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._bound.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._runner = await start(self.model, port=self.port)
        self._bound.set_result(self._runner.addresses[0][1])
        await self._stop.wait()
        await self._runner.cleanup()


async def start(model: ScriptedModel, *, port: int) -> web.AppRunner:
    """Listen on loopback; a call whose client goes away is aborted, as vLLM does."""
    runner = web.AppRunner(model.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    return runner


async def _serve_forever(script: Script, *, port: int) -> None:
    runner = await start(ScriptedModel(script, die=lambda: os._exit(137)), port=port)
    bound: int = runner.addresses[0][1]
    print(json.dumps({"port": bound, "base_url": f"http://127.0.0.1:{bound}/v1", "pid": os.getpid()}), flush=True)
    await asyncio.Event().wait()


def main(arguments: list[str] | None = None) -> None:
    """Serve one script until killed."""
    parser = argparse.ArgumentParser(prog="python -m infra.llm.scripted", description=__doc__)
    parser.add_argument("--port", type=int, default=8001, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--script", type=Path, help="script as JSON; without it every label is picked by hash")
    options = parser.parse_args(arguments)
    script = Script.model_validate_json(options.script.read_bytes()) if options.script else Script()
    asyncio.run(_serve_forever(script, port=options.port))


if __name__ == "__main__":
    main()
