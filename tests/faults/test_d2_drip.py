"""D2: answers that come a byte a second, and headers that never end."""

import uuid
from pathlib import Path

import pytest

from infra.llm.scripted import Fault, Script, ScriptedServer
from tests.faults.invariants import ask, check
from tests.faults.material import RULES, mark, mark_in, write_workload
from tests.faults.nemesis import Foreman

pytestmark = pytest.mark.timeout(300)
ROWS = 250
DEADLINE_S = 8.0
DRIPPING = {3: "body", 4: "headers"}


def test_a_dripping_answer_ends_at_its_deadline_and_holds_up_nobody(foreman: Foreman, folder: Path) -> None:
    run_id = str(uuid.uuid4())
    faults = tuple(Fault(kind="drip", match=f"row {n}:", part=part, seconds=1) for n, part in DRIPPING.items())
    with ScriptedServer(Script(rules=RULES, faults=faults, latency_s=0.4)) as server:
        workload = write_workload(folder, strong=[server.base_url], rows=ROWS)
        foreman.start(workload, run_id, HEADRACE_REQUEST_DEADLINE_S=str(DEADLINE_S)).finish()
        log, aborted = server.log, server.calls.finished.get("abort", 0)
    verdict = check(run_id)
    query = """SELECT r.record_id, sum(a.seconds), count(*), max(a.outcome) FROM attempts a
               JOIN runs ON runs.id = a.run_id
               JOIN records r ON r.dataset_version = runs.dataset_version AND r.key = a.record_key
               WHERE a.run_id = :run AND a.outcome <> 'answered' GROUP BY 1 ORDER BY 1"""
    ended = {row: (seconds, calls, outcome) for row, seconds, calls, outcome in ask(query, run=run_id)}
    at = {mark_in(call.row): call.at for call in log}
    first = min(at[mark(n)] for n in DRIPPING)
    over = first + DEADLINE_S
    beside = sum(first < when < over for when in at.values()) / DEADLINE_S
    alone = sum(when >= over for when in at.values()) / (max(at.values()) - over)
    print(f"\nD2: {verdict}; dripping rows ended as {ended} (the deadline is {DEADLINE_S:g} s, 5 s grace); ", end="")
    print(f"{beside:.1f} other rows were sent a second while they dripped, {alone:.1f} afterwards")
    assert verdict.holds()
    assert (verdict.done, verdict.quarantined) == (ROWS - len(DRIPPING), len(DRIPPING))
    assert {row: (calls, outcome) for row, (_, calls, outcome) in ended.items()} == {
        f"r{n}": (1, "timeout") for n in DRIPPING
    }
    assert max(seconds for seconds, _, _ in ended.values()) <= DEADLINE_S + 5
    assert aborted == len(DRIPPING)
    # Two of the eight lanes drip; what the six others do is compared with what eight do.
    assert beside >= 0.8 * 6 / 8 * alone
