"""A model server that takes no time: OpenAI's chat completions over loopback HTTP, answered from ready-made bytes.

It runs as a process of its own (`python -m benchmarks.mock_model --port-file F`) and needs the standard library only.
What a client is measured with is then the client's own cost, the loopback and this parser, which is kept small.
The answers look like vLLM's, log-probabilities included, since reading those is a part of the client's work.
"""

import argparse
import asyncio
import json
import re
import signal
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

MODEL = "mock"
LABELS = ("card", "loan", "cash", "transfer")
"""The values of the one field that an answer has."""

MAX_MODEL_LEN = 4096
PROMPT_TOKENS = 96
MAX_ALTERNATIVES = 20

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_ALTERNATIVES = re.compile(rb'"top_logprobs":\s*(\d+)')
_LABEL = b'"label"'
"""In the schema of every row's request."""

_FILLER = tuple(f"<unused{n}>" for n in range(MAX_ALTERNATIVES))


def tokens_of(label: str, alternatives: int) -> list[dict[str, object]]:
    """The log-probabilities of an answer as vLLM writes them: six tokens, each with its listed alternatives."""

    def listed(token: str, logprob: float) -> dict[str, object]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    found: list[dict[str, object]] = []
    for piece in ('{"', "label", '":"', label, '"}', "<eos>"):
        ranked = [(piece, -0.5)]
        if piece == label:
            # Of the other labels the server lists whole words and beginnings, as a real vocabulary has them.
            others = [other for other in LABELS if other != label]
            ranked += [(other, -1.5 - n) for n, other in enumerate(others)]
            ranked += [(other[:length], -5.5 - n) for n, other in enumerate(others) for length in (1, 2)]
        ranked += [(filler, -9999.0) for filler in _FILLER]
        top = [listed(token, logprob) for token, logprob in ranked[:alternatives]]
        found.append({**listed(*ranked[0]), "top_logprobs": top})
    return found


def answer_body(label: str, alternatives: int | None) -> bytes:
    """The body of one chat completion; `alternatives` None: no log-probabilities were asked for."""
    logprobs = None if alternatives is None else {"content": tokens_of(label, alternatives)}
    return _completion({"label": label}, logprobs)


def _completion(answer: dict[str, object], logprobs: object) -> bytes:
    text = json.dumps(answer, separators=(",", ":"))
    message: dict[str, object] = {
        "role": "assistant",
        "content": text,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": [],
        "reasoning": None,
    }
    completion: dict[str, object] = {
        "id": f"chatcmpl-{zlib.crc32(text.encode()):032x}",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": logprobs,
                "finish_reason": "stop",
                "stop_reason": None,
                "token_ids": None,
            }
        ],
        "service_tier": None,
        "system_fingerprint": "mock-1",
        "usage": {
            "prompt_tokens": PROMPT_TOKENS,
            "total_tokens": PROMPT_TOKENS + 6,
            "completion_tokens": 6,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "kv_transfer_params": None,
    }
    return json.dumps(completion, separators=(",", ":")).encode()


def response(status: int, body: bytes) -> bytes:
    """A whole HTTP/1.1 response, head and body."""
    reason = {200: "OK", 400: "Bad Request", 404: "Not Found"}[status]
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Answers:
    """The ready-made responses, and the count of rows' calls that got one."""

    def __init__(self) -> None:
        self.calls = 0
        self.first_at = self.last_at = 0.0
        """When the first and the last call came, seconds on the monotonic clock, which all processes here share."""
        self._models = response(
            200, json.dumps({"object": "list", "data": [{"id": MODEL, "max_model_len": MAX_MODEL_LEN}]}).encode()
        )
        self._missing = response(404, b'{"error":{"message":"there is nothing here"}}')
        # curator asks this before its first row, to see whether the server follows a schema.
        self._probe = response(200, _completion({"name": "Jason", "age": 25}, None))
        self._ready: dict[int | None, list[bytes]] = {}

    def to(self, start: bytes, body: bytes) -> bytes:
        """The response to one request, by its first line and its body."""
        if start.startswith(b"POST ") and b"/chat/completions" in start:
            if _LABEL not in body:
                return self._probe
            self.calls += 1
            self.last_at = time.monotonic()
            self.first_at = self.first_at or self.last_at
            asked = _ALTERNATIVES.search(body)
            alternatives = min(int(asked[1]), MAX_ALTERNATIVES) if asked else None
            ready = self._ready.get(alternatives)
            if ready is None:
                ready = self._ready[alternatives] = [response(200, answer_body(one, alternatives)) for one in LABELS]
            return ready[zlib.crc32(body) & 3]
        if start.startswith(b"GET /_calls"):
            figures = {"calls": self.calls, "first_at": self.first_at, "last_at": self.last_at}
            return response(200, json.dumps(figures).encode())
        if start.startswith(b"GET /v1/models"):
            return self._models
        return self._missing


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests may come in any pieces, and several at once."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._waiting = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what a stream server gives
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is now complete, and keep the rest."""
        self._waiting = data = self._waiting + data if self._waiting else data
        done: list[bytes] = []
        while (end := data.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(data, 0, end)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(data) < whole:
                break
            done.append(self._answers.to(data[: data.find(b"\r\n")], data[end + 4 : whole]))
            data = data[whole:]
        self._waiting = data
        if done and self._transport is not None:
            self._transport.write(done[0] if len(done) == 1 else b"".join(done))


async def serve(port_file: Path) -> None:
    """Listen on a free loopback port, write its number to `port_file`, and go on until SIGTERM."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for end in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(end, ended.set)
    answers = Answers()
    server = await loop.create_server(lambda: Connection(answers), "127.0.0.1", 0, backlog=1024)
    part = port_file.with_suffix(".part")
    part.write_text(str(server.sockets[0].getsockname()[1]))
    part.rename(port_file)
    await ended.wait()
    server.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the server."""
    parser = argparse.ArgumentParser(description="A model server that takes no time.")
    parser.add_argument("--port-file", type=Path, required=True, help="Where the chosen port is written.")
    asyncio.run(serve(parser.parse_args(argv).port_file))


if __name__ == "__main__":
    main()
