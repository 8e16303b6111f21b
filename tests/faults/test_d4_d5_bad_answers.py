"""D4 and D5: answers that fail their schema so many times, and answers that never stop."""

import uuid
from pathlib import Path
from typing import Literal

import pytest

from infra.llm.scripted import Fault, Script, ScriptedServer
from tests.faults.invariants import ask, check, outcomes_of_attempts, paid
from tests.faults.material import MAX_TOKENS, RULES, seen_as, write_workload
from tests.faults.nemesis import Foreman

pytestmark = pytest.mark.timeout(400)
ROWS = 60
REASKS = 3
QUARANTINE = """SELECT r.record_id, q.reason FROM quarantined q JOIN runs ON runs.id = q.run_id
                JOIN records r ON r.dataset_version = runs.dataset_version AND r.key = q.record_key
                WHERE q.run_id = :run"""
CALLS = """SELECT r.record_id, count(*), sum(a.completion_tokens) FROM attempts a JOIN runs ON runs.id = a.run_id
           JOIN records r ON r.dataset_version = runs.dataset_version AND r.key = a.record_key
           WHERE a.run_id = :run AND NOT a.cached GROUP BY 1"""


def test_a_row_that_is_wrong_k_times_takes_k_more_calls_or_is_quarantined_with_all_of_them_stored(
    foreman: Foreman, folder: Path
) -> None:
    run_id = str(uuid.uuid4())
    wrong = {n: n % 6 for n in range(ROWS)}
    faults = tuple(Fault(kind="off_schema", match=f"row {n}:", first=k) for n, k in wrong.items() if k)
    with ScriptedServer(Script(rules=RULES, faults=faults)) as server:
        workload = write_workload(folder, strong=[server.base_url], rows=ROWS, max_reasks=REASKS)
        foreman.start(workload, run_id).finish()
        seen = server.calls
    verdict = check(run_id)
    calls = {row: count for row, count, _ in ask(CALLS, run=run_id)}
    reasons = dict(ask(QUARANTINE, run=run_id))
    by_ledger, by_server = paid(run_id), (seen.requests, seen.prompt_tokens, seen.completion_tokens)
    print(f"\nD4: {verdict}; calls, prompt and completion tokens {by_ledger} by the ledger, {by_server} by the server")
    assert verdict.holds()
    assert calls == {f"r{n}": min(k, REASKS) + 1 for n, k in wrong.items()}
    assert reasons.keys() == {f"r{n}" for n, k in wrong.items() if k > REASKS}
    assert all(reason.startswith("schema: ") for reason in reasons.values())
    assert by_ledger == by_server


@pytest.mark.parametrize("kind", ["whitespace", "truncated"])
def test_an_answer_that_does_not_stop_is_its_own_class_and_is_asked_again_once(
    foreman: Foreman, folder: Path, kind: Literal["whitespace", "truncated"]
) -> None:
    run_id = str(uuid.uuid4())
    endless = [n for n in range(ROWS) if n % 5 == 0]
    faults = tuple(Fault(kind=kind, match=f"row {n}:") for n in endless)
    with ScriptedServer(Script(rules=RULES, faults=faults)) as server:
        workload = write_workload(folder, strong=[server.base_url], rows=ROWS, max_reasks=REASKS)
        foreman.start(workload, run_id).finish()
        rows = server.calls.rows
    verdict = check(run_id)
    reasons = dict(ask(QUARANTINE, run=run_id))
    spent = {row: (count, tokens) for row, count, tokens in ask(CALLS, run=run_id)}
    most = max(tokens for _, tokens in spent.values())
    print(f"\nD5 {kind}: {verdict}; {outcomes_of_attempts(run_id)}; at most {most} tokens a row of {MAX_TOKENS} a call")
    assert verdict.holds()
    assert reasons.keys() == {f"r{n}" for n in endless}
    assert all(reason.startswith("truncated: ") for reason in reasons.values())
    assert {spent[f"r{n}"][0] for n in endless} == {2} == {rows[seen_as(n)] for n in endless}
    assert most <= 2 * MAX_TOKENS
    assert outcomes_of_attempts(run_id) == {"answered": ROWS - len(endless), "truncated": 2 * len(endless)}
