"""A6 and A7: of two model workers one is killed, stopped, or answers its health check and nothing else."""

import signal
import time
import uuid
from pathlib import Path

import pytest

from infra.llm.scripted import Fault, Script, ScriptedServer
from tests.faults.invariants import answered, ask, check, outcomes_of_attempts, stored_rows
from tests.faults.material import RULES, seen_as, write_workload
from tests.faults.nemesis import WINDOW, Foreman, fake_worker, wait_for

pytestmark = pytest.mark.timeout(400)
ROWS = 500
MANY_ROWS = 1_500
"""Enough that the survivor is busy until the other is back, however long its start and an open breaker take."""
DEADLINE_S = 30.0
"""A worker that answers nothing for half of it is taken as hung."""
SLOW = Script(rules=RULES, latency_s=0.15)


def per_worker(run_id: str) -> dict[str, dict[str, int]]:
    """How the calls to each worker ended."""
    found: dict[str, dict[str, int]] = {}
    query = "SELECT worker, outcome, count(*) FROM attempts WHERE run_id = :run GROUP BY worker, outcome"
    for worker, outcome, count in ask(query, run=run_id):
        found.setdefault(worker, {})[outcome] = count
    return found


def test_the_survivor_takes_the_rows_of_a_killed_worker_and_shares_them_when_it_is_back(
    foreman: Foreman, folder: Path, tmp_path: Path
) -> None:
    run_id = str(uuid.uuid4())
    with fake_worker(SLOW, tmp_path) as mortal, ScriptedServer(SLOW) as survivor:
        workload = write_workload(folder, strong=[mortal.base_url, survivor.base_url], rows=MANY_ROWS)
        flow = foreman.start(workload, run_id)
        wait_for(lambda: answered(run_id) >= MANY_ROWS * 0.4, "40 % of the answers")
        wait_for(lambda: mortal.calls().in_flight >= 4, "calls under way at the worker")
        mortal.end()
        before = survivor.calls.requests
        wait_for(lambda: survivor.calls.requests >= before + 100, "100 more rows at the survivor")
        mortal.start()
        back_at = time.monotonic()
        wait_for(lambda: mortal.calls().requests > 0, "its first row after the restart")
        rejoined = time.monotonic() - back_at
        flow.finish()
        served, after = survivor.calls, mortal.calls()
    verdict, ended = check(run_id), per_worker(run_id)
    lost = ended[mortal.base_url].get("lost", 0)
    refused = ended[mortal.base_url].get("unavailable", 0)
    print(
        f"\nA6: {verdict}; {lost} calls lost with the worker and asked again (the limit is {WINDOW}), {refused} "
        f"connects refused while it was away; first row {rejoined:.1f} s after its restart, {after.answered} then"
    )
    assert verdict.holds()
    assert verdict.done == MANY_ROWS
    assert 0 < lost <= WINDOW
    assert refused <= 30, "the breaker is open: a dead worker is asked now and then, not for every row"
    assert ended[survivor.base_url] == {"answered": served.requests}
    assert rejoined <= 30


@pytest.mark.parametrize("how", ["stopped", "healthy"])
def test_a_worker_that_hangs_is_found_by_its_lack_of_progress(
    foreman: Foreman, folder: Path, tmp_path: Path, how: str
) -> None:
    run_id = str(uuid.uuid4())
    hanging = SLOW if how == "stopped" else SLOW.model_copy(update={"faults": (Fault(kind="hang", after_calls=60),)})
    with fake_worker(hanging, tmp_path) as hung, ScriptedServer(SLOW) as other:
        workload = write_workload(folder, strong=[hung.base_url, other.base_url], rows=ROWS)
        flow = foreman.start(
            workload, run_id, HEADRACE_REQUEST_DEADLINE_S=str(DEADLINE_S), HEADRACE_CHUNK_ROWS=str(ROWS)
        )
        if how == "stopped":
            wait_for(lambda: answered(run_id) >= ROWS * 0.2, "a fifth of the answers")
            hung.signal(signal.SIGSTOP)
        flow.finish()
        healthy = hung.healthy() if how == "healthy" else None
        served = other.calls.requests
    verdict, ended = check(run_id), per_worker(run_id)
    seconds = ask(
        "SELECT coalesce(max(seconds), 0) FROM attempts WHERE run_id = :run AND outcome = 'stalled'", run=run_id
    )[0][0]
    print(
        f"\nA7 {how}: {verdict}; {ended[hung.base_url].get('stalled')} calls taken away from the hung worker after "
        f"at most {seconds:.1f} s (the deadline is {DEADLINE_S:g} s), {served} calls at the other"
    )
    assert verdict.holds()
    assert verdict.quarantined < 0.05 * ROWS
    assert verdict.done + verdict.quarantined == ROWS
    assert 0 < ended[hung.base_url].get("stalled", 0) <= WINDOW + 2, "those under way, and a probe now and then"
    assert seconds <= DEADLINE_S
    assert healthy in (None, True)
    assert {row for row in stored_rows(run_id) if other.calls.rows.get(seen_as(row), 0) > 1} == set()
    assert set(outcomes_of_attempts(run_id)) <= {"answered", "stalled", "unavailable"}
