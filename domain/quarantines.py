"""Quarantines: many rows with few reasons, as a table that people read."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

EXAMPLES = 3
_OWN = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(?:[.,]\d+)*")
"""What a reason says of its own row: a quoted value, a number."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One kind of reason: the stage that gave it, how many rows have it, and the first of them with their own words."""

    stage: str
    kind: str
    rows: int
    examples: tuple[str, ...]


def by_reason(rows: Iterable[tuple[str, str, str]]) -> list[Reason]:
    """Rows given as (stage, place, reason), grouped by stage and kind of reason; the most frequent kind first.

    Reasons are of one kind when they differ in quoted values and numbers only, or only after a colon.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for stage, place, reason in rows:
        found.setdefault((stage, kind_of(reason)), []).append(f"{place}: {reason}")
    listed = [Reason(stage, kind, len(said), tuple(said[:EXAMPLES])) for (stage, kind), said in found.items()]
    return sorted(listed, key=lambda reason: (-reason.rows, reason.stage, reason.kind))


def kind_of(reason: str) -> str:
    """A reason without what is its row's own."""
    return _OWN.sub("…", reason).partition(":")[0].strip() or reason
