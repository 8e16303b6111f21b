"""Runs in Prefect: started by name, looked at, cancelled, begun again."""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.deployments import run_deployment
from prefect.events import Event
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Cancelling, Crashed, Scheduled

from domain.errors import HeadraceError, NotFound

ROOT = Path(__file__).resolve().parent.parent
POOL = "local"
WORKLOAD_TAG = "workload:"
DEFAULT = "default"
"""The deployments of prefect.yaml itself; those for a workload are called like it."""
LOOK_EVERY_S = 0.5
DYING_S = 60.0
"""A worker that is alive needs no longer to say for the last time that a process has died."""
HEARTBEAT = "prefect.flow-run.heartbeat"
CANCELLING_S = 40.0
"""A worker that is alive needs no longer to cancel a run: it kills its process after 30 s."""
RESUMING = "Resuming"
"""By this name of a state Prefect knows that a run has no process yet, should it be cancelled before it begins."""
WORKERS_LAST_WORD = "Flow run was cancelled successfully."


class PrefectError(HeadraceError):
    """Prefect could not be reached or refused."""

    retryable = True
    hint = "Check the server with `headrace status` and `headrace logs prefect`."


def deploy(*, home: Path) -> bool:
    """Apply prefect.yaml, see `infra.deploying.deploy`."""
    from infra import deploying  # which needs this module

    return deploying.deploy(home=home)


def start(flow: str, *, parameters: dict[str, Any], workload: str, idempotency_key: str | None = None) -> UUID:
    """Start a run of a flow's deployment for a workload, or of its default one, as the UI's Run button does.

    Returns its id. Raises NotFound when it is not deployed, PrefectError when Prefect cannot be reached.
    """
    try:
        run = cast(
            FlowRun,
            run_deployment(
                name=deployment_for(flow, workload),
                parameters=parameters,
                timeout=0,
                as_subflow=False,
                tags=[f"{WORKLOAD_TAG}{workload}"],
                flow_run_name=f"{flow.partition('-')[0]}-{workload}",
                idempotency_key=idempotency_key,
            ),
        )
    except ObjectNotFound as error:
        raise NotFound(f"the flow {flow!r} is not deployed.", hint="Deploy it with `headrace deploy`.") from error
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        raise PrefectError(f"Prefect did not start {flow}: {error}") from error
    return run.id


def deployment_for(flow: str, workload: str) -> str:
    """The workload's own deployment of a flow (`headrace deploy WORKLOAD` made it), or else the default one.

    Raises PrefectError.
    """
    with client_for("say what is deployed") as client:
        try:
            return f"{flow}/{client.read_deployment_by_name(f'{flow}/{workload}').name}"
        except ObjectNotFound:
            return f"{flow}/{DEFAULT}"


def describe(run_id: UUID, *, name: str, workload: str) -> None:
    """Give a run the name and the tag by which people find it, whatever its deployment says; raises PrefectError."""
    with client_for("rename the run") as client:
        others = [tag for tag in client.read_flow_run(run_id).tags if not tag.startswith(WORKLOAD_TAG)]
        client.update_flow_run(run_id, name=name, tags=[*others, f"{WORKLOAD_TAG}{workload}"])


@contextmanager
def client_for(doing: str) -> Generator[SyncPrefectClient]:
    """A client of the configured Prefect server; whatever it raises meanwhile becomes PrefectError."""
    if not PREFECT_API_URL.value():
        raise PrefectError(f"no Prefect server is configured to {doing}")  # the client would start one of its own
    try:
        with get_client(sync_client=True) as client:
            yield client
    except ObjectNotFound as error:
        raise PrefectError(f"Prefect does not know the run, it could not {doing}") from error
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        raise PrefectError(f"Prefect did not {doing}: {error}") from error


def state_of(run_id: UUID) -> tuple[str, str, bool]:
    """A flow run's state: its name, its message, and whether nobody carries it out any more (it ended or is paused).

    Raises PrefectError.
    """
    with client_for("answer") as client:
        state = client.read_flow_run(run_id).state
    if state is None:
        return "Pending", "", False
    return state.name or state.type.value, state.message or "", state.is_final() or state.is_paused()


def suspended(run_id: UUID) -> State | None:
    """The state of a run that somebody has suspended in Prefect; None for every other run. Raises PrefectError."""
    with client_for("answer") as client:
        state = client.read_flow_run(run_id).state
    return state if state is not None and state.is_paused() else None


def is_to_stop(run_id: UUID) -> bool:
    """Whether somebody has asked Prefect to cancel or to suspend a run; raises PrefectError."""
    with client_for("answer") as client:
        state = client.read_flow_run(run_id).state
    return state is not None and (state.is_cancelling() or state.is_cancelled() or state.is_paused())


def is_cancelled(run_id: UUID) -> bool:
    """Whether somebody has asked Prefect to cancel a run; raises PrefectError."""
    with client_for("answer") as client:
        state = client.read_flow_run(run_id).state
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def is_over(run_id: UUID) -> bool:
    """Whether a run has ended, or Prefect does not know it (any more); raises PrefectError."""
    with client_for("answer") as client:
        try:
            state = client.read_flow_run(run_id).state
        except ObjectNotFound:
            return True
    return state is not None and state.is_final()


