"""The fake model server's Files and Batches: every line of a batch is a call to its own chat route.

So a batch gets the scripted answers and faults, and its calls stand in the same book.
"""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
from aiohttp import web
from pydantic import JsonValue

from infra.llm.scripted_faults import error_response

AT_ONCE = 16
Handler = Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Pace:
    """How the server treats its batches; assign another one to `ScriptedBatches.pace` at any time."""

    rows: int | None = None
    """Rows that are run before the batch ends as `ends` says; none: all."""
    ends: Literal["completed", "expired", "cancelled", "failed"] = "completed"
    held: bool = False
    """Batches stay in progress."""
    failure: str = "invalid_request"
    """The code of a failed batch's error."""
    answer_s: float = 5.0
    """Time one row may take, seconds; a row that hangs becomes an error line."""


@dataclass(slots=True)
class _Batch:
    card: dict[str, JsonValue]
    lines: list[dict[str, Any]]
    base_url: str
    headers: dict[str, str]
    outputs: list[bytes] = field(default_factory=list[bytes])
    errors: list[bytes] = field(default_factory=list[bytes])

    @property
    def cancelling(self) -> bool:
        return self.card["status"] == "cancelling"


class ScriptedBatches:
    """Files and batches in memory."""

    def __init__(self, api_key: str | None) -> None:
        self.pace = Pace()
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        """Every call to these routes, as "METHOD /path"."""
        self._api_key = api_key
        self._numbers = itertools.count(1)
        self._batches: dict[str, _Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def cards(self) -> list[dict[str, JsonValue]]:
        """Every batch as the API shows it, oldest first."""
        return [dict(batch.card) for batch in list(self._batches.values())]

    def serve(self, app: web.Application) -> None:
        """Add the routes."""
        route = app.router.add_route
        route("POST", "/v1/files", self._guarded(self._upload))
        route("GET", "/v1/files/{id}/content", self._guarded(self._content))
        route("DELETE", "/v1/files/{id}", self._guarded(self._delete))
        route("POST", "/v1/batches", self._guarded(self._create))
        route("GET", "/v1/batches", self._guarded(self._list))
        route("GET", "/v1/batches/{id}", self._guarded(self._show))
        route("POST", "/v1/batches/{id}/cancel", self._guarded(self._cancel))
        app.cleanup_ctx.append(self._ending)

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            self.requests.append(f"{request.method} {request.path}")
            if self._api_key is not None and request.headers.get("Authorization") != f"Bearer {self._api_key}":
                return error_response(401, "Unauthorized")
            try:
                return await handler(request)
            except KeyError as error:
                return error_response(404, f"No such object: {error.args[0]}")

        return guarded

    async def _ending(self, _app: web.Application) -> AsyncGenerator[None]:
        yield
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        upload = form["file"]
        if form.get("purpose") != "batch" or not isinstance(upload, web.FileField):
            return error_response(400, "purpose must be batch", param="purpose")
        return web.json_response(self._file(await asyncio.to_thread(upload.file.read)))

    def _file(self, content: bytes) -> dict[str, JsonValue]:
        name = f"file-{next(self._numbers)}"
        self.files[name] = content
        card: dict[str, JsonValue] = {"id": name, "object": "file", "bytes": len(content), "created_at": 1}
        return card | {"filename": "batch.jsonl", "purpose": "batch", "status": "processed"}

    async def _content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]], content_type="application/octet-stream")

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        del self.files[name]
        return web.json_response({"id": name, "object": "file", "deleted": True})

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        content = self.files[asked["input_file_id"]]
        if asked["endpoint"] != "/v1/chat/completions" or asked["completion_window"] != "24h":
            return error_response(400, "unsupported endpoint or window", param="endpoint")
        card: dict[str, JsonValue] = {
            "id": f"batch_{len(self._batches) + 1}",
            "object": "batch",
            "endpoint": asked["endpoint"],
            "completion_window": "24h",
            "input_file_id": asked["input_file_id"],
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
            "status": "in_progress",
            "created_at": int(time.time()),
            "metadata": asked.get("metadata"),
        }
        headers = {"Authorization": request.headers.get("Authorization", ""), "Content-Type": "application/json"}
        base_url = f"http://127.0.0.1:{request.url.port}"
        batch = _Batch(card, [json.loads(line) for line in content.splitlines()], base_url, headers)
        self._batches[str(card["id"])] = batch
        task = asyncio.create_task(self._work(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return web.json_response(card)

    async def _list(self, request: web.Request) -> web.Response:
        cards = self.cards[::-1]
        return web.json_response({"object": "list", "data": cards, "has_more": False})

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._batches[request.match_info["id"]].card)

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self._batches[request.match_info["id"]]
        if batch.card["status"] == "in_progress":
            batch.card["status"] = "cancelling"
        return web.json_response(batch.card)

    async def _work(self, batch: _Batch) -> None:
        """Run the rows and end the batch as the pace says; results come in another order than the requests."""
        todo = batch.lines[: self.pace.rows]
        async with aiohttp.ClientSession(base_url=batch.base_url, headers=batch.headers) as client:
            for start in range(0, len(todo), AT_ONCE):
                if batch.cancelling:
                    break
                async with asyncio.TaskGroup() as calls:
                    for line in todo[start : start + AT_ONCE]:
                        calls.create_task(self._run(client, batch, line))
        while self.pace.held and not batch.cancelling:  # noqa: ASYNC110 - a test changes the pace from its own thread
            await asyncio.sleep(0.01)
        self._end(batch, "cancelled" if batch.cancelling else self.pace.ends)

    async def _run(self, client: aiohttp.ClientSession, batch: _Batch, line: dict[str, Any]) -> None:
        custom_id, body = line["custom_id"], b"null"
        try:
            async with asyncio.timeout(self.pace.answer_s):
                async with client.post(line["url"], data=json.dumps(line["body"])) as answer:
                    status, body = answer.status, await answer.read()
        except (TimeoutError, aiohttp.ClientError) as error:
            batch.errors.append(_error(custom_id, "server_error", type(error).__name__))
            return
        # What a fault left of a body stands in the line as it is: then the line is garbage too.
        head = {"id": f"batch_req_{custom_id[:8]}", "custom_id": custom_id, "error": None}
        response = b'"response":{"status_code":%d,"request_id":"r","body":%s}}' % (status, body)
        whole = json.dumps(head)[:-1].encode() + b"," + response
        (batch.outputs if status == 200 else batch.errors).append(whole)

    def _end(self, batch: _Batch, status: str) -> None:
        if status in {"expired", "cancelled"}:
            ids = [line["custom_id"] for line in batch.lines]
            answered = b"\n".join(batch.outputs + batch.errors)
            reached = {custom_id for custom_id in ids if custom_id.encode() in answered}
            batch.errors += [
                _error(custom_id, f"batch_{status}", "not run") for custom_id in ids if custom_id not in reached
            ]
        if status == "failed":
            failure: JsonValue = {"code": self.pace.failure, "message": "scripted failure", "line": None, "param": None}
            batch.card["errors"] = {"object": "list", "data": [failure]}
        else:
            for name, lines in (("output_file_id", batch.outputs), ("error_file_id", batch.errors)):
                if lines:
                    batch.card[name] = self._file(b"\n".join(reversed(lines)) + b"\n")["id"]
        batch.card[f"{status}_at"] = int(time.time())
        batch.card["status"] = status


def _error(custom_id: str, code: str, message: str) -> bytes:
    line = {"id": f"batch_req_{custom_id[:8]}", "custom_id": custom_id, "response": None}
    return json.dumps(line | {"error": {"code": code, "message": message}}).encode()
