"""Prefect's side of a start: the work pool, the deployments of prefect.yaml, and runs started by name."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import SetStateStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Cancelling, Crashed, Scheduled

from domain.errors import HeadraceError, NotFound
from infra import retuning

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "prefect.yaml"
POOL = "local"
LOOK_EVERY_S = 0.5
DYING_S = 60.0
"""A worker that is alive needs no longer to say for the last time that a process has died."""
CANCELLING_S = 40.0
"""A worker that is alive needs no longer to cancel a run: it kills its process after 30 s."""


class PrefectError(HeadraceError):
    """Prefect could not be reached or refused."""

    retryable = True
    hint = "Check the server with `headrace status` and `headrace logs prefect`."


def deploy(*, home: Path) -> bool:
    """Create the work pool and apply prefect.yaml; False when this very file and flows were applied here before.

    Raises PrefectError with what Prefect said last.
    """
    api = os.environ.get("PREFECT_API_URL", "")
    mark = home / "run" / "deployed"
    # The flows too: a deployment holds the schema of their parameters.
    sources = [FILE, *sorted((ROOT / "flows").glob("*.py"))]
    said = b"".join(source.read_bytes() for source in sources)
    wanted = hashlib.sha256(said + str(ROOT).encode() + api.encode()).hexdigest()
    if mark.is_file() and mark.read_text() == wanted and _has_deployments():
        return False
    _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    _prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(FILE))
    with _client("set up its automation") as client:
        retuning.ensure_automation(client)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(wanted)
    return True


def _has_deployments() -> bool:
    with get_client(sync_client=True) as client:
        try:
            return len(client.read_deployments()) >= 3
        except (httpx.HTTPError, PrefectHTTPStatusError):
            return False


def _prefect(*arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", *arguments]
    environment = {**os.environ, "HEADRACE_ROOT": str(ROOT), "PREFECT_CLI_PROMPT": "false", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise PrefectError(f"`prefect {' '.join(arguments)}` failed: {said[-1] if said else done.returncode}")


def start(flow: str, *, parameters: dict[str, Any], workload: str) -> UUID:
    """Start a run of a flow's default deployment, as the UI's Run button does; returns its id.

    Raises NotFound when it is not deployed, PrefectError when Prefect cannot be reached.
    """
    try:
        run = cast(
            FlowRun,
            run_deployment(
                name=f"{flow}/default",
                parameters=parameters,
                timeout=0,
                as_subflow=False,
                tags=[f"workload:{workload}"],
            ),
        )
    except ObjectNotFound as error:
        raise NotFound(f"the flow {flow!r} is not deployed.", hint="Deploy it with `headrace deploy`.") from error
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        raise PrefectError(f"Prefect did not start {flow}: {error}") from error
    return run.id


@contextmanager
def _client(doing: str) -> Generator[SyncPrefectClient]:
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
    with _client("answer") as client:
        state = client.read_flow_run(run_id).state
    if state is None:
        return "Pending", "", False
    return state.name or state.type.value, state.message or "", state.is_final() or state.is_paused()


def is_cancelled(run_id: UUID) -> bool:
    """Whether somebody has asked Prefect to cancel a run; raises PrefectError."""
    with _client("answer") as client:
        state = client.read_flow_run(run_id).state
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def cancel(run_id: UUID) -> None:
    """Ask Prefect to cancel a run; one that has ended stays as it is. Raises PrefectError."""
    with _client("cancel the run") as client:
        client.set_flow_run_state(run_id, Cancelling())


def end_as_cancelled(run_id: UUID, *, patience_s: float) -> None:
    """Wait until Prefect knows that a run has ended; when its worker does not say so in time, say it here.

    Raises PrefectError.
    """
    deadline = time.monotonic() + patience_s
    with _client("end the run") as client:
        while (state := client.read_flow_run(run_id).state) is None or not state.is_final():
            if time.monotonic() > deadline:
                client.set_flow_run_state(run_id, Cancelled(message="its process is dead"), force=True)
                return
            time.sleep(LOOK_EVERY_S)


def crash(run_id: UUID, reason: str) -> None:
    """Tell Prefect that nobody carries a run out any more; one that has ended stays as it is. Raises PrefectError."""
    with _client("end the run") as client:
        client.set_flow_run_state(run_id, Crashed(message=reason))


def reschedule(run_id: UUID) -> None:
    """Have a run carried out again, now and under the same id; raises PrefectError when Prefect does not take it."""
    deadline = time.monotonic() + CANCELLING_S
    with _client("resume the run") as client:
        while (state := client.read_flow_run(run_id).state) and state.is_cancelling() and time.monotonic() < deadline:
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


def _schedule(client: SyncPrefectClient, run_id: UUID, state: State | None) -> None:
    if state is not None and state.is_paused():
        answer = client.resume_flow_run(run_id)
    else:
        over = state is not None and state.is_final()
        # By this name Prefect knows that the run has no process yet, should it be cancelled before it begins.
        answer = client.set_flow_run_state(run_id, Scheduled(name="Resuming"), force=not over)
    if answer.status != SetStateStatus.ACCEPT:
        raise PrefectError(f"Prefect did not resume the run: {getattr(answer.details, 'reason', answer.status)}")


def page(run_id: UUID) -> str:
    """The run's page in Prefect's UI."""
    return f"{os.environ.get('PREFECT_API_URL', '').removesuffix('/api')}/runs/flow-run/{run_id}"
