"""What a chat completion looks like on the wire, read into the domain's Completion."""

from typing import Any, cast

import numpy as np
import orjson

from domain.confidences import label_logprobs
from domain.requests import Completion, Request, Usage

Json = dict[str, Any]


class Garbled(ValueError):
    """A 200 whose body is no chat completion."""


def read_completion(request: Request, body: bytes) -> Completion:
    """Parse a response body; raise Garbled when it lacks what the protocol promises."""
    try:
        parsed = cast(Json, orjson.loads(body))
        choice = cast(Json, parsed["choices"][0])
        text = choice["message"]["content"]
        usage = _usage(cast(Json, parsed["usage"]))
        tokens = _tokens(choice)
        closed = label_logprobs(tokens, request.frame.closed_fields) if tokens else {}
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise Garbled(f"{type(error).__name__}: {error}"[:200]) from error
    if not isinstance(text, str):
        raise Garbled("its message has no text")
    return Completion(
        request_hash=request.hash,
        text=text.replace("\0", "\N{REPLACEMENT CHARACTER}"),  # Postgres has no word for NUL
        finish_reason=str(choice.get("finish_reason"))[:32],
        usage=usage,
        label_logprobs=closed,
        fingerprint=str(fingerprint) if (fingerprint := parsed.get("system_fingerprint")) is not None else None,
    )


def _usage(usage: Json) -> Usage:
    details = cast(Json, usage.get("prompt_tokens_details") or {})
    return Usage(
        prompt=int(usage["prompt_tokens"]),
        completion=int(usage["completion_tokens"]),
        cached=int(details.get("cached_tokens") or 0),
    )


def _tokens(choice: Json) -> list["_Token"]:
    content = cast(list[Json], (choice.get("logprobs") or {}).get("content") or [])
    return [_Token(token) for token in content]


class _Token:
    """A token as it came; its alternatives are read only where a closed field's value stands."""

    __slots__ = ("_raw", "text")

    def __init__(self, raw: Json) -> None:
        self._raw = raw
        self.text = cast(str, raw["token"])

    @property
    def alternatives(self) -> dict[str, float]:
        """What the server listed for the token's place, and the token itself, which a short list may leave out."""
        listed: dict[str, float] = {}
        for other in cast(list[Json], self._raw["top_logprobs"]):
            text, logprob = cast(str, other["token"]), cast(float, other["logprob"])
            # Two tokens may read the same (a word piece and a bare byte): their probabilities add up.
            listed[text] = float(np.logaddexp(listed[text], logprob)) if text in listed else logprob
        return {self.text: float(self._raw["logprob"])} | listed
