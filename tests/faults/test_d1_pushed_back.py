"""D1: a server that is busy (429 with Retry-After, 503) or fails now and then (500)."""

import itertools
import uuid
from pathlib import Path

import pytest

from infra.llm.scripted import Fault, Script, ScriptedServer
from tests.faults.invariants import ask, check, paid
from tests.faults.material import RULES, mark_in, write_workload
from tests.faults.nemesis import Foreman

pytestmark = pytest.mark.timeout(300)
ROWS = 200
PAUSE_S = 2
BUSY = (
    Fault(kind="status", status=429, retry_after=str(PAUSE_S), first=1, share=0.2),
    Fault(kind="status", status=500, first=1, share=0.1),
    Fault(kind="status", status=503, first=1, share=0.05),
)


def test_a_busy_server_is_asked_again_when_it_said_and_its_words_reach_no_prompt(
    foreman: Foreman, folder: Path
) -> None:
    run_id = str(uuid.uuid4())
    with ScriptedServer(Script(rules=RULES, faults=BUSY)) as server:
        workload = write_workload(folder, strong=[server.base_url], rows=ROWS)
        foreman.start(workload, run_id).finish()
        log, calls = server.log, server.calls
    verdict = check(run_id)
    query = """SELECT r.inputs ->> 'text', a.detail FROM attempts a JOIN runs ON runs.id = a.run_id
               JOIN records r ON r.dataset_version = runs.dataset_version AND r.key = a.record_key
               WHERE a.run_id = :run AND a.outcome IN ('throttled', 'failed')"""
    pushed = [(mark_in(said), detail) for said, detail in ask(query, run=run_id)]
    asked_to_wait = {row for row, detail in pushed if detail.startswith("HTTP 429")}
    at = {row: [call.at for call in log if mark_in(call.row) == row] for row in asked_to_wait}
    early = sum(later - sooner < PAUSE_S for times in at.values() for sooner, later in itertools.pairwise(times))
    leaked = [call for call in log if "scripted" in call.prompt or "HTTP" in call.prompt or "error" in call.prompt]
    each = f"{calls.requests / ROWS:.2f} a row"
    print(
        f"\nD1: {verdict}; {len(pushed)} calls pushed back ({len(asked_to_wait)} with Retry-After), "
        f"{calls.requests} calls, {each}; {early} before Retry-After, {len(leaked)} prompts with a server's words"
    )
    assert verdict.holds()
    assert verdict.done == ROWS
    assert len(asked_to_wait) >= 20
    assert len({detail[:8] for _, detail in pushed}) == 3
    assert calls.requests == ROWS + len(pushed) <= 1.6 * ROWS
    assert (early, leaked) == (0, [])
    assert paid(run_id) == (calls.requests, calls.prompt_tokens, calls.completion_tokens)
