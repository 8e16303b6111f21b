"""Run diffs: two runs row by row, which answers flipped, and what each flip is put down to."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import numpy as np
from pydantic import JsonValue

from domain.bundles import Bundle
from domain.canonical import canonical
from domain.comparisons import Difference, paired_difference
from domain.requests import Frame, Request, response_schema
from domain.routers import Routing
from domain.workloads import TierName


class Part(StrEnum):
    """What may differ between two runs, so that a row is answered in another way."""

    DATA = "data"
    MODEL = "model"
    PROMPT = "prompt"
    SCHEMA = "schema"
    SAMPLING = "sampling"
    REASK = "re-ask"
    PRIOR = "label prior"
    SIGNAL = "signal"
    LENGTH = "length limit"
    THRESHOLD = "threshold"


_SAMPLING = ("temperature", "seed", "max_tokens", "top_p", "logprobs", "top_logprobs")


@dataclass(frozen=True, slots=True)
class Rule:
    """How a run decided which tier answers a row: what its router reads and from which value it keeps a cheap answer
    (None: every row goes to the strong tier), and what stands as the confidence of its answers on record."""

    routing: Routing
    threshold: float | None
    recorded: Routing

    @classmethod
    def of(cls, bundle: Bundle | None, *, kind: str, void: bool) -> "Rule":
        """A run's rule by its bundle and kind; a batch by a `void` certificate sends every row to the strong tier."""
        if bundle is None:
            return cls(Routing(), None, Routing())
        if kind != "route":  # an optimisation stores the margin, and reads every signal beside it
            return cls(bundle.routing, bundle.threshold, Routing())
        return cls(bundle.routing, None if void else bundle.threshold, bundle.routing)

    def others(self, other: "Rule") -> set[Part]:
        """The parts of two rules that differ."""
        found = {Part.THRESHOLD} if self.threshold != other.threshold else set[Part]()
        if self.threshold is None or other.threshold is None:
            return found  # one of them reads nothing
        if not _reads_alike(self.routing, other.routing):
            found.add(Part.SIGNAL)
        return found


def _reads_alike(one: Routing, other: Routing) -> bool:
    return one.model_copy(update={"straight_from": None}) == other.model_copy(update={"straight_from": None})


@dataclass(frozen=True, slots=True)
class Said:
    """What one tier said to a row: the last request it was asked (frame None: not on record), how often it was asked
    again, its output and confidence."""

    request_hash: str
    frame: Frame | None
    reasks: int
    output: Mapping[str, JsonValue] | None
    confidence: float | None

    @property
    def firsts(self) -> dict[str, Frame | None]:
        """The request that it was asked first: its frame, by its hash; nothing when that cannot be told.

        A re-ask puts an answer and a complaint behind the messages before it. An answer that failed may stand under its
        first request all the same, where the re-ask was refused: then both are possible.
        """
        found = {self.request_hash: self.frame} if self.output is None or not self.reasks else {}
        messages = cast(list[JsonValue], self.frame.body.get("messages", [])) if self.frame else []
        opening = len(messages) - 2 * self.reasks
        if self.frame and self.reasks and opening >= 0:
            first = Request.of({**self.frame.body, "messages": messages[: opening + 1]}, self.frame.revision)
            found[first.hash] = first.frame
        return found


@dataclass(frozen=True, slots=True)
class Ended:
    """How a row ended in a run: `output` and `tier` None mean quarantine; `quality` None means that nobody scored it.

    `row` is the row's name in its file, `key` the hash of what it says, `inputs` that without its gold answer, or a
    digest of it; `usd` is what was spent on it at list price, also in vain. `escalated` says that the cheap tier had
    been asked before the strong one; None where nobody knows.
    """

    row: str
    key: str
    inputs: str
    output: Mapping[str, JsonValue] | None
    tier: str | None
    escalated: bool | None
    usd: float
    quality: float | None
    said: Mapping[str, Said]

    @property
    def last_asked(self) -> str:
        """The tier whose answer counts; a row is in quarantine because the strong one had none."""
        return self.tier or TierName.STRONG

    def straight(self, rule: Rule) -> bool:
        """Whether the row was too long for the cheap tier, which was asked about others."""
        return rule.threshold is not None and self.tier == TierName.STRONG and self.escalated is False


@dataclass(frozen=True, slots=True)
class Flip:
    """A row that ended in another way, and every part that differs behind it: one part is the cause, several together
    are not told apart by what is on record."""

    before: Ended
    after: Ended
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class RunDiff:
    """Quality and USD per 1,000 rows of the rows in both runs, second less first, and every flip; `quality` None means
    that the runs measure it by two metrics."""

    rows: int
    before_only: int
    after_only: int
    quality: Difference | None
    usd_per_1000: Difference
    flips: tuple[Flip, ...]

    @property
    def causes(self) -> Counter[str]:
        """How many flips are put down to what."""
        return Counter(" + ".join(flip.parts) or "not on record" for flip in self.flips)


