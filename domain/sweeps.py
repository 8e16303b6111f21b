"""Sweeps: what is to become of a flow run that Prefect takes for alive."""

from dataclasses import dataclass
from enum import StrEnum

STARTING_S = 20.0
"""A process that begins needs no longer to see that it is to stop."""
SILENT_S = 90.0
"""Three heartbeats that did not come."""


PENDING_S = 100.0
"""A worker needs no longer to start a process and this one to say that it runs, also on a busy machine."""
MOST_RESTARTS = 2
"""A run whose worker has died of it so often is not begun again by itself."""


class Fate(StrEnum):
    """Leave it to the process that carries it out, have it begun again, or say in its place that it has ended."""

    LEAVE = "leave"
    RESTART = "restart"
    CANCEL = "cancel"
    CRASH = "crash"


@dataclass(frozen=True, slots=True)
class Seen:
    """A flow run in Prefect's state Running or Cancelling for `for_s` seconds; what the ledger calls it (None: it has
    not been opened); whether a living process holds its lease; seconds since its last heartbeat (None: never one)."""

    cancelling: bool
    for_s: float
    ledger: str | None
    held: bool
    silent_s: float | None


def fate(seen: Seen) -> Fate:
    """A run whose lease is held is its holder's to end. One that says "running" without a holder is cancelled if that
    is wanted, and else left to the ledger, which gives a holder more time: Postgres may have been away.

    One that has ended or not begun in the ledger may be starting (again), or waiting for another run: then it has a
    heartbeat, and ends by itself soon once it is cancelled.
    """
    if seen.held:
        return Fate.LEAVE
    if seen.cancelling:
        over = seen.ledger in ("cancelled", "running", "lost")
        return Fate.CANCEL if over or seen.for_s >= STARTING_S else Fate.LEAVE
    if seen.ledger in ("running", "lost"):
        return Fate.LEAVE
    silent = seen.silent_s is not None and seen.silent_s >= SILENT_S and seen.for_s >= SILENT_S
    return Fate.CRASH if silent else Fate.LEAVE


def fate_of_pending(*, for_s: float, process: bool, restarts: int) -> Fate:
    """What becomes of a run that a worker took `for_s` seconds ago and that has not begun; `process` says whether one
    may be there for it, `restarts` how often it was begun again already.

    Nothing of it was carried out yet, so that it can begin again; a worker that dies of it each time ends that.
    """
    if process or for_s < PENDING_S:
        return Fate.LEAVE
    return Fate.RESTART if restarts < MOST_RESTARTS else Fate.CRASH
