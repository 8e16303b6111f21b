"""What the fake model server counted: calls by row, tokens, and the same under vLLM's metric names."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from infra.llm.scripted_faults import Fault, Kind


class CallReport(BaseModel):
    """What the server saw and charged for, to compare with the ledger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int = Field(description="Chat calls received, refused ones included.")
    refused: int = Field(description="Calls answered 4xx because of what they were (key, model, body), not by script.")
    answered: int = Field(description="Calls that got a completion, spoiled ones included.")
    in_flight: int = Field(description="Calls not yet answered.")
    max_in_flight: int = Field(description="The most that ever were in flight at once.")
    prompt_tokens: int = Field(description="Sum over completions.")
    completion_tokens: int = Field(description="Sum over completions.")
    cached_tokens: int = Field(description="Sum over completions.")
    finished: dict[str, int] = Field(
        description="Completions by finish reason, and calls that the client gave up (abort)."
    )
    faults: dict[str, int] = Field(description="Faults played, by kind.")
    rows: dict[str, int] = Field(description="Calls by row.")


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it arrived."""

    row: str
    number: int
    at: float
    request_id: str | None
    prompt: str
    fault: Kind | None


@dataclass(slots=True)
class CallBook:
    """Counts calls and knows which call of which row the present one is."""

    keep_rows: bool = True
    row_pattern: str | None = None
    started: float = field(default_factory=time.time)
    requests: int = 0
    refused: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter[str])
    faults: Counter[str] = field(default_factory=Counter[str])
    rows: Counter[str] = field(default_factory=Counter[str])
    log: list[Call] = field(default_factory=list[Call])
    open_rows: dict[str, None] = field(default_factory=dict[str, None])

    def row_of(self, users: Sequence[str]) -> str:
        """The row a call is about: its last user message, or the spoiled row that the call asks about again."""
        last = users[-1] if users else ""
        if self.row_pattern is not None:
            matches = (re.search(self.row_pattern, text) for text in reversed(users))
            return next((match[1] if match.re.groups else match[0] for match in matches if match), last)
        if last in self.rows or not self.open_rows:
            return last
        again = next((text for text in reversed(users) if text in self.open_rows), None)
        # Whole lines only: "lost card" must not swallow the calls of another row, "my lost card came back".
        quoted = (
            row for text in (users[-1], users[0]) for row in self.open_rows if row and f"\n{row}\n" in f"\n{text}\n"
        )
        return again if again is not None else next(quoted, last)

    def next_number(self, row: str) -> int:
        """Which call of this row this is, counted from 1."""
        if not self.keep_rows:
            return 1
        self.rows[row] += 1
        return self.rows[row]

    def arrived(self, *, row: str, number: int, request_id: str | None, prompt: str, fault: Fault | None) -> None:
        """Note one call as it came in."""
        kind = None if fault is None else fault.kind
        if kind is not None:
            self.faults[kind] += 1
        if self.keep_rows:
            self.log.append(Call(row, number, time.monotonic(), request_id, prompt, kind))

    def settle(self, row: str, *, finish: str, prompt: int, completion: int, cached: int, spoiled: bool) -> None:
        """Charge one completion; a spoiled one leaves its row open, so that a re-ask is known for what it is."""
        self.finished[finish] += 1
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.cached_tokens += cached
        if spoiled and self.keep_rows:
            self.open_rows[row] = None
        else:
            self.open_rows.pop(row, None)

    def report(self) -> CallReport:
        """A copy of the counts, safe to read from another thread."""
        finished = dict(self.finished)
        return CallReport(
            requests=self.requests,
            refused=self.refused,
            answered=sum(count for reason, count in finished.items() if reason != "abort"),
            in_flight=self.in_flight,
            max_in_flight=self.max_in_flight,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            finished=finished,
            faults=dict(self.faults),
            rows=dict(self.rows),
        )


def prometheus_text(model: str, book: CallBook, *, running: int) -> str:
    """Counts in Prometheus' text format, labelled as vLLM labels them."""
    labels = f'engine="0",model_name="{model}"'
    samples = [
        ("vllm:prompt_tokens_total", "counter", "", book.prompt_tokens),
        ("vllm:generation_tokens_total", "counter", "", book.completion_tokens),
        ("vllm:prefix_cache_queries_total", "counter", "", book.prompt_tokens),
        ("vllm:prefix_cache_hits_total", "counter", "", book.cached_tokens),
        ("vllm:num_requests_running", "gauge", "", running),
        ("vllm:num_requests_waiting", "gauge", "", max(0, book.in_flight - running)),
        *(
            ("vllm:request_success_total", "counter", f',finished_reason="{reason}"', book.finished[reason])
            for reason in ("stop", "length", "abort")
        ),
    ]
    lines: list[str] = []
    for name, kind, extra, value in samples:
        if f"# TYPE {name} {kind}" not in lines:
            lines.append(f"# TYPE {name} {kind}")
        lines.append(f"{name}{{{labels}{extra}}} {float(value)}")
    lines += ["# TYPE process_start_time_seconds gauge", f"process_start_time_seconds {book.started}"]
    return "\n".join(lines) + "\n"
