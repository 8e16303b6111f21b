"""Requests and completions: exactly what is sent and exactly what came back."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from pydantic import JsonValue

from domain.canonical import digest
from domain.prompts import Message
from domain.schemas import OutputSchema
from domain.workloads import Tier

TOP_LOGPROBS = 20
"""The engine's usual ceiling (`--max-logprobs`)."""


@dataclass(frozen=True)
class Request:
    """One model call: the body of POST /chat/completions and the revision of the weights that answer it."""

    body: dict[str, JsonValue]
    revision: str | None

    @cached_property
    def hash(self) -> str:
        """sha256 over body and revision: the key of the ledger and of replay."""
        return digest({"body": self.body, "revision": self.revision})

    @property
    def model(self) -> str:
        """The served model name."""
        return cast(str, self.body["model"])


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens the server counted for one call; `cached` of the prompt tokens came from its prefix cache."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer: its text, why it ended, log-probabilities of the values each closed field could take."""

    request_hash: str
    text: str
    finish_reason: str
    usage: Usage
    label_logprobs: dict[str, dict[str, float]]
    fingerprint: str | None = None


def row_request(messages: list[Message], *, tier: Tier, schema: OutputSchema) -> Request:
    """The request for one row: guided by the schema, with log-probabilities at each token."""
    body: dict[str, JsonValue] = {
        "model": tier.model,
        "messages": [{"role": m["role"], "content": m["content"]} for m in messages],
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
    return Request(body=body, revision=tier.revision)


def response_schema(body: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The JSON Schema that a request asks its answer to follow, {} when it asks for none."""
    format_ = body.get("response_format")
    wrapper = format_.get("json_schema") if isinstance(format_, dict) else None
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    return schema if isinstance(schema, dict) else {}
