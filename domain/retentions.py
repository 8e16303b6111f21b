"""Which past runs may be forgotten, and what keeps the others."""

import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from domain.errors import InputError, Place

OVER = frozenset({"completed", "failed", "cancelled", "crashed", "unchanged"})
"""States that nobody goes on from after a long time; a paused run waits for somebody."""
PRUNED = "pruned"
"""A run that is being forgotten: nothing takes its answers over any more."""
_UNITS = {"d": timedelta(days=1), "w": timedelta(weeks=1), "h": timedelta(hours=1)}


class Need(StrEnum):
    """Why a run stays."""

    RECENT = "not old enough"
    OPEN = "has not ended"
    UNDER_WAY = "a run of its workload is under way"
    NEWEST = "the last complete one of its kind"
    BUNDLE = "made a bundle"
    CERTIFICATE = "its certificate used up calibration rows"
    PROMOTION = "a promotion names it"
    AUDIT = "an audit, or one chose rows of it"
    UNAUDITED = "a batch of a bundle in use that no audit has looked at"
    COMPILE = "compiled a prompt"
    REUSED = "a run that stays took its answers over"


@dataclass(frozen=True, slots=True)
class Past:
    """A run as retention sees it; `needs` are those that the ledger knows of, `requeued` is one on quarantined rows."""

    id: str
    kind: str
    workload: str
    state: str
    ended_at: datetime | None
    needs: frozenset[Need] = frozenset()
    requeued: bool = False


@dataclass(frozen=True, slots=True)
class Sorted:
    """What may go, the oldest first, and how many stay for which reason (the first that holds)."""

    removable: tuple[Past, ...]
    kept: Counter[Need]


def age(text: str) -> timedelta:
    """An age as people write it: 90d, 12w, 36h; raises InputError."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})([dwh])", text.strip())
    if found is None:
        raise InputError(Place("--older-than"), f"{text!r} is no age", hint="Write 90d, 12w or 36h.")
    return int(found[1]) * _UNITS[found[2]]


def sort_out(
    runs: Sequence[Past], *, before: datetime, workload: str | None = None, under_way: Set[str] = frozenset()
) -> Sorted:
    """Decide about every run, or those of one workload: only what ended before a moment and nothing needs may go.

    `under_way` are the workloads of which a run is under way.
    """
    newest = _newest(runs)
    removable: list[Past] = []
    kept: Counter[Need] = Counter()
    for run in runs:
        if workload not in (None, run.workload):
            continue
        need = _need(run, before, newest, under_way)
        if need is None:
            removable.append(run)
        else:
            kept[need] += 1
    return Sorted(tuple(sorted(removable, key=lambda run: (run.ended_at or before, run.id))), kept)


def _need(run: Past, before: datetime, newest: Set[str], under_way: Set[str]) -> Need | None:
    if run.state == PRUNED:
        return None  # half of it may be gone already
    if run.state not in OVER or run.ended_at is None:
        return Need.OPEN
    if run.ended_at >= before:
        return Need.RECENT
    if run.workload in under_way:
        return Need.UNDER_WAY
    if run.id in newest:
        return Need.NEWEST
    return next((need for need in Need if need in run.needs), None)


def _newest(runs: Sequence[Past]) -> set[str]:
    """The last complete run of each kind and workload: what the next one is compared with."""
    found: dict[tuple[str, str], Past] = {}
    for run in runs:
        if run.state == "completed" and run.ended_at is not None and not run.requeued:
            last = found.get((run.kind, run.workload))
            if last is None or last.ended_at is None or run.ended_at > last.ended_at:
                found[run.kind, run.workload] = run
    return {run.id for run in found.values()}
