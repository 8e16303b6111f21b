"""The lease of this process: taken before a run writes, renewed in the background, watched for a wish to stop."""

import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

import psutil
from sqlalchemy import func
from sqlalchemy.orm import Session

from domain.canonical import digest
from domain.errors import RunCancelled, RunUnderWay, StoreError
from infra import deployments
from infra.db import session
from infra.db.session import Fence, heartbeat, retried
from infra.db.store import leases as store
from infra.db.store import runs
from infra.db.store.leases import Holder, Taken
from infra.settings import Settings

LOOK_EVERY_S = 0.5
"""How often a held lease is looked at while we wait for it."""
BEAT_EVERY_S = 5.0
"""The longest time between two renewals, and between two looks at the wish to stop."""
STOPPING_S = 15.0
"""Time for a run that was told to stop to end by itself; after that its process is ended, wherever it hangs."""
LOST = 75
"""The exit code of a process whose work another run has taken over (EX_TEMPFAIL)."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What this process holds; `stop` is set when its run is to end early, and `ended` when it need not beat on."""

    run_id: str
    fence: Fence
    ttl_s: float
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


_held: list[Lease] = []  # none or one: a process carries out one run


def work_of(kind: str, workload: str, uri: str | None = None) -> str:
    """The key of what only one run may do at a time."""
    return digest([kind, workload, uri])


def acquire(work: str, run_id: str, settings: Settings, *, wait: Callable[[], None] | Literal[False] = False) -> None:
    """Make this process the one that writes for a run, and keep it so until `release`.

    Waits for a holder that does not renew any more, at most `lease_s` seconds. Raises RunUnderWay as soon as the
    holder is seen to be alive, StoreError without Postgres. With `wait` a living holder is waited for as well, however
    long it takes; the function is called now and then, and may raise to end that.
    """
    if _held and (_held[0].run_id, _held[0].fence.work) == (run_id, work):
        return  # a repeated task
    while True:
        try:
            taken = _wait_for(work, run_id, settings.lease_s)
            break
        except RunUnderWay as error:
            if not wait or error.run_id == run_id:
                raise
            wait()
    lease = Lease(run_id, Fence(work, taken.token, lambda: _leave(lease)), settings.lease_s)
    _held[:] = [lease]
    session.raise_fence(lease.fence)
    threading.Thread(target=_beat, args=(lease,), name="lease", daemon=True).start()
    threading.Thread(target=_outlive_reader, name="output", daemon=True).start()
    if settings.prefect_api_url is not None:
        threading.Thread(target=_watch, args=(lease, taken.left), name="prefect", daemon=True).start()


def _wait_for(work: str, run_id: str, ttl_s: float) -> Taken:
    seen: Holder | None = None
    while True:
        dead = seen.holder if seen and is_dead(seen.holder) else None
        taken = retried(lambda db: store.take(db, work, run_id, holder=this_process(), ttl_s=ttl_s, dead=dead))  # noqa: B023
        if taken is not None:
            return taken
        now = retried(lambda db: store.holder_of(db, work))
        if now is None or now.expired:
            continue
        if seen is not None and (seen.token, seen.expires_at) != (now.token, now.expires_at):
            raise RunUnderWay(now.run_id, now.holder)
        if seen is not None or not is_dead(now.holder):
            time.sleep(LOOK_EVERY_S)
        seen = now


def release() -> None:
    """Give the lease back, so that the next one need not wait; this process writes nothing more for its run."""
    if not _held:
        return
    lease = _held.pop()
    lease.ended.set()
    session.lower_fence()
    retried(lambda db: store.release(db, lease.fence.work, lease.fence.token))


def holds(run_id: str) -> bool:
    """Whether this process holds the lease for a run."""
    return bool(_held) and _held[0].run_id == run_id


def stopping() -> bool:
    """Whether the run of this process is to end early. Set within `BEAT_EVERY_S` of the wish; cheap to ask."""
    return bool(_held) and _held[0].stop.is_set()


def check() -> None:
    """Raise RunCancelled when the run of this process is to end early."""
    if stopping():
        raise RunCancelled("the run was cancelled.", hint=f"Go on with `headrace resume {_held[0].run_id[:8]}`.")