def tell(event: Event) -> None:
    """Give an event to Prefect, and return when it has it; raises PrefectError."""
    with client_for("take an event") as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()


@dataclass(frozen=True, slots=True)
class LiveRun:
    """A flow run that Prefect takes for alive: since when it is Running or Cancelling, and its last heartbeat."""

    id: UUID
    cancelling: bool
    since: datetime
    heartbeat: datetime | None


def live_runs() -> list[LiveRun]:
    """Our flow runs that are Running or Cancelling; raises PrefectError."""
    types = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING]))
    ours = FlowRunFilter(state=types, tags=FlowRunFilterTags(all_=["headrace"]))
    with client_for("list its runs") as client:
        found = [(run.id, run.state) for run in client.read_flow_runs(flow_run_filter=ours) if run.state is not None]
        return [
            LiveRun(run_id, state.is_cancelling(), state.timestamp, _last_heartbeat(client, run_id))
            for run_id, state in found
        ]


def _last_heartbeat(client: SyncPrefectClient, run_id: UUID) -> datetime | None:
    wanted = {"event": {"name": [HEARTBEAT]}, "resource": {"id": [f"prefect.flow-run.{run_id}"]}, "order": "DESC"}
    answer = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 1})
    answer.raise_for_status()
    events = answer.json()["events"]
    return datetime.fromisoformat(events[0]["occurred"]) if events else None


def cancel(run_id: UUID) -> None:
    """Ask Prefect to cancel a run; one that has ended stays as it is. Raises PrefectError."""
    with client_for("cancel the run") as client:
        client.set_flow_run_state(run_id, Cancelling())


def end_as_cancelled(run_id: UUID, *, patience_s: float) -> None:
    """Wait until Prefect knows that a run has ended; when its worker does not say so in time, say it here.

    Raises PrefectError.
    """
    deadline = time.monotonic() + patience_s
    with client_for("end the run") as client:
        while (state := client.read_flow_run(run_id).state) is None or not state.is_final():
            if time.monotonic() > deadline:
                client.set_flow_run_state(run_id, Cancelled(message="its process is dead"), force=True)
                return
            time.sleep(LOOK_EVERY_S)


def end(run_id: UUID, state: State) -> None:
    """Write a run's last state, whatever it is in now; raises PrefectError."""
    with client_for("end the run") as client:
        client.set_flow_run_state(run_id, state, force=True)


def crash(run_id: UUID, reason: str) -> None:
    """Tell Prefect that nobody carries a run out any more; one that has ended stays as it is. Raises PrefectError."""
    with client_for("end the run") as client:
        client.set_flow_run_state(run_id, Crashed(message=reason))


def reschedule(run_id: UUID) -> None:
    """Have a run carried out again, now and under the same id; raises PrefectError when Prefect does not take it."""
    deadline = time.monotonic() + CANCELLING_S
    with client_for("resume the run") as client:
        while (state := client.read_flow_run(run_id).state) and time.monotonic() < deadline:
            if not (state.is_cancelling() or _is_worker_to_say_more(client, run_id, state)):
                break
            time.sleep(LOOK_EVERY_S)  # its worker would end it after we have begun it again
        _schedule(client, run_id, state)
        # A worker that has just seen the former process die says so twice, before and after its hooks; the second time
        # it would end a run that has not begun again yet. Should two processes begin it then, the lease lets one.
        deadline = time.monotonic() + DYING_S
        while (state := client.read_flow_run(run_id).state) and time.monotonic() < deadline:
            if state.is_final():
                _schedule(client, run_id, state)
            elif not (state.is_scheduled() or state.is_pending()):
                return
            time.sleep(LOOK_EVERY_S)


def _is_worker_to_say_more(client: SyncPrefectClient, run_id: UUID, state: State) -> bool:
    """Whether a worker that was asked to cancel a run may still say that it has; the run's own process is quicker.

    It says so once the process is gone and its hooks have run, whatever state the run is in by then.
    """
    if not state.is_cancelled() or state.message == WORKERS_LAST_WORD:
        return False
    asked = any(earlier.is_cancelling() for earlier in client.read_flow_run_states(run_id))
    return asked and datetime.now(UTC) - state.timestamp < timedelta(seconds=CANCELLING_S)


def _schedule(client: SyncPrefectClient, run_id: UUID, state: State | None) -> None:
    if state is not None and state.is_paused():
        answer = client.resume_flow_run(run_id)
    else:
        over = state is not None and state.is_final()
        answer = client.set_flow_run_state(run_id, Scheduled(name=RESUMING), force=not over)
    if answer.status != SetStateStatus.ACCEPT:
        raise PrefectError(f"Prefect did not resume the run: {getattr(answer.details, 'reason', answer.status)}")


def page(run_id: UUID) -> str:
    """The run's page in Prefect's UI."""
    return f"{os.environ.get('PREFECT_API_URL', '').removesuffix('/api')}/runs/flow-run/{run_id}"
