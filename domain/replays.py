"""Replays: decisions made again, compared byte by byte with those on record, and why the first one differs."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import JsonValue

from domain.canonical import canonical


class Cause(StrEnum):
    """What has changed since the run, so that a decision comes out differently."""

    DATA = "data"
    PROMPT = "prompt"
    SCHEMA = "schema"
    CODE = "code version"
    LEDGER = "ledger"


class Kind(StrEnum):
    """What is compared; a decision follows from those above it."""

    WORKLOAD = "workload"
    RECORDS = "records"
    PROMPT_VERSIONS = "prompt versions"
    STORED_BUNDLE = "stored bundle"
    PRIORS = "label priors"
    PROMPTS = "prompts"
    REQUESTS = "requests"
    OUTPUTS = "outputs"
    CONFIDENCES = "confidences"
    SCORES = "scores"
    CERTIFICATE = "certificate"
    FIGURES = "figures"
    BUNDLE = "bundle"
    GATE = "gate"
    OUTCOMES = "outcomes"
    SUMMARY = "summary"


@dataclass(frozen=True, slots=True)
class Divergence:
    """One decision that comes out differently; the values as canonical JSON."""

    kind: Kind
    what: str
    cause: Cause
    recorded: str
    replayed: str


@dataclass(slots=True)
class Comparison:
    """Everything compared so far, by kind."""

    compared: Counter[Kind] = field(default_factory=Counter[Kind])
    diverging: Counter[Kind] = field(default_factory=Counter[Kind])
    firsts: dict[Kind, Divergence] = field(default_factory=dict[Kind, Divergence])

    def same(self, kind: Kind, what: str, recorded: JsonValue, replayed: JsonValue, *, cause: Cause) -> bool:
        """Compare one decision; `cause` is what it is put down to when it differs."""
        self.compared[kind] += 1
        left, right = as_stored(recorded), as_stored(replayed)
        if left == right:
            return True
        self.diverging[kind] += 1
        self.firsts.setdefault(kind, Divergence(kind, what, cause, left.decode(), right.decode()))
        return False

    @property
    def identical(self) -> bool:
        """Whether every decision came out as recorded."""
        return not self.firsts

    @property
    def first(self) -> Divergence | None:
        """The first divergence of the kind from which the others follow."""
        return next((self.firsts[kind] for kind in Kind if kind in self.firsts), None)


def as_stored(value: JsonValue) -> bytes:
    """Canonical JSON with numbers as Postgres gives them back: it writes 1e16 out, and has no negative zero."""
    return canonical(_settled(value))


def _settled(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {key: _settled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_settled(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) >= 1e16:
        return int(value)
    return 0.0 if isinstance(value, float) and value == 0.0 else value
