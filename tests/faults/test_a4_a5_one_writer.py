"""A4 and A5: whoever started a run dies, or the run is paused until another one takes over; only one ever writes."""

import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.llm.scripted import Script, ScriptedServer
from tests.faults.invariants import answered, check, forget_writes, record_writes, stale_writes, written_by
from tests.faults.material import RULES, write_workload
from tests.faults.nemesis import WINDOW, Foreman, asked_again, wait_for

pytestmark = pytest.mark.timeout(400)
ROWS = 300
LEASE_S = 3.0
UNDER_WAY = 73


@pytest.fixture(autouse=True)
def written(ledger: str) -> Iterator[None]:
    """Postgres notes who writes what."""
    record_writes()
    yield
    forget_writes()


def test_an_orphan_goes_on_alone_and_a_second_start_is_refused(
    foreman: Foreman, folder: Path, tmp_path: Path, ledger: str
) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    with ScriptedServer(Script(rules=RULES, latency_s=0.1)) as server, Foreman(tmp_path) as doomed:
        workload = write_workload(folder, strong=[server.base_url], rows=ROWS)
        orphan = doomed.start(workload, first, "--name", "orphan")
        wait_for(lambda: answered(first) >= 30, "30 answers")
        doomed.kill()
        refusals = [
            foreman.start(workload, run_id, "--name", "newcomer") for run_id in (second, first)
        ]  # the same dataset under another id, and the very same run
        assert [flow.wait() for flow in refusals] == [UNDER_WAY] * 2
        said = [flow.last()["error"] for flow in refusals]
        alive = psutil.pid_exists(orphan.pid) and answered(first) < ROWS
        wait_for(lambda: not psutil.pid_exists(orphan.pid), "the orphan's end")
        rows = server.calls.rows
    verdict = check(first)
    print(
        f"\nA4: 2 starts beside an orphan refused as {' and '.join(said)}; {written_by('newcomer')} rows written by "
        f"them, {written_by('orphan')} by the orphan; {verdict}; {asked_again(rows)} asked again"
    )
    assert alive, "the orphan had ended before anybody else was refused"
    assert written_by("newcomer") == 0
    assert verdict.holds()
    assert (verdict.state, verdict.done, asked_again(rows)) == ("completed", ROWS, 0)
    assert check(second).rows == 0


def test_a_paused_holder_that_is_replaced_writes_nothing_when_it_wakes(foreman: Foreman, folder: Path) -> None:
    run_id = str(uuid.uuid4())
    with ScriptedServer(Script(rules=RULES, latency_s=0.05)) as server:
        workload = write_workload(folder, strong=[server.base_url], rows=ROWS)
        paused = foreman.start(workload, run_id, "--name", "paused", HEADRACE_LEASE_S=str(LEASE_S))
        wait_for(lambda: answered(run_id) >= 60, "60 answers")
        wait_for(lambda: server.calls.in_flight >= 4, "calls under way")
        paused.signal(signal.SIGSTOP)
        # Longer than three leases is not needed: it waits until the lease is over, by the database's clock.
        taker = foreman.start(workload, run_id, "--name", "taker", HEADRACE_LEASE_S=str(LEASE_S))
        wait_for(lambda: written_by("taker") > 20, "the second runner's writes")
        before = written_by("paused")
        paused.signal(signal.SIGCONT)
        began = time.monotonic()
        code = paused.wait()
        seconds = time.monotonic() - began
        taker.finish()
        rows = server.calls.rows
    verdict, stale = check(run_id), stale_writes("paused", "taker")
    print(
        f"\nA5: {stale} rows written by the resumed holder, which ended with {code} after {seconds:.1f} s; {verdict}; ",
        end="",
    )
    print(f"{asked_again(rows)} asked again (the limit is {WINDOW})")
    assert before > 60
    assert stale == 0
    assert seconds <= 10
    assert code == 0, "the same run goes on elsewhere, so its end is no failure"
    assert verdict.holds()
    assert verdict.done == ROWS
    assert 0 < asked_again(rows) <= WINDOW
