"""Scripted faults of the fake model server: which call of which row goes wrong, and how it looks on the wire."""

import asyncio
import re
import socket
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import blake2b
from typing import Annotated, Literal, TypeVar

from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_T = TypeVar("_T")
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_CHOICE = b'{"id":"x","object":"chat.completion","model":"m","choices":[%s],"usage":{"prompt_tokens":1}}'

BODIES: dict[str, bytes] = {
    "empty": b"",
    "html": b"<!doctype html><html><body><h1>502 Bad Gateway</h1></body></html>",
    "plain": b"upstream connect error",
    "array": b"[]",
    "null": b"null",
    "number": b"42",
    "string": b'"ok"',
    "truncated_json": b'{"id":"x","choices":[{"message":{"role":"assi',
    "two_objects": b'{"choices":[]}{"choices":[]}',
    "error_200": b'{"error":{"message":"overloaded","type":"server_error","code":503}}',
    "no_choices": _CHOICE % b"",
    "null_choice": _CHOICE % b"null",
    "no_message": _CHOICE % b"{}",
    "null_content": _CHOICE % b'{"message":{"role":"assistant","content":null},"finish_reason":"stop"}',
    "number_content": _CHOICE % b'{"message":{"role":"assistant","content":7},"finish_reason":"stop"}',
    "empty_content": _CHOICE % b'{"message":{"role":"assistant","content":""},"finish_reason":"stop"}',
    "nul_content": _CHOICE % b'{"message":{"role":"assistant","content":"a\\u0000b"},"finish_reason":"stop"}',
    "lone_surrogate": _CHOICE % b'{"message":{"role":"assistant","content":"\\ud800"},"finish_reason":"stop"}',
    "nan": _CHOICE % b'{"message":{"role":"assistant","content":NaN},"finish_reason":"stop"}',
    "huge_int": _CHOICE % (b'{"index":' + b"9" * 5000 + b"}"),
    "deep": b'{"a":' * 2000 + b"1" + b"}" * 2000,
    "bad_utf8": _CHOICE % b'{"message":{"role":"assistant","content":"\xff\xfe"},"finish_reason":"stop"}',
    "nul_bytes": b"\0" * 64,
}
WIRES: dict[str, bytes] = {
    "early_close": _HEAD + b'Content-Length: 4096\r\n\r\n{"id":"x","choi',
    "short_length": _HEAD + b'Content-Length: 5\r\n\r\n{"id":"x","choices":[]}',
    "broken_chunk": _HEAD + b'Transfer-Encoding: chunked\r\n\r\nzz\r\n{"id":1}\r\n0\r\n\r\n',
    "half_status_line": b"HTTP/1.1 20",
}
ZIPPED = ("gzip_bomb", "not_gzip")


def readable_regex(pattern: str) -> str:
    """Refuse a pattern that does not compile while the script is read, not in the middle of a run."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


def _known_garbage(name: str | None) -> str | None:
    if name is not None and name not in {*BODIES, *WIRES, *ZIPPED}:
        raise ValueError(f"unknown garbage {name!r}; one of {', '.join([*BODIES, *WIRES, *ZIPPED])}")
    return name


Regex = Annotated[str, AfterValidator(readable_regex)]
Kind = Literal[
    "status",
    "garbage",
    "hang",
    "drip",
    "reset",
    "die",
    "latency",
    "invalid_json",
    "off_schema",
    "truncated",
    "whitespace",
]
SPOILING: frozenset[Kind] = frozenset({"invalid_json", "off_schema", "truncated", "whitespace"})
CUTTING: frozenset[Kind] = frozenset({"truncated", "whitespace"})


class Fault(BaseModel):
    """One thing that goes wrong, and for which rows and calls; the first fault that fits a call is played."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = Field(description="What happens; spoiled answers are paid for (usage is counted), the others are not.")
    match: Regex = Field(default="", description="Regular expression searched in the row; empty fits every row.")
    first: int | None = Field(default=None, ge=1, description="Only the first so many calls of a row; none: no limit.")
    calls: tuple[int, ...] = Field(
        default=(), description="Only these calls of a row, counted from 1; empty: every one."
    )
    share: float = Field(default=1.0, ge=0, le=1, description="Share of the fitting rows, picked by hash.")
    after_calls: int = Field(default=0, ge=0, description="Sleeps until the server has taken this many calls.")
    status: int = Field(default=500, ge=400, le=599, description="Status code, for kind status.")
    retry_after: str | None = Field(default=None, description="Retry-After header, for kind status.")
    seconds: float = Field(default=1.0, ge=0, description="The delay of latency, the pause between bytes of drip.")
    part: Literal["body", "headers"] = Field(default="body", description="What drips.")
    garbage: Annotated[str | None, AfterValidator(_known_garbage)] = Field(
        default=None, description="Name of the garbage body; none: one by the row's hash, never the bomb."
    )
    megabytes: int = Field(default=1024, ge=1, description="Size of the gzip bomb when unpacked.")


