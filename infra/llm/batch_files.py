"""OpenAI Batch JSONL: one request a line going out, one result a line coming back, in any order."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson
from pydantic import JsonValue

from domain.errors import AnswerGarbled, ModelError, ModelUnavailable, RequestRefused
from domain.ledgers import OutcomeClass
from domain.prompts import Message
from domain.requests import Completion, Frame, Request
from infra.llm.replies import Try
from infra.llm.wire import Garbled, read_completion

Json = dict[str, Any]

URL = "/v1/chat/completions"
MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000
"""What one file of a hosted batch may hold."""
LONGEST_LINE = 32 * 1024 * 1024
"""Bytes; an answer of 24 tokens with its log-probabilities has about 50,000."""
RETRY_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})
_NEVER_RUN = frozenset({"batch_expired", "batch_cancelled"})
"""Codes of lines that only say that a row was not reached: the end of the whole batch says it better."""
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([0-9a-f]{64})"')


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one row of a batch came to."""

    outcome: OutcomeClass
    completion: Completion | None = None
    error: ModelError | None = None
    again: bool = False
    """Whether another batch may bring an answer."""

    def tried(self, worker: str, seconds: float) -> Try:
        """The same as a try of this worker; `seconds` are the whole batch's."""
        if self.completion is not None:
            return Try(worker, seconds, self.outcome, self.completion.usage)
        return Try(worker, seconds, self.outcome, detail=self.error.message if self.error else None)


@dataclass(slots=True)
class Oddities:
    """Lines of result files that stand for no row."""

    garbage: int = 0
    duplicates: int = 0
    unknown: int = 0

    def __str__(self) -> str:
        return f"{self.garbage} unreadable lines, {self.duplicates} second results, {self.unknown} unknown custom_ids"

    def __bool__(self) -> bool:
        return bool(self.garbage or self.duplicates or self.unknown)


def request_line(request: Request) -> bytes:
    """One line of an input file, newline included."""
    line = {"custom_id": request.hash, "method": "POST", "url": URL, "body": request.body}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def read_requests(path: Path, *, revision: str | None) -> dict[str, Request]:
    """The requests of an input file that we wrote, by hash; rows of one prompt share its frame."""
    frames: dict[bytes, Frame] = {}
    found: dict[str, Request] = {}
    with path.open("rb") as handle:
        for line in handle:
            parsed = cast(Json, orjson.loads(line))
            body = cast(dict[str, JsonValue], parsed["body"])
            messages = cast(list[Message], body["messages"])
            opening: dict[str, JsonValue] = {**body, "messages": cast(list[JsonValue], messages[:-1])}
            frame = frames.setdefault(orjson.dumps(opening), Frame(opening, revision))
            found[cast(str, parsed["custom_id"])] = Request(frame, messages[-1])
    return found


def read_results(
    paths: Iterable[Path], requests: Mapping[str, Request], oddities: Oddities
) -> Iterator[tuple[Request, Verdict]]:
    """What result and error files say, at most once a request; rows that no line speaks of are left out.

    The first readable line of a row stays. Nothing in the files raises.
    """
    seen: set[str] = set()
    torn: set[str] = set()
    for line in _lines(paths, oddities):
        result = _parse(line)
        custom_id = result.get("custom_id")
        if not isinstance(custom_id, str):
            oddities.garbage += 1
            torn.update(_guessed(line, requests))
        elif custom_id not in requests:
            oddities.unknown += 1
        elif custom_id in seen:
            oddities.duplicates += 1
        elif (verdict := classify(requests[custom_id], result)) is not None:
            seen.add(custom_id)
            yield requests[custom_id], verdict
    for custom_id in sorted(torn - seen):
        yield requests[custom_id], garbled("its line is not JSON")


def classify(request: Request, result: Json) -> Verdict | None:
    """One result line, read as the same answer over HTTP would be; None for a row that was never run."""
    response: object = result.get("response")
    error: object = result.get("error")
    status, body = _response(response)
    if status == 200 and body is not None:
        return _completed(request, body)
    if status is not None and status != 200:
        detail = f"HTTP {status}: {_said(body if body is not None else error)}"
        if status in RETRY_STATUSES or status > 500:
            return Verdict(OutcomeClass.UNAVAILABLE, error=ModelUnavailable(detail), again=True)
        return Verdict(OutcomeClass.REFUSED, error=RequestRefused(detail))
    if error is None:
        return garbled("its line has neither a response nor an error")
    if _code(error) in _NEVER_RUN:
        return None
    return Verdict(OutcomeClass.UNAVAILABLE, error=ModelUnavailable(f"the batch says {_said(error)}"), again=True)


def garbled(reason: str) -> Verdict:
    """A row whose answer cannot be read."""
    error = AnswerGarbled(f"the answer in the batch's results is not a chat completion: {reason}")
    return Verdict(OutcomeClass.GARBLED, error=error, again=True)


def complete(paths: Sequence[Path], ids: Iterable[str]) -> bool:
    """Whether every one of these custom_ids has a readable line."""
    found = {_parse(line).get("custom_id") for line in _lines(paths, Oddities())}
    return all(custom_id in found for custom_id in ids)


def _completed(request: Request, body: object) -> Verdict:
    try:
        completion = read_completion(request, orjson.dumps(body))
    except (Garbled, orjson.JSONEncodeError) as error:
        return garbled(str(error))
    stopped = completion.finish_reason == "stop"
    return Verdict(OutcomeClass.ANSWERED if stopped else OutcomeClass.TRUNCATED, completion)


def _response(response: object) -> tuple[int | None, object]:
    if not isinstance(response, dict):
        return None, None
    parsed = cast(Json, response)
    status = parsed.get("status_code")
    return (status if isinstance(status, int) else None), parsed.get("body")


def _code(error: object) -> object:
    return cast(Json, error).get("code") if isinstance(error, dict) else None


def _said(detail: object) -> str:
    """The beginning of what a server said, as JSON: a NUL, which Postgres has no word for, is escaped there."""
    return orjson.dumps(detail)[:300].decode(errors="replace")


def _parse(line: bytes) -> Json:
    try:
        parsed: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return cast(Json, parsed) if isinstance(parsed, dict) else {}


def _guessed(line: bytes, requests: Mapping[str, Request]) -> set[str]:
    """The row of a line that is no JSON: named in it once, and by nothing that a model could have written into it."""
    named = {match.decode() for match in _CUSTOM_ID.findall(line)}
    return named & requests.keys() if len(named) == 1 else set()


def _lines(paths: Iterable[Path], oddities: Oddities) -> Iterator[bytes]:
    """Lines that are not blank; one without end is skipped and counted, never held."""
    for path in paths:
        with path.open("rb") as handle:
            while line := handle.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                    oddities.garbage += 1
                    while (rest := handle.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                        pass
                elif line.strip():
                    yield line
