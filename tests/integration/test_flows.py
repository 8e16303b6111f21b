"""The flows for real: Prefect with a process worker, Postgres, MLflow and Phoenix; only the models are scripted."""

from collections.abc import Iterator

import pytest

from infra.db.session import transaction
from infra.db.store import runs
from infra.db.store.runs import RunRecord
from infra.llm.scripted import Script, ScriptedServer
from infra.stack import Stack
from tests.integration import scripted_workloads
from tests.integration.scripted_workloads import BROKEN, RULES, Written, diagnosed, metered, spent

pytestmark = [pytest.mark.usefixtures("running"), pytest.mark.timeout(900)]
ROWS, INCOMING = 120, 40


@pytest.fixture(scope="module")
def workload(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """A cheap tier that is right three times in four and knows when, a strong one that nearly always is."""
    cheap = Script(model="small", rules=RULES, noise=0.25, sharpness=8, seed=1)
    strong = Script(model="large", rules=RULES, noise=0.05, seed=2)
    with ScriptedServer(cheap) as small, ScriptedServer(strong) as large:
        yield scripted_workloads.write(
            tmp_path_factory.mktemp("workloads") / "certifiable",
            name="certifiable",
            cheap=small,
            strong=large,
            rows=ROWS,
            incoming=INCOMING,
            broken=BROKEN,
            optimizer={"name": "bootstrap-random-search", "candidates": 1, "validation_rows": 8},
        )


@pytest.fixture(scope="module")
def optimized(workload: Written) -> str:
    """A completed run of `optimize-workload`."""
    return workload.run("optimize-workload")


def _run(run_id: str) -> RunRecord:
    with transaction() as db:
        return runs.load_run(db, run_id)


def test_a_run_keeps_every_row_and_its_tokens_are_what_the_servers_counted(workload: Written, optimized: str) -> None:
    found = diagnosed(optimized)
    assert found.healthy
    assert [tokens.holds for tokens in found.tokens] == [True, True]
    for server in workload.servers:
        (tokens,) = [tokens for tokens in found.tokens if tokens.server == server.base_url]
        assert (tokens.ledger_prompt, tokens.ledger_completion) == metered(server)
    assert sum(part.calls for part in spent(optimized)) == workload.requests()
