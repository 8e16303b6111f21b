"""The sweeper: runs whose process is dead are ended in the ledger and in Prefect, so that they can be resumed.

Prefect alone leaves a run Running for ever when its worker died with it, and Cancelling when the worker is dead.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from domain.sweeps import Fate, Seen, fate
from infra import deployments, leases, notices, pending
from infra.db.session import transaction
from infra.db.store import leases as lease_store
from infra.db.store import runs
from infra.deployments import LiveRun, PrefectError
from infra.settings import Settings

GRACE_S = 15.0
"""A lease may be so much older than its end before its holder is taken as dead: Postgres may have been away."""
DIED = "its process died; go on with `headrace resume {}`"

log = logging.getLogger("headrace")


def turn(_settings: Settings) -> bool:
    """Look at every run that says it is running, in the ledger and in Prefect; one that Prefect does not know, or will
    not end, stops no other. Raises StoreError, and PrefectError when Prefect is away."""
    with transaction() as db:
        running = lease_store.running(db, grace_s=GRACE_S)
    for run_id, holder, over in running:
        if over or leases.is_dead(holder):
            _tried(run_id, partial(_end_lost, run_id, holder))
    for run in deployments.live_runs():
        _tried(str(run.id), partial(_look_at, run))
    for run_id in pending.pending_runs():
        _tried(str(run_id), partial(pending.look_at, run_id))
    return False


def _tried(run_id: str, end: Callable[[], object]) -> None:
    try:
        end()
    except PrefectError as error:
        log.warning("run %s could not be ended in Prefect: %s", run_id[:8], error)


def _end_lost(run_id: str, holder: str) -> None:
    """A run that nobody carries out ends as what was wanted of it: cancelled, or crashed."""
    try:
        cancelled = deployments.is_cancelled(UUID(run_id))
    except PrefectError:
        cancelled = False
    with transaction() as db:
        if not leases.displace(db, run_id):
            return
        state = "cancelled" if cancelled or runs.is_to_stop(db, run_id) else "crashed"
        if not runs.end_lost(db, run_id, state=state):
            return  # it has ended by itself since it was seen
        notices.end(db, run_id, state)
    log.warning("run %s is lost (%s): %s", run_id[:8], holder, state)
    if state == "cancelled":
        deployments.end_as_cancelled(UUID(run_id), patience_s=0)
    else:
        deployments.crash(UUID(run_id), DIED.format(run_id[:8]))


def _look_at(run: LiveRun) -> None:
    with transaction() as db:
        known = runs.load_run(db, str(run.id)).state if runs.is_known(db, str(run.id)) else None
        holder = lease_store.holder_for(db, str(run.id))
    held = known == "running" and holder is not None and not leases.is_dead(holder.holder)
    for_s = (datetime.now(UTC) - run.since).total_seconds()
    silent_s = None if run.heartbeat is None else (datetime.now(UTC) - run.heartbeat).total_seconds()
    found = fate(Seen(cancelling=run.cancelling, for_s=for_s, ledger=known, held=held, silent_s=silent_s))
    if found is Fate.CANCEL:
        deployments.end_as_cancelled(run.id, patience_s=0)
    elif found is Fate.CRASH:
        deployments.crash(run.id, DIED.format(str(run.id)[:8]))
    if found is not Fate.LEAVE:
        log.warning("run %s: %s in Prefect, %s in the ledger", str(run.id)[:8], found, known or "unknown")
