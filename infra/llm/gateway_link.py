"""What the gateway's process and its clients say to each other: lists of messages in msgpack, each with its length.

Typed messages only: nothing that arrives is unpickled, and nothing but data can be said.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

import msgspec

from domain.errors import (
    AnswerGarbled,
    ModelError,
    ModelUnavailable,
    PromptTooLong,
    RequestFailed,
    RequestRefused,
    RequestTimedOut,
    WorkerKilled,
)
from domain.prompts import Message
from domain.requests import Completion
from infra.llm.replies import Try

GATHER_S = 0.002
"""Messages of so long a time travel together: a wake-up of the other process costs more than a message."""
LENGTH_BYTES = 4

ERRORS: dict[str, type[ModelError]] = {
    kind.__name__: kind
    for kind in (
        AnswerGarbled,
        ModelUnavailable,
        PromptTooLong,
        RequestFailed,
        RequestRefused,
        RequestTimedOut,
        WorkerKilled,
    )
}


class Opening(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Which gateway a connection is for; comes first. Connections with the same opening share it."""

    base_urls: tuple[str, ...]
    api_key: str | None
    in_flight: int
    deadline_s: float
    patience_s: float


class NewFrame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What the requests of all rows have in common; the first is number 0."""

    body: dict[str, Any]
    revision: str | None


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One request: its frame's number and its last message."""

    number: int
    frame: int
    last: Message


class Told(msgspec.Struct, frozen=True, array_like=True):
    """What one request led to; the error is its class and its words."""

    number: int
    tries: Sequence[Try]
    completion: Completion | None
    error: tuple[str, str] | None


Asked = Opening | NewFrame | Ask
M = TypeVar("M")


class Link(asyncio.Protocol, Generic[M]):
    """One end of a connection: `take` gets what the other end said, `lost` is called once when it is gone."""

    def __init__(self, said: Any, take: Callable[[list[M]], None], lost: Callable[[], None]) -> None:
        self._decoder = msgspec.msgpack.Decoder(list[said])
        self._encoder = msgspec.msgpack.Encoder()
        self._take, self._lost = take, lost
        self._read = bytearray()
        self._unsaid: list[Any] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand on every list that is complete by now."""
        read = self._read
        read += data
        while len(read) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(read[:LENGTH_BYTES])
            if len(read) < end:
                return
            message = bytes(memoryview(read)[LENGTH_BYTES:end])
            del read[:end]
            self._take(self._decoder.decode(message))

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end has closed, or died."""
        self._transport = None
        self._lost()

    def say(self, message: object) -> None:
        """Say something soon; to nobody when the other end is gone."""
        if not self._unsaid:
            asyncio.get_running_loop().call_later(GATHER_S, self._flush)
        self._unsaid.append(message)

    def close(self) -> None:
        """Say nothing more."""
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        unsaid, self._unsaid = self._unsaid, []
        if self._transport is not None:
            message = self._encoder.encode(unsaid)
            self._transport.write(len(message).to_bytes(LENGTH_BYTES) + message)
