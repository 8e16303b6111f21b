"""What the fake model answers: labels by rule or by hash, with probabilities, tokens and usage."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.llm.scripted_asks import Ask, JsonSchema
from infra.llm.scripted_faults import CUTTING, SPOILING, Fault, Kind, Regex, draw, spoil

CREATED = 1_700_000_000  # constant: the same request gets the same bytes
Factor = Annotated[float, Field(gt=0)]
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

    def __init__(self, script: Script, ask: Ask, row: str) -> None:
        self.script, self.ask, self.row = script, ask, row
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
        best = self._sampled(odds) if self.ask.temperature else max(odds, key=lambda label: odds[label])
        shares = {written[label]: odds[label] for label in written}
        self.glue(quote)
        self.emit(*_label_tokens(shares, best=written[best], size=self.script.token_chars))
        self.glue(quote)

    def _sampled(self, odds: Mapping[str, float]) -> str:
        """A label by its odds at the temperature asked for: the same seed draws the same one."""
        weights = [share ** (1 / self.ask.temperature) for share in odds.values()]
        at = draw(self.script.seed, "sample", self.ask.seed, self.row) * sum(weights)
        reached = zip(odds, accumulate(weights), strict=True)
        return next((label for label, so_far in reached if at < so_far), [*odds][-1])


def _label_tokens(shares: Mapping[str, float], *, best: str, size: int | None) -> list[_Token]:
    """One of the texts in tokens; each token's alternatives are those of the labels still possible there."""
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
    writer = _Writer(script, ask, row)
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
