"""Stopping for real: cancelled, paused by a budget, killed; what was answered stays, and the same run does the rest."""

import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.states import Suspended
from rich.console import Console
from sqlalchemy import func, select

from domain.errors import RunUnderWay
from domain.ledgers import OutcomeClass, Stage
from infra import deploying, deployments, leases, stack, stopping
from infra.db.session import transaction
from infra.db.store import leases as lease_store
from infra.db.store import runs
from infra.db.tables import AttemptRow
from infra.llm.scripted import Script, ScriptedServer
from infra.settings import Settings, load_settings
from infra.stack import Stack
from tests.integration import scripted_workloads
from tests.integration.scripted_workloads import RULES, Written, diagnosed, ended

pytestmark = [pytest.mark.usefixtures("running"), pytest.mark.timeout(900)]
ROWS = 90


@pytest.fixture
def slow(running: Stack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Written]:
    """A workload of its own whose models take their time: the parameter, in seconds."""
    latency_s = getattr(request, "param", 0.3)
    small = Script(model="small", rules=RULES, latency_s=latency_s, noise=0.25, seed=1)
    large = Script(model="large", rules=RULES, latency_s=latency_s, seed=2)
    name = request.node.originalname.removeprefix("test_").replace("_", "-")[:40].rstrip("-")
    with ScriptedServer(small) as cheap, ScriptedServer(large) as strong:
        yield scripted_workloads.write(tmp_path / "slow", name=name, cheap=cheap, strong=strong, rows=ROWS)


def console() -> Console:
    return Console(file=StringIO(), width=200)


def paid(run_id: UUID, *stages: Stage) -> int:
    """Answers of a run that were paid for, in these stages or in all."""
    answered = (AttemptRow.run_id == str(run_id), ~AttemptRow.cached, AttemptRow.outcome == OutcomeClass.ANSWERED)
    with transaction() as db:
        return db.scalar(select(func.count()).where(*answered, AttemptRow.stage.in_(stages or tuple(Stage)))) or 0


def begun(workload: Written) -> UUID:
    """A run in the middle of its rows."""
    run_id = workload.start("optimize-workload")
    deadline = time.monotonic() + 300
    while paid(run_id, Stage.GENERATE) < 10:
        assert time.monotonic() < deadline, "the run does not get anywhere"
        time.sleep(0.1)
    return run_id


def state_of(run_id: UUID) -> str:
    with transaction() as db:
        return runs.load_run(db, str(run_id)).state


def settles_as(run_id: UUID, state: str) -> None:
    """The ledger says so within the time of a lease; Prefect is often the first to know."""
    deadline = time.monotonic() + 60
    while (now := state_of(run_id)) != state:
        assert time.monotonic() < deadline, f"{run_id} is {now}"
        time.sleep(0.1)


def sent(workload: Written) -> int:
    return workload.cheap.calls.requests + workload.strong.calls.requests


def worker(home: Settings) -> psutil.Process:
    pid = next(state.pid for state in stack.status(home) if state.name == "worker")
    assert pid is not None
    return psutil.Process(pid)


def flow_process(home: Settings, run_id: UUID) -> psutil.Process:
    """The worker's child that carries out a run."""
    (found,) = [
        child
        for child in worker(home).children(recursive=True)
        if child.environ().get("PREFECT__FLOW_RUN_ID") == str(run_id)
    ]
    return found


def is_free(workload: Written) -> bool:
    with transaction() as db:
        holder = lease_store.holder_of(db, leases.work_of("optimize", workload.name))
    return holder is not None and holder.expired


def completes_with_the_rest(workload: Written, run_id: UUID) -> None:
    """Going on under the same id does every row, and pays for no stored answer again."""
    kept, before = paid(run_id), sent(workload)
    stopping.reopen(str(run_id), max_usd=1000.0, max_tokens=10**9)
    name, message = ended(run_id)
    assert name == "Completed", message
    found = diagnosed(str(run_id))
    assert (found.run.state, found.rows.pending) == ("completed", 0)
    assert found.rows.records == found.rows.outcomes > 50
    assert sent(workload) - before == paid(run_id) - kept
    assert paid(run_id, Stage.GENERATE) == 2 * found.rows.records
    assert is_free(workload)


def test_a_cancelled_run_ends_everywhere_and_is_resumed(slow: Written) -> None:
    run_id = begun(slow)
    assert stopping.cancel(str(run_id), console(), load_settings())
    assert (ended(run_id)[0], state_of(run_id)) == ("Cancelled", "cancelled")
    rows = diagnosed(str(run_id)).rows
    assert rows.holds
    assert rows.cancelled > 0
    assert paid(run_id, Stage.GENERATE) >= 10
    completes_with_the_rest(slow, run_id)


