"""Outcomes: what becomes of a row once both tiers were asked, or only one."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from domain.bundles import keeps
from domain.workloads import TierName


@dataclass(frozen=True, slots=True)
class TierAnswer:
    """One tier's final answer to a row: output None means that it stayed invalid; tokens and `usd` at list price.

    `signals` are the values of every signal that was looked at, `signal_usd` the part of `usd` that one took for calls
    of its own.
    """

    output: dict[str, JsonValue] | None
    confidence: float | None
    tokens: int
    usd: float
    failed: str | None
    signals: Mapping[str, float] = field(default_factory=dict[str, float])
    signal_usd: Mapping[str, float] = field(default_factory=dict[str, float])


STRAIGHT = "straight to the strong tier"
"""Why the cheap tier has no answer to a row that it was never asked about."""


def skipped() -> TierAnswer:
    """The cheap tier's part in a row that goes straight to the strong one: it is not asked and costs nothing."""
    return TierAnswer(None, None, tokens=0, usd=0.0, failed=STRAIGHT)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row's final answer."""

    key: str
    tier: TierName
    output: dict[str, JsonValue]
    confidence: float | None
    escalated: bool
    usd: float


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A row that no tier it was sent to could answer."""

    key: str
    reason: str


def settle_row(
    key: str, cheap: TierAnswer | None, strong: TierAnswer | None, threshold: float | None
) -> Outcome | Unanswered:
    """Keep the cheap answer or take the strong one; without a threshold, and about skipped rows, the cheap tier is not
    asked.

    Raises ValueError when the tier that must answer was not asked.
    """
    if cheap is not None and keeps(cheap.confidence, threshold) and cheap.output is not None:
        return Outcome(key, TierName.CHEAP, cheap.output, cheap.confidence, escalated=False, usd=cheap.usd)
    if strong is None:
        raise ValueError(f"row {key} was escalated, but the strong tier was not asked")
    asked_cheap = cheap is not None and threshold is not None and cheap.failed != STRAIGHT
    cost = strong.usd + (cheap.usd if cheap is not None and asked_cheap else 0.0)
    if strong.output is None:
        return Unanswered(key, strong.failed or "the strong tier gave no valid answer")
    return Outcome(key, TierName.STRONG, strong.output, strong.confidence, escalated=asked_cheap, usd=cost)
