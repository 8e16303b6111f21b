"""What a chat completion looks like on the wire, read into the domain's Completion."""

from typing import Any, cast

import orjson

from domain.confidences import Token, label_logprobs
from domain.requests import Completion, Request, Usage, response_schema
from domain.schemas import closed_fields

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
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise Garbled(f"{type(error).__name__}: {error}"[:200]) from error
    if not isinstance(text, str):
        raise Garbled("its message has no text")
    return Completion(
        request_hash=request.hash,
        text=text,
        finish_reason=str(choice.get("finish_reason")),
        usage=usage,
        label_logprobs=label_logprobs(tokens, closed_fields(response_schema(request.body))) if tokens else {},
        fingerprint=cast(str | None, parsed.get("system_fingerprint")),
    )


def _usage(usage: Json) -> Usage:
    details = cast(Json, usage.get("prompt_tokens_details") or {})
    return Usage(
        prompt=int(usage["prompt_tokens"]),
        completion=int(usage["completion_tokens"]),
        cached=int(details.get("cached_tokens") or 0),
    )


def _tokens(choice: Json) -> list[Token]:
    content = cast(list[Json], (choice.get("logprobs") or {}).get("content") or [])
    return [
        Token(
            text=cast(str, token["token"]),
            alternatives={cast(str, a["token"]): float(a["logprob"]) for a in token["top_logprobs"]},
        )
        for token in content
    ]
