"""B3: the line falls silent at a COMMIT: both ends stay open, and neither hears of the other again."""

import json
import uuid
from pathlib import Path

import pytest

from infra.llm.scripted import Script, ScriptedServer
from tests.faults.hooks import GUARDS
from tests.faults.invariants import check
from tests.faults.material import RULES, write_workload
from tests.faults.nemesis import Foreman, behind
from tests.faults.proxy import Harm, Plan, Proxy

pytestmark = pytest.mark.timeout(300)
ROWS = 200
LIMIT_S = 10.0


@pytest.mark.parametrize("harm", ["mute", "deaf"], ids=["after-the-commit", "before-the-commit"])
def test_a_row_whose_commit_meets_silence_is_written_again_in_time(
    foreman: Foreman, ledger: str, folder: Path, tmp_path: Path, harm: Harm
) -> None:
    run_id, plan = str(uuid.uuid4()), Plan(harm, after=b"staged_attempts", every=8, most=1)
    guards = tmp_path / "guards.jsonl"
    with (
        ScriptedServer(Script(rules=RULES, latency_s=0.03)) as server,
        Proxy(ledger.rpartition("@")[2].partition("/")[0], plan) as proxy,
    ):
        workload = write_workload(folder, strong=[server.base_url], rows=ROWS)
        around = behind(proxy, ledger, tmp_path)
        foreman.start(workload, run_id, "--guards", str(guards), **around).finish()
        calls = server.calls.requests
    verdict = check(run_id)
    (silence,) = plan.harmed_at
    # Rows are stored one batch after the other, so the next one is the same again.
    waited = min(at for at in plan.passed_at if at > silence) - silence
    limits = [json.loads(line) for line in guards.read_text().splitlines()]
    print(
        f"\nB3 {harm}: the commit came through after {waited:.1f} s (the limit is {LIMIT_S:g} s); {verdict}; ", end=""
    )
    print(f"{len(limits)} connections with {len(GUARDS)} limits each")
    assert verdict.holds()
    assert (verdict.done, calls) == (ROWS, ROWS)
    assert waited <= LIMIT_S
    assert len(limits) >= 2
    assert [one for one in limits if one.keys() != set(GUARDS) or "0" in one.values()] == []