def stop() -> None:
    """Ask the run of this process to end early."""
    if _held:
        _held[0].stop.set()


def displace(db: Session, run_id: str) -> bool:
    """Fence off the process that carried out a run, if it is dead; False when it may be alive."""
    now = store.holder_for(db, run_id)
    return store.displace(db, run_id, dead=now.holder if now and is_dead(now.holder) else None)


def this_process() -> str:
    """What this process is called as the holder of a lease."""
    return f"{_machine()} pid {os.getpid()}"


def _machine() -> str:
    """What makes process ids comparable: the host, and the namespace that counts them."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def is_dead(holder: str) -> bool:
    """Whether a holder is a process of this machine that is no more; its lease need not run out then."""
    machine, _, pid = holder.rpartition(" pid ")
    return machine == _machine() and pid.isdecimal() and not psutil.pid_exists(int(pid))


def _leave(lease: Lease) -> None:
    """End this process at once: nothing that it could still do or say is true any more."""
    try:
        with heartbeat() as db:
            now = store.holder_of(db, lease.fence.work)
    except StoreError:
        now = None
    # Prefect's worker reports a run whose process fails as crashed. Where the same run goes on elsewhere it is not.
    goes_on = now is not None and now.run_id == lease.run_id and not now.expired
    print(f"headrace: the work of run {lease.run_id} was taken over; this process ends", file=sys.stderr, flush=True)
    os._exit(0 if goes_on else LOST)


def _beat(lease: Lease) -> None:
    """Renew until the run has ended; when somebody else has the lease, this process ends at once.

    So does one that does not stop when it is told to: Prefect's worker would wait for it for half a minute.
    """
    told_at: float | None = None
    while not lease.ended.is_set():
        if lease.stop.is_set():
            told_at = told_at or time.monotonic()
            if time.monotonic() - told_at > STOPPING_S:
                _cut_short(lease)
        try:
            with heartbeat() as db:
                asked = store.renew(db, lease.fence.work, lease.fence.token, ttl_s=lease.ttl_s)
        except StoreError:
            # The fence protects what is written; the lease may still be ours when Postgres is back.
            lease.ended.wait(min(1.0, lease.ttl_s / 6))
            continue
        if asked is None and not lease.ended.is_set():
            _leave(lease)
        if asked:
            lease.stop.set()
        lease.ended.wait(min(BEAT_EVERY_S, lease.ttl_s / 6))


def _cut_short(lease: Lease) -> None:
    """End a run as cancelled or paused, and this process with it: what is stored stays, what is under way is lost."""
    paused = False
    with suppress(deployments.PrefectError):
        paused = deployments.suspended(UUID(lease.run_id)) is not None
    with suppress(StoreError), heartbeat() as db:
        runs.change_run(db, lease.run_id, state="paused" if paused else "cancelled", ended_at=func.now())
        store.release(db, lease.fence.work, lease.fence.token)
    with suppress(deployments.PrefectError):
        if not paused:
            deployments.end_as_cancelled(UUID(lease.run_id), patience_s=0)
    print(f"headrace: run {lease.run_id} did not stop by itself; its process ends", file=sys.stderr, flush=True)
    os._exit(0)


def _watch(lease: Lease, left: str | None) -> None:
    """Look every few seconds whether Prefect wants this run to stop; a Prefect that is away wants nothing."""
    if left is not None:
        with suppress(deployments.PrefectError):
            deployments.crash(UUID(left), "its process died, and another run has taken over its work")
    while not lease.ended.wait(min(BEAT_EVERY_S, lease.ttl_s / 6)):
        with suppress(deployments.PrefectError):
            if deployments.is_to_stop(UUID(lease.run_id)):
                lease.stop.set()


def _outlive_reader() -> None:
    """When the worker that reads our output dies, write to nowhere: rich ends a process whose output has no reader."""
    outputs = select.poll()
    for output in (1, 2):
        outputs.register(output, 0)  # nothing but the loss of the other end
    while lost := outputs.poll():
        for output, _ in lost:
            outputs.unregister(output)
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)
