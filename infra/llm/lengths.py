"""How long a prompt is in tokens: refused before it is sent when the model has no room for it."""

from typing import Any, cast

import aiohttp
import orjson

from domain.errors import PromptTooLong
from domain.requests import Request
from infra.llm.bodies import read_body

BYTES_A_MESSAGE = 64
"""What a chat template puts around a message, at most."""
SURE = 1.5
"""Prompts are trusted to have no more tokens a byte than this many times the most seen so far."""
LEARNT_FROM = 32
ASK_S = 10.0
LONGEST_BYTES = 2**20


class Lengths:
    """One tier's context length, as its server states it, and what has been learnt of its tokens a byte."""

    def __init__(self) -> None:
        self._limits: dict[str, int | None] = {}
        self._frames: dict[str, int] = {}
        self._densest = 0.0
        self._seen = 0

    def most(self, request: Request) -> int:
        """Tokens that the prompt has at most: no token is shorter than a byte; fewer once answers were counted."""
        size = self._size(request)
        return size if self._seen < LEARNT_FROM else min(size, int(size * self._densest * SURE) + 1)

    def learn(self, request: Request, prompt_tokens: int) -> None:
        """Take note of the prompt's length as the server counted it."""
        self._seen += 1
        self._densest = max(self._densest, prompt_tokens / self._size(request))

    async def refuse(self, http: aiohttp.ClientSession, base_url: str, request: Request) -> PromptTooLong | None:
        """The refusal of a prompt that has no room beside its answer; the server counts those that might not have.

        A server that does not say how long its context is, or does not count, is sent everything and refuses itself.
        """
        if request.model not in self._limits:
            self._limits[request.model] = await _context(http, base_url, request.model)
        limit = self._limits[request.model]
        answer = cast(int, request.frame.body.get("max_tokens") or 0)
        if limit is None or self.most(request) + answer <= limit:
            return None
        count = await _count(http, base_url, request)
        if count is None or count + answer <= limit:
            return None
        return PromptTooLong(
            f"the prompt has {count:,} tokens; with {answer:,} for the answer {request.model} has room for "
            f"{limit - answer:,}"
        )

    def _size(self, request: Request) -> int:
        key = request.frame.hash
        if key not in self._frames:
            messages = cast(list[Any], request.frame.body["messages"])
            self._frames[key] = len(orjson.dumps(messages)) + BYTES_A_MESSAGE * (len(messages) + 1)
        return self._frames[key] + len(request.last["content"].encode(errors="replace"))


async def _context(http: aiohttp.ClientSession, base_url: str, model: str) -> int | None:
    answer = await _json(http, "GET", f"{base_url}/models")
    listed = cast(list[dict[str, Any]], answer.get("data") or [])
    lengths = [entry.get("max_model_len") for entry in listed if entry.get("id") == model]
    return lengths[0] if lengths and isinstance(lengths[0], int) else None


async def _count(http: aiohttp.ClientSession, base_url: str, request: Request) -> int | None:
    """The server's own count (vLLM's POST /tokenize)."""
    body = {"model": request.model, "messages": request.body["messages"]}
    answer = await _json(http, "POST", f"{base_url.removesuffix('/v1')}/tokenize", orjson.dumps(body))
    count = answer.get("count")
    return count if isinstance(count, int) else None


async def _json(http: aiohttp.ClientSession, method: str, url: str, data: bytes | None = None) -> dict[str, Any]:
    """An answer's JSON object; {} when there is none, whatever the reason: nothing depends on it but a kindness."""
    try:
        timeout = aiohttp.ClientTimeout(total=ASK_S)
        async with http.request(method, url, data=data, timeout=timeout, allow_redirects=False) as response:
            answer = cast(
                object, orjson.loads(await read_body(response, LONGEST_BYTES)) if response.status == 200 else {}
            )
    except (aiohttp.ClientError, OSError, TimeoutError, orjson.JSONDecodeError):
        return {}
    return cast(dict[str, Any], answer) if isinstance(answer, dict) else {}
