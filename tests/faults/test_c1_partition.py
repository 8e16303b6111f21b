"""C1: the network between the run and its model server is down for a while."""

import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from infra.llm.scripted import Script
from infra.llm.scripted_calls import CallReport
from tests.faults.invariants import answered, check, outcomes_of_attempts
from tests.faults.material import RULES, write_workload
from tests.faults.namespaces import Namespace, cabled
from tests.faults.nemesis import PATIENCE_S, SURROUNDINGS, WINDOW, wait_for
from tests.faults.proxy import Proxy

pytestmark = pytest.mark.timeout(400)
ROWS = 300
PARTITION_S = 60.0
DEADLINE_S = 12.0
"""A stall is noticed after half of it."""
PORT = 8000


@pytest.fixture
def children() -> Iterator[ExitStack]:
    """Processes that end with the test."""
    with ExitStack() as stack:
        yield stack


def kept(children: ExitStack, process: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
    children.callback(process.wait, PATIENCE_S)
    children.callback(process.kill)
    return process


def serve(far: Namespace, children: ExitStack, folder: Path) -> None:
    """The model server in the far namespace, and a door to it at the end of the cable."""
    script = folder / "script.json"
    script.write_text(Script(rules=RULES, latency_s=0.1).model_dump_json())
    said = folder / "server.out"
    with said.open("w") as out:
        kept(children, far.start("infra.llm.scripted", "--port", str(PORT + 1), "--script", str(script), stdout=out))
    kept(children, far.start("tests.faults.proxy", f"{far.address}:{PORT}", f"127.0.0.1:{PORT + 1}"))
    wait_for(said.read_text, "the model server")


def test_a_partition_costs_no_row_and_hardly_a_call(
    ledger: str, folder: Path, tmp_path: Path, children: ExitStack
) -> None:
    run_id, url, said = str(uuid.uuid4()), make_url(ledger), tmp_path / "driver.out"
    with cabled() as (near, far), Proxy(f"{url.host}:{url.port}", listen=f"unix:{tmp_path}/pg") as door, children:
        serve(far, children, tmp_path)
        # Unix sockets know no namespaces: Postgres is reached at its usual address, through this one.
        kept(children, near.start("tests.faults.proxy", f"127.0.0.1:{url.port}", door.address))
        workload = write_workload(folder, strong=[f"http://{far.address}:{PORT}/v1"], rows=ROWS)
        around = {**SURROUNDINGS, "HEADRACE_REQUEST_DEADLINE_S": str(DEADLINE_S), "NO_PROXY": "*", "no_proxy": "*"}
        with said.open("w") as out:
            arguments = ("tests.faults.driver", "--workload", str(workload), "--run-id", run_id)
            driver = kept(children, near.start(*arguments, environment=around, stdout=out, stderr=out))
        wait_for(lambda: driver.poll() is not None or answered(run_id) >= ROWS / 4, "a quarter of the answers")
        far.set_link("down")
        before, opened = answered(run_id), near.opened()
        began = time.monotonic()
        time.sleep(PARTITION_S)
        seconds, opened = time.monotonic() - began, near.opened() - opened
        during = answered(run_id) - before
        far.set_link("up")
        assert driver.wait(PATIENCE_S) == 0, said.read_text()
        calls = CallReport.model_validate(far.fetch(f"http://127.0.0.1:{PORT + 1}/_calls"))
    verdict = check(run_id)
    print(
        f"\nC1: {seconds:.0f} s without a network; {verdict}; {calls.requests} calls for {ROWS} rows (the limit "
        f"is {ROWS + 2 * WINDOW}), {opened / seconds:.1f} connects/s meanwhile (the limit is 20); "
        f"attempts {outcomes_of_attempts(run_id)}"
    )
    assert before < ROWS, "it was over before the partition"
    assert during <= WINDOW, "the network was not down"
    assert verdict.holds()
    assert (verdict.state, verdict.done) == ("completed", ROWS)
    assert calls.requests <= ROWS + 2 * WINDOW
    assert opened / seconds <= 20