def one_metric(before: str | None, after: str | None) -> bool:
    """Whether a difference of qualities by these metrics means anything; by one without a name nothing was scored."""
    return not before or not after or before == after


def diff_runs(
    before: Sequence[Ended], after: Sequence[Ended], *, rules: tuple[Rule, Rule], comparable: bool = True
) -> RunDiff:
    """Compare two runs by the names of their rows; `comparable` says that one metric scored both."""
    left, right = {one.row: one for one in before}, {one.row: one for one in after}
    both = [(left[row], right[row]) for row in left if row in right]
    scored = [(a.quality, b.quality) for a, b in both if a.quality is not None and b.quality is not None]
    qualities = np.array(scored, dtype=np.float64).reshape(-1, 2)
    usd = np.array([(a.usd, b.usd) for a, b in both], dtype=np.float64).reshape(-1, 2)
    flips = (Flip(a, b, behind(a, b, rules=rules)) for a, b in both if _said(a.output) != _said(b.output))
    return RunDiff(
        rows=len(both),
        before_only=len(left) - len(both),
        after_only=len(right) - len(both),
        quality=paired_difference(qualities[:, 0], qualities[:, 1]) if comparable else None,
        usd_per_1000=paired_difference(1000 * usd[:, 0], 1000 * usd[:, 1], bounded=False),
        flips=tuple(flips),
    )


def behind(before: Ended, after: Ended, *, rules: tuple[Rule, Rule]) -> tuple[Part, ...]:
    """The parts that differ behind a flip: of the requests of the tiers whose answers count, of what became of them,
    and where another tier answered, of the routers' rules.

    The same request has the same completion in the ledger, so that another label, or another value of the same signal,
    can only come from the label prior. Gold answers are no part of a request.
    """
    one, two = rules
    elsewhere, same_row = before.last_asked != after.last_asked, before.inputs == after.inputs
    names = [name for name in before.said if name in after.said and (elsewhere or name == before.last_asked)]
    parts = set[Part]() if names or same_row else {Part.DATA}
    for name in names:
        comparable = name == TierName.CHEAP and _reads_alike(one.recorded, two.recorded)
        parts |= _differing(before.said[name], after.said[name], same_row=same_row, same_signal=comparable)
    if elsewhere and before.straight(one) != after.straight(two):
        parts |= {Part.LENGTH} if one.routing.straight_from != two.routing.straight_from else set()
    elif elsewhere:
        parts |= one.others(two)
    return tuple(part for part in Part if part in parts)


def _differing(one: Said, other: Said, *, same_row: bool, same_signal: bool) -> set[Part]:
    """By the first requests; only of the same one did anything else make the difference."""
    if one.request_hash == other.request_hash or one.firsts.keys() & other.firsts.keys():
        if (one.request_hash, one.reasks) != (other.request_hash, other.reasks):
            return {Part.REASK}
        if one.output is None or other.output is None:
            return set()  # it was refused, or never asked: no prior does that
        moved = same_signal and one.confidence != other.confidence
        return {Part.PRIOR} if moved or _said(one.output) != _said(other.output) else set()
    parts = _of_frames(one, other, same_row=same_row)
    if not same_row:
        parts.add(Part.DATA)
    if one.reasks != other.reasks or (one.reasks and not parts):
        parts.add(Part.REASK)
    return parts


def _of_frames(one: Said, other: Said, *, same_row: bool) -> set[Part]:
    if one.frame is None or other.frame is None:
        return set()
    a, b = one.frame, other.frame
    pairs = [(x, y) for x in one.firsts.values() for y in other.firsts.values() if x and y]
    alike = any(x.body.get("messages") == y.body.get("messages") for x, y in pairs)
    differs = {
        Part.MODEL: (a.body.get("model"), a.revision) != (b.body.get("model"), b.revision),
        Part.SCHEMA: canonical(response_schema(a.body)) != canonical(response_schema(b.body)),
        Part.SAMPLING: any(a.body.get(name) != b.body.get(name) for name in _SAMPLING),
        # Where the row says the same and all else is equal, the rest of the request is what the prompt makes of it.
        Part.PROMPT: bool(pairs) and (not alike or (same_row and any(x.hash == y.hash for x, y in pairs))),
    }
    return {part for part, is_so in differs.items() if is_so}


def _said(output: Mapping[str, JsonValue] | None) -> bytes:
    return canonical(None if output is None else dict(output))
