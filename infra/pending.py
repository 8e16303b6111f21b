"""Runs that a worker took and never began: it was killed in between, and Prefect leaves them Pending for ever."""

import logging
from datetime import UTC, datetime
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed, Scheduled

from domain.sweeps import Fate, fate_of_pending
from infra.deployments import RESUMING, client_for

OF_PROCESSES = "process"
log = logging.getLogger("headrace")


def pending_runs() -> list[UUID]:
    """Our flow runs that a worker has taken and that have not begun; raises PrefectError."""
    types = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING]))
    ours = FlowRunFilter(state=types, tags=FlowRunFilterTags(all_=["headrace"]))
    with client_for("list its runs") as client:
        return [run.id for run in client.read_flow_runs(flow_run_filter=ours)]


def look_at(run_id: UUID, *, now: datetime | None = None) -> Fate:
    """Have a run that is Pending for too long, and has no process, begin again, or end it when that has not helped.

    Raises PrefectError.
    """
    with client_for("begin the run again") as client:
        run = client.read_flow_run(run_id)
        if run.state is None or not run.state.is_pending():
            return Fate.LEAVE
        for_s = ((now or datetime.now(UTC)) - run.state.timestamp).total_seconds()
        if fate_of_pending(for_s=for_s, process=False, restarts=0) is Fate.LEAVE:
            return Fate.LEAVE  # nearly all of them, without another question
        restarts = sum(state.name == RESUMING for state in client.read_flow_run_states(run_id))
        found = fate_of_pending(for_s=for_s, process=_may_have_process(client, run), restarts=restarts)
        if found is Fate.RESTART:
            client.set_flow_run_state(run_id, Scheduled(name=RESUMING), force=True)
        elif found is Fate.CRASH:
            client.set_flow_run_state(run_id, Crashed(message="its worker died before it began, again and again"))
    if found is not Fate.LEAVE:
        log.warning("run %s was Pending for %.0f s without a process: %s", str(run_id)[:8], for_s, found)
    return found


def _may_have_process(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether something may be about to begin a run: a process of this machine, or a container elsewhere."""
    if run.infrastructure_pid:
        pid = run.infrastructure_pid.rpartition(":")[2]
        return not pid.isdecimal() or _carries_out(int(pid), run.id)
    # A container may be long in coming, while its image is fetched; a process is there or not.
    return run.work_pool_name is not None and client.read_work_pool(run.work_pool_name).type != OF_PROCESSES


def _carries_out(pid: int, run_id: UUID) -> bool:
    """Whether a process of this machine is there for a run: another one may have got the number of a dead one."""
    try:
        return psutil.Process(pid).environ().get("PREFECT__FLOW_RUN_ID") == str(run_id)
    except psutil.NoSuchProcess:
        return False
    except (psutil.AccessDenied, OSError):
        return True
