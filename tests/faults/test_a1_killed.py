"""A1: the process of a run, or that of its gateway, is killed, and the run is started again under its own id."""

import random
import uuid
from pathlib import Path

import psutil
import pytest

from domain.errors import ModelUnavailable
from infra.llm.scripted import Script, ScriptedServer
from tests.faults.driver import CODES
from tests.faults.invariants import answered, check, one, stored_rows
from tests.faults.material import RULES, seen_as, write_workload
from tests.faults.nemesis import WINDOW, Foreman, asked_again, wait_for

pytestmark = pytest.mark.timeout(600)
ROWS = 500
KILLS = 5


def test_a_killed_run_goes_on_and_nothing_is_lost_or_doubled(foreman: Foreman, folder: Path) -> None:
    chosen = random.Random(1)  # noqa: S311 - where to kill is no secret
    lost = twice = misaligned = 0
    again: list[int] = []
    resent: set[int] = set()
    for n in range(KILLS):
        run_id = str(uuid.uuid4())
        with ScriptedServer(Script(rules=RULES, latency_s=0.03)) as server:
            workload = write_workload(folder / f"killed-{n}", strong=[server.base_url], rows=ROWS)
            flow = foreman.start(workload, run_id)
            point = chosen.randrange(10, ROWS - 2 * WINDOW)
            wait_for(lambda: answered(run_id) >= point, f"{point} answers")  # noqa: B023
            flow.kill()
            wait_for_silence()
            kept = stored_rows(run_id)
            assert len(kept) < ROWS, "killed too late to prove anything"
            foreman.start(workload, run_id).finish()
            rows = server.calls.rows
        verdict = check(run_id)
        assert (verdict.state, verdict.done) == ("completed", ROWS)
        lost, twice, misaligned = lost + verdict.lost, twice + verdict.twice, misaligned + verdict.misaligned
        again.append(asked_again(rows))
        resent |= {row for row in kept if rows[seen_as(row)] != 1}
    print(
        f"\nA1: {KILLS} kills, {lost} lost, {twice} duplicates, {misaligned} misaligned, {sum(again)} asked again "
        f"(at most {max(again)} a kill; the limit is {WINDOW}), {len(resent)} stored rows sent again"
    )
    assert (lost, twice, misaligned, resent) == (0, 0, 0, set())
    assert max(again) <= WINDOW


def test_a_run_whose_gateway_is_killed_says_so_and_goes_on_when_it_is_started_again(
    foreman: Foreman, folder: Path
) -> None:
    run_id = str(uuid.uuid4())
    with ScriptedServer(Script(rules=RULES, latency_s=0.03)) as server:
        workload = write_workload(folder, strong=[server.base_url], rows=ROWS)
        flow = foreman.start(workload, run_id)
        wait_for(lambda: answered(run_id) >= ROWS * 0.4, "40 % of the answers")
        (gateway,) = psutil.Process(flow.pid).children()
        gateway.kill()
        code = flow.wait()
        kept = stored_rows(run_id)
        foreman.start(workload, run_id).finish()
        rows = server.calls.rows
    verdict = check(run_id)
    print(f"\nA1, the gateway: {verdict}; {asked_again(rows)} asked again (the limit is {WINDOW})")
    assert code == CODES[ModelUnavailable], flow.said()
    assert ROWS * 0.4 <= len(kept) < ROWS
    assert verdict.holds()
    assert (verdict.state, verdict.done) == ("completed", ROWS)
    assert {row for row in kept if rows[seen_as(row)] != 1} == set()
    assert asked_again(rows) <= WINDOW


def wait_for_silence() -> None:
    """Until Postgres has noticed that the killed process is gone, and has ended what it had begun."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'headrace' AND pid <> pg_backend_pid()"
    busy = f"{others} AND state <> 'idle'"
    wait_for(lambda: one(busy) == 0, "the killed one's transactions")
