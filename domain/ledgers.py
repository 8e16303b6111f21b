"""The ledger's nouns and its two equations: rows are conserved, tokens reconcile."""

from dataclasses import dataclass
from enum import StrEnum

from domain.requests import Usage


class OutcomeClass(StrEnum):
    """How one attempt ended."""

    ANSWERED = "answered"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"
    LOST = "lost"
    STALLED = "stalled"
    TIMEOUT = "timeout"
    FAILED = "failed"
    GARBLED = "garbled"


class Stage(StrEnum):
    """What a call was made for."""

    COMPILE = "compile"
    GENERATE = "generate"
    REASK = "reask"
    SIGNAL = "signal"
    JUDGE = "judge"
    REPRODUCE = "reproduce"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call paid for, or answered from the ledger (`cached`, then it costs nothing)."""

    attempt_id: str
    stage: Stage
    tier: str
    record_key: str
    request_hash: str
    number: int
    cached: bool
    usage: Usage
    seconds: float
    usd: float
    worker: str
    outcome: OutcomeClass
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Conservation:
    """records = outcomes + quarantined + cancelled + pending, counted independently."""

    records: int
    outcomes: int
    quarantined: int
    cancelled: int
    pending: int

    @property
    def holds(self) -> bool:
        """Whether no row is lost and none is counted twice."""
        return self.records == self.outcomes + self.quarantined + self.cancelled + self.pending

    def __str__(self) -> str:
        sign = "=" if self.holds else "≠"
        return (
            f"{self.records} records {sign} {self.outcomes} outcomes + {self.quarantined} quarantined "
            f"+ {self.cancelled} cancelled + {self.pending} pending"
        )


@dataclass(frozen=True, slots=True)
class Meter:
    """A model server's own counters at one moment; `started` tells a restarted server from an idle one."""

    prompt: int
    completion: int
    started: float


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Tokens of a run's attempts against what one server counted meanwhile."""

    server: str
    ledger_prompt: int
    ledger_completion: int
    server_prompt: int | None
    server_completion: int | None

    @property
    def holds(self) -> bool | None:
        """None when the server restarted or could not be read, so nothing can be said."""
        if self.server_prompt is None or self.server_completion is None:
            return None
        return (self.ledger_prompt, self.ledger_completion) == (self.server_prompt, self.server_completion)


def reconcile(server: str, attempts: Usage, before: Meter | None, after: Meter | None) -> Reconciliation:
    """Compare the ledger with the difference of two readings of the server's counters."""
    known = before is not None and after is not None and before.started == after.started
    return Reconciliation(
        server=server,
        ledger_prompt=attempts.prompt,
        ledger_completion=attempts.completion,
        server_prompt=after.prompt - before.prompt if known and before and after else None,
        server_completion=after.completion - before.completion if known and before and after else None,
    )
