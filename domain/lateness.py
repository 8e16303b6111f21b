"""Lateness: of several due times of a schedule, only the newest is worth a run."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

COUNTS = frozenset(
    {"Scheduled", "Late", "Pending", "AwaitingConcurrencySlot", "Running", "AwaitingRetry", "Suspended", "Completed"}
)
"""States of a run that will do the work, does it or has done it. One that was cancelled, skipped or failed does not."""


@dataclass(frozen=True, slots=True)
class DueRun:
    """A run of a schedule: when it was due, the name of its state, and what it is asked to do."""

    run_id: str
    name: str
    due_at: datetime
    state: str
    parameters: dict[str, object]


def newer_due(own: DueRun, others: Iterable[DueRun], *, now: datetime) -> DueRun | None:
    """The newest run that was due after `own`, is due by `now` and does the same; None when `own` is the newest.

    Runs due at the same time are told apart by their ids, so that exactly one of them is the newest.
    """
    found = [
        run
        for run in others
        if run.run_id != own.run_id
        and run.state in COUNTS
        and run.due_at <= now
        and (run.due_at, run.run_id) > (own.due_at, own.run_id)
        and run.parameters == own.parameters
    ]
    return max(found, key=lambda run: (run.due_at, run.run_id), default=None)


def skipped_because(newer: DueRun) -> str:
    """Why a late run ends without having done anything."""
    return f"a newer run of the same schedule is due: {newer.name}, {newer.due_at:%Y-%m-%d %H:%M} UTC ({newer.run_id})"
