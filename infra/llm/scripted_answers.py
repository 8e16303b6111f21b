"""What the fake model answers: labels by rule or by hash, with probabilities, tokens and usage."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.llm.scripted_faults import CUTTING, SPOILING, Fault, Kind, Regex, draw, spoil

CREATED = 1_700_000_000  # constant: the same request gets the same bytes
Factor = Annotated[float, Field(gt=0)]
_COUNTED = re.compile(r"\w+|[^\w\s]")
_PIECE = re.compile(r"\s*\w+|\s*[^\w\s]+|\s+")


class Rule(BaseModel):
    """The right label for rows that match a pattern."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    pattern: Regex = Field(description="Regular expression searched in the row.")
    label: str = Field(description="The right answer, used in every enum that has it.")


class Script(BaseModel):
    """What the fake model knows and does wrong; the same script gives the same answers, byte for byte."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str = Field(default="scripted", description="The served model's name; other names are refused with 404.")
    seed: int = Field(default=0, description="Changes every draw: two tiers with two seeds err on different rows.")
    rules: tuple[Rule, ...] = Field(default=(), description="First match wins; rows without one get a label by hash.")
    noise: float = Field(default=0.0, ge=0, le=1, description="Share of rows, by hash, that are answered wrongly.")
    sharpness: float = Field(default=4.0, gt=0, description="Logit margin of right answers; wrong ones get a third.")
    bias: dict[str, Factor] = Field(default={}, description="Factors on the label probabilities: a wrong prior.")
    token_chars: int | None = Field(default=None, ge=1, description="Cut labels into tokens this long; none: whole.")
    row_pattern: Regex | None = Field(default=None, description="Finds the row in user messages (group 1 if any).")
    faults: tuple[Fault, ...] = Field(default=(), description="First fit wins.")
    latency_s: float = Field(default=0.0, ge=0, description="Time every answer takes, seconds.")
    max_running: int | None = Field(default=None, ge=1, description="Calls served at once; the others wait.")
    api_key: str | None = Field(default=None, description="Bearer key that /v1 asks for.")
    keep_rows: bool = Field(default=True, description="Remember every call; off for millions of rows: all are firsts.")

    @cached_property
    def fingerprint(self) -> str:
        """Names this script in every completion."""
        return "fp_" + sha256(self.model_dump_json().encode()).hexdigest()[:12]


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


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    logprob: float = 0.0
    top: tuple[tuple[str, float], ...] = ()

    def as_json(self, k: int) -> dict[str, object]:
        top = (self.top or ((self.text, self.logprob),))[:k]
        return _logprob(self.text, self.logprob) | {"top_logprobs": [_logprob(text, value) for text, value in top]}


def _logprob(text: str, value: float) -> dict[str, object]:
    return {"token": text, "logprob": value, "bytes": list(text.encode())}


def label_odds(script: Script, *, row: str, labels: Sequence[str]) -> dict[str, float]:
    """How likely the fake model finds each label; rules give the right one, noise and bias move it."""
    ruled = (rule.label for rule in script.rules if rule.label in labels and re.search(rule.pattern, row))
    right = next(ruled, None) or labels[int(draw(script.seed, "label", row) * len(labels))]
    others = [label for label in labels if label != right]
    wrong = bool(others) and draw(script.seed, "noise", row) < script.noise
    chosen = others[int(draw(script.seed, "wrong", row) * len(others))] if wrong else right
    margin = draw(script.seed, "margin", row) * (0.5 if wrong else 1.0) + (0.02 if wrong else 0.25)
    logits = {label: -0.5 * draw(script.seed, "rest", row, label) for label in labels}
    logits |= {right: 0.0} | {chosen: margin * script.sharpness}
    weights = {label: math.exp(logit) * script.bias.get(label, 1.0) for label, logit in logits.items()}
    total = sum(weights.values())
    return {label: weight / total for label, weight in weights.items()}


class _Writer:
    """Writes one answer as tokens; punctuation between two values becomes a single token, as in real tokenizers."""

    def __init__(self, script: Script, row: str) -> None:
        self.script, self.row = script, row
        self.tokens: list[_Token] = []
        self.glued = False

    def glue(self, text: str) -> None:
        if text:
            before = self.tokens.pop().text if self.glued else ""
            self.tokens.append(_Token(before + text))
            self.glued = True

    def emit(self, *tokens: _Token) -> None:
        self.tokens.extend(tokens)
        self.glued = False

    def value(self, schema: JsonSchema, defs: Mapping[str, JsonSchema]) -> None:
        schema = schema.resolved(defs)
        if literals := schema.literals():
            quoted = all(literal.startswith('"') for literal in literals)
            names = [str(json.loads(literal)) if literal.startswith('"') else literal for literal in literals]
            texts = [literal[1:-1] if quoted else literal for literal in literals]
            self.label(dict(zip(names, texts, strict=True)), quote='"' if quoted else "")
        elif schema.properties:
            for index, (name, inner) in enumerate(schema.properties.items()):
                self.glue('{"' if index == 0 else ',"')
                self.emit(_Token(json.dumps(name, ensure_ascii=False)[1:-1]))
                self.glue('":')
                self.value(inner, defs)
            self.glue("}")
        elif schema.type == "string":
            self.glue('"')
            self.words()
            self.glue('"')
        else:
            free = {"integer": "1", "number": "1.0", "array": "[]", "object": "{}"}
            self.emit(_Token(free.get(str(schema.type), "null")))

    def words(self) -> None:
        words = json.dumps(" ".join(self.row.split()[:6]) or "ok", ensure_ascii=False)[1:-1]
        self.emit(*(_Token(piece, -0.05) for piece in _PIECE.findall(words)))

    def label(self, written: Mapping[str, str], *, quote: str) -> None:
        """Choose one of the labels, given with the way each is written."""
        odds = label_odds(self.script, row=self.row, labels=list(written))
        self.glue(quote)
        self.emit(*_label_tokens({written[label]: odds[label] for label in written}, size=self.script.token_chars))
        self.glue(quote)


def _label_tokens(shares: Mapping[str, float], *, size: int | None) -> list[_Token]:
    """The likeliest text in tokens; each token's alternatives are those of the labels still possible there."""
    best = max(shares, key=lambda text: shares[text])
    size = size or max(map(len, shares))
    tokens: list[_Token] = []
    for start in range(0, len(best), size):
        masses: dict[str, float] = {}
        for text, share in shares.items():
            if text.startswith(best[:start]) and (piece := text[start : start + size]):
                masses[piece] = masses.get(piece, 0.0) + share
        total = sum(masses.values())
        ranked = sorted((piece for piece in masses if masses[piece] > 0), key=lambda piece: -masses[piece])
        top = {piece: math.log(masses[piece] / total) for piece in ranked}
        piece = best[start : start + size]
        tokens.append(_Token(piece, top[piece], tuple(top.items())))
    return tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion and what it costs."""

    tokens: tuple[_Token, ...]
    finish: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int

    def payload(self, script: Script, ask: Ask, *, identity: str) -> bytes:
        """The response body, in OpenAI's shape."""
        logprobs = {"content": [token.as_json(ask.top_logprobs) for token in self.tokens]} if ask.logprobs else None
        message = {"role": "assistant", "content": "".join(token.text for token in self.tokens)}
        usage: dict[str, object] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.tokens),
            "total_tokens": self.prompt_tokens + len(self.tokens),
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
        body = {
            "id": f"chatcmpl-{identity}",
            "object": "chat.completion",
            "created": CREATED,
            "model": script.model,
            "system_fingerprint": script.fingerprint,
            "choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": self.finish}],
            "usage": usage,
        }
        return json.dumps(body, ensure_ascii=False).encode()


def answer(script: Script, ask: Ask, *, row: str, spoiled: Kind | None, cached_tokens: int) -> Answer:
    """What the fake model answers to this row, spoiled or not."""
    writer = _Writer(script, row)
    schema = ask.wanted_schema()
    if schema is not None:
        writer.value(schema, schema.defs)
    elif choices := ask.choices() or [rule.label for rule in script.rules]:
        writer.label({choice: choice for choice in choices}, quote="")
    else:
        writer.words()
    tokens = spoil(spoiled, writer.tokens, make=_Token, limit=ask.limit()) if spoiled in SPOILING else writer.tokens
    return Answer(
        tokens=tuple(tokens[: ask.limit()]),
        finish="length" if spoiled in CUTTING or len(tokens) > ask.limit() else "stop",
        prompt_tokens=sum(ask.piece_counts()),
        cached_tokens=cached_tokens,
    )
