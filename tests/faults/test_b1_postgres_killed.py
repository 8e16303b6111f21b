"""B1: Postgres is killed with all its processes, again and again, while rows flow; its supervisor starts it again."""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra import ports, postgres, stack
from infra.db.session import database_url, engine_for, migrate
from infra.llm.scripted import Script, ScriptedServer
from infra.settings import Settings
from infra.stack import ServiceState
from tests.faults.invariants import check, one, paid
from tests.faults.material import RULES, write_workload
from tests.faults.nemesis import Foreman, wait_for

pytestmark = pytest.mark.timeout(500)
ROWS = 2_000
KILLS = 3


@pytest.fixture
def doomed(defaults: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A Postgres that only this test uses, and this process's own address for it."""
    settings = defaults.model_copy(update={"home": tmp_path / "home", "port_postgres": 27500})

    def ignore(state: ServiceState) -> None:
        pass

    try:
        running = stack.up(settings, only=["postgres"], report=ignore)
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        migrate()
        yield settings
        engine_for(database_url()).dispose()
    finally:
        stack.down(settings)


def kill_postgres(settings: Settings) -> int:
    """SIGKILL the postmaster and every process of it; how many there were."""
    (leader,) = [state.pid for state in stack.status(settings) if state.name == "postgres"]
    family = [psutil.Process(leader), *psutil.Process(leader).children(recursive=True)]
    for process in family:
        process.suspend()  # nobody is to see another one die
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=60)
    return len(family)


def test_a_run_outlives_a_postgres_that_is_killed_three_times(foreman: Foreman, doomed: Settings, folder: Path) -> None:
    run_id, port = str(uuid.uuid4()), ports.remembered(doomed)["postgres"]
    killed: list[int] = []
    away: list[float] = []
    with ScriptedServer(Script(rules=RULES, latency_s=0.02)) as server:
        workload = write_workload(folder, strong=[server.base_url], rows=ROWS)
        flow = foreman.start(workload, run_id)
        for n in range(KILLS):
            point = (n + 1) * ROWS // (KILLS + 1)
            wait_for(lambda: flow.ended.is_set() or server.calls.answered >= point, "rows")  # noqa: B023
            began = time.monotonic()
            killed.append(kill_postgres(doomed))
            wait_for(lambda: postgres.answers(doomed, port), "Postgres")
            away.append(time.monotonic() - began)
        said = flow.finish()
        calls = server.calls
    verdict = check(run_id)
    stored = one("SELECT count(*) FROM answers WHERE run_id = :run", run=run_id)
    print(
        f"\nB1: Postgres killed {KILLS} times ({', '.join(map(str, killed))} processes; "
        f"away for {', '.join(f'{seconds:.1f}' for seconds in away)} s); {verdict}; "
        f"{said['acknowledged'] - stored} of {said['acknowledged']} acknowledged rows lost, {calls.requests} calls; "
        "the run was started once"
    )
    assert min(killed) > 3
    assert said["acknowledged"] == stored == ROWS
    assert verdict.holds()
    assert (verdict.state, verdict.done) == ("completed", ROWS)
    assert calls.requests == ROWS == paid(run_id)[0]
