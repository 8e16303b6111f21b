"""Stopping a run and going on with it: the ledger knows the wish, Prefect the state; a dead run is settled here."""

import time
from uuid import UUID

from rich.console import Console
from sqlalchemy.orm import Session

from domain.errors import NotFound, RunUnderWay, StoreError
from domain.retentions import PRUNED
from infra import deployments, leases
from infra.db.session import retried
from infra.db.store import leases as lease_store
from infra.db.store import runs
from infra.db.store.runs import RunRecord
from infra.deployments import PrefectError
from infra.settings import Settings

BY_ITSELF_S = 8.0
"""Time for a run's own process to see the wish and end; after that its worker is asked to end it."""
SETTLING_S = 10.0
"""Time between the ledger's and Prefect's word that a run has ended."""
LOOK_EVERY_S = 0.5
UNFINISHED = frozenset({"running", "lost", "paused"})


def cancel(run_id: str, console: Console, settings: Settings, *, wait: bool = True) -> bool:
    """Ask a run to stop, and wait until it has; whether it has ended.

    New model calls stop within ten seconds, finished rows are kept. A run whose process is dead is settled here.
    Raises NotFound and StoreError; a Prefect that does not answer is said and not needed.
    """
    run = retried(lambda db: runs.load_run(db, run_id))
    if run.state not in UNFINISHED:
        console.print(f"run {run.id[:8]} has ended already: {run.state}")
        return True
    retried(lambda db: runs.change_run(db, run.id, cancel_requested=True))
    console.print(f"cancelling run {run.id[:8]}: no new model calls, finished rows are kept")
    # A process that ends by itself is the quickest, and leaves its worker nothing to do that could come too late.
    ended = run.state == "running" and wait and _has_ended(run, console, patience_s=BY_ITSELF_S)
    if not ended and run.state == "running":
        _ask_prefect(run, console)
    if not wait and run.state == "running":
        return False
    if not ended and not _has_ended(run, console, patience_s=settings.lease_s + SETTLING_S):
        console.print(f"run {run.id[:8]} has not ended yet; it stops as soon as its process looks")
        return False
    try:
        deployments.end_as_cancelled(UUID(run.id), patience_s=SETTLING_S if run.state == "running" else 0)
    except PrefectError as error:
        console.print(f"Prefect does not know it yet: {error.message}")
    console.print(f"run {run.id[:8]} has ended   go on with  headrace resume {run.id[:8]}")
    return True


def _ask_prefect(run: RunRecord, console: Console) -> None:
    try:
        deployments.cancel(UUID(run.id))
    except PrefectError as error:
        console.print(f"  Prefect does not help: {error.message}")


def _has_ended(run: RunRecord, console: Console, *, patience_s: float) -> bool:
    """Wait for a run's end in the ledger; when its lease has run out, this is its end."""
    deadline = time.monotonic() + patience_s
    while (state := retried(lambda db: runs.load_run(db, run.id)).state) in UNFINISHED:
        if state != "running" and retried(lambda db: _settle(db, run.id)):
            if state == "lost":
                console.print("  its process is dead; the ledger is settled without it")
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_EVERY_S)
    return True


def _settle(db: Session, run_id: str) -> bool:
    # One that has ended by itself since it was seen stays as it ended.
    return leases.displace(db, run_id) and runs.end_lost(db, run_id, state="cancelled")


def forget(run_id: UUID, console: Console, settings: Settings) -> None:
    """Cancel a run that may not have begun yet, as Ctrl-C does."""
    try:
        cancel(str(run_id), console, settings)
    except (NotFound, StoreError):
        deployments.cancel(run_id)


def reopen(run_id: str, *, max_usd: float | None, max_tokens: int | None) -> RunRecord:
    """Let Prefect carry out a run again, under the same id, so that it does exactly the rest; a given budget counts.

    Raises NotFound also for a run that is complete or being forgotten, RunUnderWay when a process carries it out, and
    PrefectError when Prefect does not take it.
    """
    run = retried(lambda db: runs.load_run(db, run_id))
    if run.state == PRUNED:
        raise runs.forgotten(run.id)
    if run.state == "completed":
        raise NotFound(f"run {run.id[:8]} is complete: there is nothing left to do.")
    holder = retried(lambda db: lease_store.holder_for(db, run.id))
    if holder is not None and run.state == "running":
        raise RunUnderWay(run.id, holder.holder)
    given = {"max_usd": max_usd, "max_tokens": max_tokens}
    budget = {name: value for name, value in given.items() if value is not None}
    retried(lambda db: runs.change_run(db, run.id, cancel_requested=False, **budget))
    deployments.reschedule(UUID(run.id))
    return run
