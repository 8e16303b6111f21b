"""What the fake model reads of a request: messages, sampling, and the schema to follow."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, Field

_COUNTED = re.compile(r"\w+|[^\w\s]")


class JsonSchema(BaseModel):
    """The part of JSON Schema that the fake model can answer."""

    enum: list[str | bool | int | float | None] | None = None
    const: str | bool | int | float | None = None
    type: str | list[str] | None = None
    properties: dict[str, "JsonSchema"] = {}
    any_of: list["JsonSchema"] = Field(default=[], alias="anyOf")
    ref: str = Field(default="", alias="$ref")
    defs: dict[str, "JsonSchema"] = Field(default={}, alias="$defs")

    def resolved(self, defs: Mapping[str, "JsonSchema"]) -> "JsonSchema":
        """Follow references, and take the first branch of a union."""
        if self.ref:
            return defs[self.ref.rpartition("/")[2]].resolved(defs)
        return self.any_of[0].resolved(defs) if self.any_of else self

    def literals(self) -> list[str]:
        """The values to choose from, as JSON; empty when the field is free."""
        both = [True, False] if self.type == "boolean" else []
        values = self.enum or both or ([] if self.const is None else [self.const])
        return [json.dumps(value, ensure_ascii=False) for value in values]


class _NamedSchema(BaseModel):
    body: JsonSchema = Field(alias="schema")


class _ResponseFormat(BaseModel):
    json_schema: _NamedSchema | None = None


class _Part(BaseModel):
    text: str = ""


class Message(BaseModel):
    """One turn."""

    role: str
    content: str | list[_Part] | None = None

    def text(self) -> str:
        """The turn's text, of all its parts."""
        parts = self.content or ""
        return parts if isinstance(parts, str) else "".join(part.text for part in parts)


class _Structured(BaseModel):
    choice: list[str] | None = None
    json_: JsonSchema | None = Field(default=None, alias="json")


class Ask(BaseModel):
    """One chat request, as far as the fake model reads it; what it does not know it ignores, like vLLM."""

    model: str
    messages: list[Message] = Field(min_length=1)
    response_format: _ResponseFormat | None = None
    structured_outputs: _Structured | None = None
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int = Field(default=1, ge=1, le=1)
    stream: Literal[False] | None = None
    temperature: float = Field(default=0.0, ge=0)
    seed: int = 0

    def limit(self) -> int:
        """The most tokens to write."""
        return self.max_completion_tokens or self.max_tokens or 256

    def users(self) -> list[str]:
        """The user messages' texts, in order."""
        return [message.text() for message in self.messages if message.role == "user"]

    def wanted_schema(self) -> JsonSchema | None:
        """The schema to follow, if any."""
        if self.response_format is not None and self.response_format.json_schema is not None:
            return self.response_format.json_schema.body
        return None if self.structured_outputs is None else self.structured_outputs.json_

    def choices(self) -> list[str]:
        """The bare texts to choose from, if any."""
        return (self.structured_outputs and self.structured_outputs.choice) or []

    def piece_counts(self) -> list[int]:
        """Prompt tokens of each message, the chat template's included."""
        return [3 + _count(message.text()) for message in self.messages]

    def prompt(self) -> str:
        """The whole conversation as one text."""
        return "\n".join(f"<{message.role}>{message.text()}" for message in self.messages)


@lru_cache(maxsize=4096)
def _count(text: str) -> int:
    return len(_COUNTED.findall(text))
