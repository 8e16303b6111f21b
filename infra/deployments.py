"""Prefect's side of a start: the work pool, the deployments of prefect.yaml, and runs started by name."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling

from domain.errors import HeadraceError, NotFound

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "prefect.yaml"
POOL = "local"


class PrefectError(HeadraceError):
    """Prefect could not be reached or refused."""

    retryable = True
    hint = "Check the server with `headrace status` and `headrace logs prefect`."


def deploy(*, home: Path) -> bool:
    """Create the work pool and apply prefect.yaml; False when this very file was applied to this server before.

    Raises PrefectError with what Prefect said last.
    """
    api = os.environ.get("PREFECT_API_URL", "")
    mark = home / "run" / "deployed"
    wanted = hashlib.sha256(FILE.read_bytes() + str(ROOT).encode() + api.encode()).hexdigest()
    if mark.is_file() and mark.read_text() == wanted and _has_deployments():
        return False
    _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    _prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(FILE))
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(wanted)
    return True


def _has_deployments() -> bool:
    with get_client(sync_client=True) as client:
        try:
            return len(client.read_deployments()) >= 2
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


def state_of(run_id: UUID) -> tuple[str, str, bool]:
    """A flow run's state: its name, its message, and whether it is final; raises PrefectError."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run_id).state
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        raise PrefectError(f"Prefect does not answer: {error}") from error
    return (state.name or state.type.value, state.message or "", state.is_final()) if state else ("Pending", "", False)


def cancel(run_id: UUID) -> None:
    """Ask Prefect to cancel a run; raises PrefectError."""
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, Cancelling(), force=True)
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        raise PrefectError(f"Prefect did not cancel the run: {error}") from error


def page(run_id: UUID) -> str:
    """The run's page in Prefect's UI."""
    return f"{os.environ.get('PREFECT_API_URL', '').removesuffix('/api')}/runs/flow-run/{run_id}"