def draw(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts and on nothing else."""
    digest = blake2b("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def choose(faults: Sequence[Fault], *, row: str, number: int, seen: int, seed: int) -> Fault | None:
    """The first fault that fits this call of this row."""
    for index, fault in enumerate(faults):
        on_call = (fault.first is None or number <= fault.first) and (not fault.calls or number in fault.calls)
        if not on_call or seen <= fault.after_calls or not re.search(fault.match, row):
            continue
        if fault.share >= 1 or draw(seed, "share", index, row) < fault.share:
            return fault
    return None


def spoil(kind: Kind, tokens: Sequence[_T], *, make: Callable[[str], _T], limit: int) -> list[_T]:
    """The answer's tokens as a model that misbehaves in this way would have written them."""
    if kind == "invalid_json":
        return [make("Sure"), make("!"), make(" "), *tokens[:-1]]
    if kind == "off_schema":
        return [make('{"'), make("unexpected"), make('":'), make("true"), make("}")]
    if kind == "truncated":
        return list(tokens[: max(1, len(tokens) // 2)])
    return [tokens[0], *(make("\n") for _ in range(limit - 1))]


def error_response(
    status: int, message: str, *, param: str | None = None, retry_after: str | None = None
) -> web.Response:
    """An error in the shape that OpenAI and vLLM give it."""
    kinds = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError", 429: "RateLimitError"}
    error = {"message": message, "type": kinds.get(status, "InternalServerError"), "param": param, "code": status}
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return web.json_response({"error": error}, status=status, headers=headers)


async def play(fault: Fault, request: web.Request, *, row: str, payload: bytes) -> web.StreamResponse:
    """Spoil the transport of one call; the payload is the good answer that drips."""
    if fault.kind == "status":
        return error_response(fault.status, f"scripted {fault.status}", retry_after=fault.retry_after)
    if fault.kind == "reset":
        return _reset(request)
    if fault.kind == "drip":
        return await _drip(fault, request, payload)
    if fault.kind == "garbage":
        return await _garbage(fault, request, row)
    await asyncio.Event().wait()
    raise AssertionError("a hung call ends by cancellation only")


async def _garbage(fault: Fault, request: web.Request, row: str) -> web.StreamResponse:
    names = [*BODIES, *WIRES]
    name = fault.garbage or names[int(draw("garbage", row) * len(names))]
    if name in WIRES:
        return _write_raw(request, WIRES[name], close=True)
    if name in ZIPPED:
        body = await asyncio.to_thread(gzip_bomb, fault.megabytes) if name == "gzip_bomb" else b'{"choices":[]}'
        # aiohttp leaves a body alone when the handler has set Content-Encoding itself.
        return web.Response(body=body, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})
    return web.Response(body=BODIES[name], content_type="text/html" if name == "html" else "application/json")


async def _drip(fault: Fault, request: web.Request, payload: bytes) -> web.StreamResponse:
    if fault.part == "headers":
        _write_raw(request, b"HTTP/1.1 200 OK\r\nX-Drip: ")
        while True:
            await asyncio.sleep(fault.seconds)
            _write_raw(request, b"a")
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(payload))})
    await response.prepare(request)
    for byte in payload:
        await asyncio.sleep(fault.seconds)
        await response.write(bytes([byte]))
    await response.write_eof()
    return response


def _write_raw(request: web.Request, data: bytes, *, close: bool = False) -> web.Response:
    transport = request.transport
    if transport is not None:
        transport.write(data)
        if close:
            transport.close()
    return web.Response()


def _reset(request: web.Request) -> web.Response:
    transport = request.transport
    if transport is not None:
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()


@cache
def gzip_bomb(megabytes: int) -> bytes:
    """A gzip stream of so many megabytes of spaces, made from one block repeated."""
    spaces = b" " * 2**20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(spaces) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(megabytes):
        checksum = zlib.crc32(spaces, checksum)
    size = (megabytes * 2**20) & 0xFFFFFFFF
    return b"\x1f\x8b\x08" + b"\0" * 6 + b"\x03" + block * megabytes + b"\x03\x00" + struct.pack("<II", checksum, size)
