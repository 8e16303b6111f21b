"""Run diffs: two runs row by row, which answers flipped, and what each flip is put down to."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from pydantic import JsonValue

from domain.canonical import canonical
from domain.comparisons import Difference, paired_difference
from domain.requests import Frame, response_schema


class Part(StrEnum):
    """What may differ between two runs, so that a row is answered in another way."""

    DATA = "data"
    MODEL = "model"
    PROMPT = "prompt"
    SCHEMA = "schema"
    SAMPLING = "sampling"
    REASK = "re-ask"
    PRIOR = "label prior"
    THRESHOLD = "threshold"


_SAMPLING = ("temperature", "seed", "max_tokens", "top_p", "logprobs", "top_logprobs")


@dataclass(frozen=True, slots=True)
class Said:
    """What one tier said to a row: the request it was asked (frame None: not on record), its output and confidence."""

    request_hash: str
    frame: Frame | None
    reasks: int
    output: Mapping[str, JsonValue] | None
    confidence: float | None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a row ended in a run: `output` and `tier` None mean quarantine; `quality` None means that nobody scored it.

    `row` is the row's name in its file, `key` the hash of what it says; `usd` is what was spent on it at list price,
    also in vain.
    """

    row: str
    key: str
    output: Mapping[str, JsonValue] | None
    tier: str | None
    usd: float
    quality: float | None
    said: Mapping[str, Said]


@dataclass(frozen=True, slots=True)
class Flip:
    """A row that ended in another way, and every part that differs behind it: one part is the cause, several together
    are not told apart by what is on record."""

    before: Ended
    after: Ended
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class RunDiff:
    """Quality and USD per 1,000 rows of the rows in both runs, second less first, and every flip."""

    rows: int
    before_only: int
    after_only: int
    quality: Difference
    usd_per_1000: Difference
    flips: tuple[Flip, ...]

    @property
    def causes(self) -> Counter[str]:
        """How many flips are put down to what."""
        return Counter(" + ".join(flip.parts) or "not on record" for flip in self.flips)


def diff_runs(before: Sequence[Ended], after: Sequence[Ended], *, other_threshold: bool) -> RunDiff:
    """Compare two runs by the names of their rows; `other_threshold` says whether they kept cheap answers alike."""
    left, right = {one.row: one for one in before}, {one.row: one for one in after}
    both = [(left[row], right[row]) for row in left if row in right]
    scored = [(a.quality, b.quality) for a, b in both if a.quality is not None and b.quality is not None]
    qualities = np.array(scored, dtype=np.float64).reshape(-1, 2)
    usd = np.array([(a.usd, b.usd) for a, b in both], dtype=np.float64).reshape(-1, 2)
    flips = (
        Flip(a, b, behind(a, b, other_threshold=other_threshold)) for a, b in both if _said(a.output) != _said(b.output)
    )
    return RunDiff(
        rows=len(both),
        before_only=len(left) - len(both),
        after_only=len(right) - len(both),
        quality=paired_difference(qualities[:, 0], qualities[:, 1]),
        usd_per_1000=paired_difference(1000 * usd[:, 0], 1000 * usd[:, 1]),
        flips=tuple(flips),
    )


def behind(before: Ended, after: Ended, *, other_threshold: bool) -> tuple[Part, ...]:
    """The parts that differ behind a flip. The same request has the same completion in the ledger, so that what it
    became can only differ by the label prior, and who answered by what the tiers said and by the threshold."""
    if before.key != after.key:
        return (Part.DATA,)
    elsewhere = before.tier != after.tier
    names = [name for name in before.said if name in after.said and (elsewhere or name == before.tier)]
    parts = {part for name in names for part in _differing(before.said[name], after.said[name])}
    if elsewhere and other_threshold:
        parts.add(Part.THRESHOLD)
    return tuple(part for part in Part if part in parts)


def _differing(one: Said, other: Said) -> list[Part]:
    if one.request_hash == other.request_hash:
        same = _said(one.output) == _said(other.output) and one.confidence == other.confidence
        return [] if same else [Part.PRIOR]
    if one.reasks or other.reasks:
        return [Part.REASK]
    if one.frame is None or other.frame is None:
        return []
    a, b = one.frame, other.frame
    differs = {
        Part.MODEL: (a.body.get("model"), a.revision) != (b.body.get("model"), b.revision),
        Part.SCHEMA: canonical(response_schema(a.body)) != canonical(response_schema(b.body)),
        Part.SAMPLING: any(a.body.get(name) != b.body.get(name) for name in _SAMPLING),
        # The row says the same: with equal openings the rest of the request is what the prompt makes of it.
        Part.PROMPT: a.body.get("messages") != b.body.get("messages") or a.hash == b.hash,
    }
    return [part for part, is_so in differs.items() if is_so]


def _said(output: Mapping[str, JsonValue] | None) -> bytes:
    return canonical(None if output is None else dict(output))
