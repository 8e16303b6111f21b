"""A8: a row that kills every worker it is sent to."""

import uuid
from pathlib import Path

import pytest

from infra.llm.scripted import Fault, Script
from tests.faults.invariants import ask, check
from tests.faults.material import RULES, write_workload
from tests.faults.nemesis import Foreman, fake_worker, restarting

pytestmark = pytest.mark.timeout(400)
ROWS = 500
POISON = 137


def test_a_row_that_kills_its_worker_is_quarantined_after_two_deaths(
    foreman: Foreman, folder: Path, tmp_path: Path
) -> None:
    run_id = str(uuid.uuid4())
    deadly = Fault(kind="die", match=f"row {POISON}:")
    with fake_worker(Script(rules=RULES, latency_s=0.02, faults=(deadly,)), tmp_path) as worker:
        workload = write_workload(folder, strong=[worker.base_url], rows=ROWS)
        with restarting(worker) as deaths:
            foreman.start(workload, run_id).finish()
    verdict = check(run_id)
    query = """SELECT r.record_id, q.reason FROM quarantined q JOIN runs ON runs.id = q.run_id
               JOIN records r ON r.dataset_version = runs.dataset_version AND r.key = q.record_key
               WHERE q.run_id = :run"""
    quarantine = ask(query, run=run_id)
    print(f"\nA8: {len(deaths)} deaths; {verdict}; quarantined: {quarantine}")
    assert [row for row, _ in quarantine] == [f"r{POISON}"]
    assert "died of it twice" in quarantine[0][1]
    assert deaths == [137, 137], "exit codes of the fake worker"
    assert verdict.holds()
    assert (verdict.done, verdict.quarantined) == (ROWS - 1, 1)
