"""D3: whatever may come back in the place of an answer."""

import uuid
from pathlib import Path

import pytest

from infra.llm.scripted import Fault, Script, ScriptedServer
from infra.llm.scripted_faults import BODIES, WIRES, ZIPPED
from tests.faults.invariants import ask, check, outcomes_of_attempts
from tests.faults.material import RULES, seen_as, write_workload
from tests.faults.nemesis import Foreman

pytestmark = pytest.mark.timeout(400)
GARBAGE = (*BODIES, *WIRES, *ZIPPED)
BOMB_MIB = 1024
MOST_CALLS = 4
ROWS = 3 * len(GARBAGE)
MEMORY = 200 * 2**20


def test_garbage_is_classified_given_up_and_costs_no_memory(foreman: Foreman, folder: Path) -> None:
    run_id = str(uuid.uuid4())
    faults = tuple(
        Fault(kind="garbage", garbage=name, megabytes=BOMB_MIB, match=f"row {3 * n}:") for n, name in enumerate(GARBAGE)
    )
    with ScriptedServer(Script(rules=RULES, faults=faults)) as server:
        workload = write_workload(folder, strong=[server.base_url], rows=ROWS)
        ended = foreman.start(workload, run_id).finish()
        calls = server.calls
    verdict = check(run_id)
    reasons = dict(
        ask(
            """SELECT r.record_id, q.reason FROM quarantined q JOIN runs ON runs.id = q.run_id
               JOIN records r ON r.dataset_version = runs.dataset_version AND r.key = q.record_key
               WHERE q.run_id = :run""",
            run=run_id,
        )
    )
    each = {name: calls.rows[seen_as(3 * n)] for n, name in enumerate(GARBAGE)}
    growth = ended["rss_peak"] - ended["rss_before"]
    print(
        f"\nD3: {len(GARBAGE)} kinds; {verdict}; attempts {outcomes_of_attempts(run_id)}; at most {max(each.values())} "
        f"calls a row; memory grew by {growth / 2**20:.0f} MiB (the limit is {MEMORY / 2**20:.0f})"
    )
    assert len(GARBAGE) >= 25
    assert verdict.holds()
    assert reasons.keys() <= {f"r{3 * n}" for n in range(len(GARBAGE))}
    # What parses as a completion without text to go by is an answer that fails its schema.
    assert {name for n, name in enumerate(GARBAGE) if f"r{3 * n}" not in reasons} == set()
    assert all(reasons.values())
    assert max(each.values()) <= MOST_CALLS
    assert growth < MEMORY
