"""Requests and completions: exactly what is sent and exactly what came back."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from pydantic import JsonValue

from domain.alignments import Fields, Reading
from domain.canonical import canonical, digest
from domain.prompts import Message
from domain.schemas import OutputSchema, closed_fields
from domain.workloads import Tier

TOP_LOGPROBS = 20
"""The engine's usual ceiling (`--max-logprobs`)."""


@dataclass(frozen=True)
class Frame:
    """All of a request but its last message: one and the same for every row that one prompt asks about."""

    body: dict[str, JsonValue]
    revision: str | None

    @cached_property
    def hash(self) -> str:
        """sha256 over body and revision."""
        return digest({"body": self.body, "revision": self.revision})

    @cached_property
    def fields(self) -> Fields:
        """The answer's fields and what the closed ones allow, by the JSON Schema it is asked to follow."""
        schema = response_schema(self.body)
        properties = schema.get("properties")
        return Fields.of(list(properties) if isinstance(properties, dict) else [], closed_fields(schema))

    @cached_property
    def fields_in_bytes(self) -> Fields:
        """The same, to be found in an answer's bytes."""
        return self.fields.in_bytes()


def request_hash(frame_hash: str, last: Message) -> str:
    """sha256 over a frame's hash and the last message."""
    return hashlib.sha256(frame_hash.encode() + canonical(cast(JsonValue, last))).hexdigest()


@dataclass(frozen=True)
class Request:
    """One model call: the body of POST /chat/completions and the revision of the weights that answer it."""

    frame: Frame
    last: Message

    @classmethod
    def of(cls, body: Mapping[str, JsonValue], revision: str | None) -> "Request":
        """A request by its whole body, which has at least one message."""
        messages = cast(list[Message], body["messages"])
        frame = Frame({**body, "messages": cast(list[JsonValue], messages[:-1])}, revision)
        return cls(frame, messages[-1])

    @cached_property
    def hash(self) -> str:
        """sha256 over the frame's hash and the last message: the key of the ledger and of replay."""
        return request_hash(self.frame.hash, self.last)

    @property
    def body(self) -> dict[str, JsonValue]:
        """What is sent."""
        messages = [*cast(list[JsonValue], self.frame.body["messages"]), cast(JsonValue, self.last)]
        return {**self.frame.body, "messages": messages}

    @property
    def model(self) -> str:
        """The served model name."""
        return cast(str, self.frame.body["model"])

    @property
    def chars(self) -> int:
        """Characters of the last message: of a row as the model reads it."""
        return len(self.last["content"])

    @property
    def max_tokens(self) -> int:
        """Tokens the answer may take; 0 when the request does not limit them."""
        limit = self.frame.body.get("max_tokens")
        return limit if isinstance(limit, int) else 0

    @property
    def revision(self) -> str | None:
        """The version of the weights that answer."""
        return self.frame.revision


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens the server counted for one call; `cached` of the prompt tokens came from its prefix cache."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer: its text, why it ended, log-probabilities of the values each closed field could take, and what the
    tokens of each field say (None where nobody has read them)."""

    request_hash: str
    text: str
    finish_reason: str
    usage: Usage
    label_logprobs: dict[str, dict[str, float]]
    fingerprint: str | None = None
    readings: dict[str, Reading] | None = None


def row_request(messages: Sequence[Message], *, tier: Tier, schema: OutputSchema) -> Request:
    """The request for one row: guided by the schema, with log-probabilities at each token."""
    return Request(row_frame(messages[:-1], tier=tier, schema=schema), messages[-1])


def row_frame(opening: Sequence[Message], *, tier: Tier, schema: OutputSchema) -> Frame:
    """What the requests of all rows have in common when their prompts open in this way."""
    body: dict[str, JsonValue] = {
        "model": tier.model,
        "messages": [{"role": m["role"], "content": m["content"]} for m in opening],
        "temperature": tier.temperature,
        "seed": tier.seed,
        "max_tokens": tier.max_tokens,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": schema.model.__name__, "schema": schema.json_schema, "strict": True},
        },
        "logprobs": True,
        "top_logprobs": TOP_LOGPROBS,
    }
    return Frame(body, tier.revision)


def response_schema(body: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The JSON Schema that a request asks its answer to follow, {} when it asks for none."""
    format_ = body.get("response_format")
    wrapper = format_.get("json_schema") if isinstance(format_, dict) else None
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    return schema if isinstance(schema, dict) else {}
