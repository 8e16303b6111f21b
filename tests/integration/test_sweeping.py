"""Lost runs for real (A3): a killed worker and flow. What the sweeper does for a cancel stands with the browser."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.states import Pending, Running

from domain.sweeps import MOST_RESTARTS, PENDING_S, Fate
from infra import deployments, pending, sweeping
from infra.settings import Settings, load_settings
from infra.stack import Stack
from tests.integration.scripted_workloads import Written
from tests.integration.test_stopping import (
    begun,
    completes_with_the_rest,
    ended,
    flow_process,
    is_free,
    sent,
    slow,
    state_of,
    worker,
)

__all__ = ["slow"]  # a fixture
pytestmark = [pytest.mark.usefixtures("running"), pytest.mark.timeout(900)]
RESOLVED_S = 120.0
"""What is promised of a lost run, seconds; measured and printed, and the longest that is waited for here."""


@contextmanager
def swept() -> Iterator[None]:
    """Have the sweeper go on beside, as it does in the service."""
    over = threading.Event()

    def sweep() -> None:
        while not over.wait(1.0):
            sweeping.turn(load_settings())

    # Prefect's settings of these tests belong to a context, and a thread has one of its own.
    thread = threading.Thread(target=copy_context().run, args=(sweep,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def in_prefect(run_id: UUID, name: str, *, patience_s: float) -> float:
    """Wait until Prefect calls a run so; returns how long it took, seconds."""
    began = time.monotonic()
    while (now := deployments.state_of(run_id)[0]) != name:
        assert time.monotonic() - began < patience_s, f"{run_id} is {now}"
        time.sleep(0.2)
    return time.monotonic() - began


def test_a3_a_run_whose_worker_and_process_died_is_ended_and_resumed(slow: Written, home: Settings) -> None:
    run_id = begun(slow)
    flow, calls = flow_process(home, run_id), sent(slow)
    worker(home).kill()
    flow.kill()
    with swept():
        seconds = in_prefect(run_id, "Crashed", patience_s=RESOLVED_S)
    assert state_of(run_id) == "crashed"
    assert is_free(slow)
    print(f"\nA3: worker and flow killed: Crashed after {seconds:.1f} s (limit {RESOLVED_S:g}), 0 runs left Running")
    assert sent(slow) - calls <= 16
    assert not [run for run in deployments.live_runs() if run.id == run_id]
    completes_with_the_rest(slow, run_id)


def test_the_sweeper_leaves_a_living_run_alone(slow: Written) -> None:
    run_id = begun(slow)
    with swept():
        assert ended(run_id)[0] == "Completed"
    assert state_of(run_id) == "completed"


def test_a_run_that_was_never_opened_and_has_no_heartbeat_any_more_is_left_until_it_is_silent_for_long(
    running: Stack,
) -> None:
    """What Prefect calls Running without a word to the ledger may be starting or waiting: only silence ends it."""
    with get_client(sync_client=True) as client:
        deployed = client.read_deployment_by_name("optimize-workload/default")
        run = client.create_flow_run_from_deployment(deployed.id, state=Running())
    sweeping.turn(load_settings())
    assert deployments.state_of(run.id)[0] == "Running"
    deployments.crash(run.id, "the test is over")


def test_a_run_whose_worker_died_before_it_began_is_begun_again_and_not_for_ever(running: Stack) -> None:
    """Prefect leaves it Pending for ever. This one is of no deployment, so that no worker carries it out."""
    later = datetime.now(UTC) + timedelta(seconds=10 * PENDING_S)
    with get_client(sync_client=True) as client:
        run_id = client.create_flow_run(Flow(lambda: None, name="nobodys"), tags=["headrace"], state=Pending()).id
        assert run_id in pending.pending_runs()
        assert pending.look_at(run_id) is Fate.LEAVE, "its worker has just taken it"
        with subprocess.Popen(["sleep", "600"], env={"PREFECT__FLOW_RUN_ID": str(run_id)}) as process:
            client.update_flow_run(run_id, infrastructure_pid=str(process.pid))
            assert pending.look_at(run_id, now=later) is Fate.LEAVE, "its process may begin it"
            process.kill()
        client.update_flow_run(run_id, infrastructure_pid="cluster:namespace:job")
        assert pending.look_at(run_id, now=later) is Fate.LEAVE, "a container elsewhere may begin it"
        client.update_flow_run(run_id, infrastructure_pid=str(os.getpid()))  # the number is somebody else's by now
        for _ in range(MOST_RESTARTS):
            assert pending.look_at(run_id, now=later) is Fate.RESTART
            client.set_flow_run_state(run_id, Pending(), force=True)
        assert pending.look_at(run_id, now=later) is Fate.CRASH
        assert client.read_flow_run(run_id).state.is_crashed()  # type: ignore[union-attr]
        assert pending.look_at(run_id, now=later) is Fate.LEAVE
