"""A transport for SDKs that want to talk to a model server: their calls become ledgered requests, never traffic."""

import json
from typing import cast

import httpx
from openai import AsyncOpenAI, OpenAIError
from pydantic import JsonValue

from domain.requests import Completion, Request
from infra.llm.asking import Ask

BASE_URL = "http://ledger.invalid/v1"
"""What an SDK is told; nothing resolves it and nothing connects to it."""

API_KEY = "ledger"
"""SDKs refuse to start without one; it goes nowhere."""


class AskFailed(OpenAIError):
    """What `ask` raised, carried through an SDK, which would retry or wrap any class but its own."""

    def __init__(self, error: Exception) -> None:
        super().__init__(type(error).__name__)
        self.error = error


class LedgerTransport(httpx.AsyncBaseTransport):
    """Turns POST .../chat/completions into a Request for `ask`; everything else is 404."""

    def __init__(self, ask: Ask, *, revision: str | None) -> None:
        self._ask = ask
        self._revision = revision

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one call of the SDK; raise AskFailed with whatever `ask` raised."""
        if request.method != "POST" or not request.url.path.endswith("/chat/completions"):
            return _refusal(404, "only POST /chat/completions is answered from the ledger")
        body = cast(dict[str, JsonValue], json.loads(await request.aread()))
        if body.get("stream"):
            return _refusal(400, "nothing is streamed from the ledger")
        if not body.get("messages"):
            return _refusal(400, "a request needs at least one message")
        asked = Request.of(body, self._revision)
        try:
            completion = await self._ask(asked)
        except Exception as error:
            raise AskFailed(error) from error
        return _response(200, chat_completion(completion, model=asked.model))


class SilentTransport(httpx.BaseTransport):
    """For SDKs that insist on a synchronous client beside the asynchronous one: it answers nothing."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Refuse the call without sending it."""
        del request
        return _refusal(404, "no synchronous call is answered")


def ledger_client(ask: Ask, *, revision: str | None) -> AsyncOpenAI:
    """The OpenAI SDK on top of `ask`; it never retries and never reaches a network."""
    http = httpx.AsyncClient(transport=LedgerTransport(ask, revision=revision))
    return AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, http_client=http)


def chat_completion(completion: Completion, *, model: str) -> dict[str, JsonValue]:
    """The completion as the body of an OpenAI ChatCompletion; the same completion gives the same body."""
    usage = completion.usage
    return {
        "id": f"chatcmpl-{completion.request_hash[:32]}",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "system_fingerprint": completion.fingerprint,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": completion.text},
                "finish_reason": completion.finish_reason,
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "total_tokens": usage.prompt + usage.completion,
            "prompt_tokens_details": {"cached_tokens": usage.cached},
        },
    }


def _refusal(status: int, message: str) -> httpx.Response:
    return _response(status, {"error": {"message": message, "type": "invalid_request_error", "code": status}})


def _response(status: int, payload: dict[str, JsonValue]) -> httpx.Response:
    # ASCII, because httpx's own encoder fails on the lone surrogates that a model's text may hold.
    return httpx.Response(status, content=json.dumps(payload), headers={"content-type": "application/json"})