def test_cancelling_in_the_ui_ends_the_run_also_in_the_ledger(slow: Written) -> None:
    run_id = begun(slow)
    deployments.cancel(run_id)
    assert ended(run_id)[0] == "Cancelled"
    settles_as(run_id, "cancelled")
    assert is_free(slow)


def test_suspending_in_the_ui_pauses_the_run_and_resume_does_the_rest(slow: Written) -> None:
    run_id = begun(slow)
    with get_client(sync_client=True) as client:  # the UI's buttons
        client.set_flow_run_state(run_id, Suspended(timeout_seconds=3600))
        settles_as(run_id, "paused")
        assert deployments.state_of(run_id)[0] == "Suspended"
        kept, before = paid(run_id), sent(slow)
        assert is_free(slow)
        assert sent(slow) == before
        client.resume_flow_run(run_id)
        while deployments.state_of(run_id)[0] == "Suspended":
            time.sleep(0.1)
    name, message = ended(run_id)
    assert name == "Completed", message
    assert diagnosed(str(run_id)).rows.pending == 0
    assert sent(slow) - before == paid(run_id) - kept


def test_cancelling_reaches_a_flow_whose_worker_is_dead(slow: Written, home: Settings) -> None:
    run_id = begun(slow)
    flow = flow_process(home, run_id)
    worker(home).kill()
    assert flow.is_running()
    deployments.cancel(run_id)
    assert ended(run_id)[0] == "Cancelled"
    settles_as(run_id, "cancelled")
    assert is_free(slow)
    flow.wait(60)


@pytest.fixture
def lost(slow: Written, home: Settings) -> UUID:
    """A run whose worker and process were killed at once."""
    run_id = begun(slow)
    flow = flow_process(home, run_id)
    worker(home).kill()
    flow.kill()
    settles_as(run_id, "lost")
    return run_id


def test_a_lost_run_is_found_by_the_doctor_and_resumed(slow: Written, lost: UUID) -> None:
    assert not diagnosed(str(lost)).healthy
    completes_with_the_rest(slow, lost)


def test_a_lost_run_can_be_cancelled(slow: Written, lost: UUID) -> None:
    said = console()
    assert stopping.cancel(str(lost), said, load_settings())
    assert "its process is dead" in said.file.getvalue()  # type: ignore[attr-defined]
    assert (ended(lost)[0], state_of(lost)) == ("Cancelled", "cancelled")


def test_a_budget_pauses_the_run_before_it_is_crossed(slow: Written) -> None:
    parameters = {"workload": str(slow.folder), "max_tokens": 3000}
    run_id = deployments.start("optimize-workload", parameters=parameters, workload=slow.name)
    name, message = ended(run_id)
    assert name == "Suspended", message
    assert "3,000 tokens" in message
    assert "headrace resume" in message
    with transaction() as db:
        usd, tokens = runs.spent(db, str(run_id))
    assert usd > 0
    assert 1000 < tokens <= 3000
    assert state_of(run_id) == "paused"
    assert is_free(slow)
    with get_client(sync_client=True) as client:  # the UI's button; the budget is what it was
        client.resume_flow_run(run_id)
    assert ended(run_id)[0] == "Suspended"
    completes_with_the_rest(slow, run_id)


@pytest.mark.parametrize("slow", [4.0], indirect=True)
def test_a_second_start_is_refused_and_the_first_goes_on(slow: Written, home: Settings) -> None:
    deploying.deploy(home=home.home, workload=str(slow.folder))
    first = begun(slow)
    with pytest.raises(RunUnderWay):
        stopping.reopen(str(first), max_usd=None, max_tokens=None)
    # In its own deployment Prefect would let it wait for the first to end; the lease knows no deployments.
    second = deployments.start(
        "optimize-workload", parameters={"workload": str(slow.folder)}, workload="of another name"
    )
    name, message = ended(second)
    assert name == "Failed"
    assert f"run {first} does the same" in message
    assert ended(first)[0] == "Completed"
    assert state_of(first) == "completed"


def test_after_a_killed_flow_the_next_one_need_not_wait_for_the_lease(slow: Written, home: Settings) -> None:
    run_id = begun(slow)
    flow_process(home, run_id).kill()
    assert ended(run_id)[0] == "Crashed"
    settles_as(run_id, "crashed")
    assert is_free(slow)
    completes_with_the_rest(slow, run_id)
