"""Deployments for real: a workload of one's own, its schedules after an outage, and a replay started in Prefect."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from sqlalchemy import text

from domain.starts import Starter
from infra import deploying, deployments
from infra.db.session import transaction
from infra.db.store import runs
from infra.llm.scripted import Script, ScriptedServer
from infra.settings import Settings
from infra.stack import Stack
from tests.integration import scripted_workloads
from tests.integration.scripted_workloads import RULES, Written, diagnosed, ended

pytestmark = [pytest.mark.usefixtures("running"), pytest.mark.timeout(900)]
NAME, ROWS, MISSED_DAYS = "deployed", 60, 4
FLOWS = {"optimize-workload", "route-batch", "audit-bundle", "replay-run"}


@pytest.fixture(scope="module")
def workload(running: Stack, home: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """A workload of the user's own, deployed with one command."""
    knows = Script(model="small", rules=RULES, noise=0.25, sharpness=8, seed=1)
    with ScriptedServer(knows) as small, ScriptedServer(Script(model="large", rules=RULES, seed=2)) as large:
        folder = tmp_path_factory.mktemp("workloads") / NAME
        written = scripted_workloads.write(folder, name=NAME, cheap=small, strong=large, rows=ROWS)
        assert deploying.deploy(home=home.home, workload=str(folder))
        assert not deploying.deploy(home=home.home, workload=str(folder)), "a second time does nothing"
        yield written


@pytest.fixture(scope="module")
def caught_up(workload: Written) -> list[FlowRun]:
    """What became of a nightly schedule's runs that were missed for days, all due at once; oldest first."""
    with get_client(sync_client=True) as client:
        nightly = deployed(client, "optimize-workload")
        client.update_deployment_schedule(nightly.id, nightly.schedules[0].id, active=True)
        now = datetime.now(UTC)
        missed = {"start_time": str(now - timedelta(days=MISSED_DAYS)), "end_time": str(now), "min_runs": MISSED_DAYS}
        path: Any = f"/deployments/{nightly.id}/schedule"
        client.request("POST", path, json=missed).raise_for_status()
        due = [run for run in scheduled(client, nightly.id) if expected(run) <= now]
        assert len(due) == MISSED_DAYS
        for run in due:
            ended(run.id)
        return [client.read_flow_run(run.id) for run in due]


def deployed(client: SyncPrefectClient, flow: str) -> DeploymentResponse:
    return client.read_deployment_by_name(f"{flow}/{NAME}")


def scheduled(client: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    wanted = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
    found = client.read_flow_runs(flow_run_filter=wanted)
    return sorted((run for run in found if run.auto_scheduled), key=expected)


def expected(run: FlowRun) -> datetime:
    assert run.expected_start_time is not None
    return run.expected_start_time


def artifact(run_id: UUID, key: str) -> str:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        return str({found.key: found.data for found in client.read_artifacts(artifact_filter=wanted)}[key])


def test_a_workload_of_ones_own_has_all_flows_with_its_tag_and_help_for_every_parameter(workload: Written) -> None:
    with get_client(sync_client=True) as client:
        for flow in FLOWS:
            found = deployed(client, flow)
            assert found.tags == ["headrace", f"workload:{NAME}"]
            assert found.parameters["workload"] == str(workload.folder)
            properties = cast(dict[str, Any], (found.parameter_openapi_schema or {})["properties"])
            assert all(described["description"] for described in properties.values())
            assert all("default" in described for described in properties.values())
            assert found.concurrency_options is not None
            assert found.concurrency_options.collision_strategy.value == "ENQUEUE"
            assert found.global_concurrency_limit is not None
            assert found.global_concurrency_limit.limit == 1
            assert [schedule.active for schedule in found.schedules if schedule.slug != "nightly"] in ([], [False])
            assert found.work_pool_name == deployments.POOL


def test_what_is_started_for_it_is_a_run_of_its_own_deployment(workload: Written) -> None:
    assert deployments.deployment_for("optimize-workload", NAME) == f"optimize-workload/{NAME}"
    assert deployments.deployment_for("optimize-workload", "another") == "optimize-workload/default"


def test_after_an_outage_the_newest_of_the_missed_runs_starts_and_the_others_do_nothing(
    workload: Written, caught_up: list[FlowRun]
) -> None:
    *missed, newest = caught_up
    assert newest.state is not None
    assert newest.state.name == "Completed", newest.state.message
    for run in missed:
        assert run.state is not None
        assert run.state.name == "Skipped", run.state
        assert run.state.is_cancelled()
        assert run.state.message is not None
        assert str(newest.id) in run.state.message
    with transaction() as db:
        assert [runs.is_known(db, str(run.id)) for run in caught_up] == [False] * len(missed) + [True]
        assert runs.load_run(db, str(newest.id)).started_by == Starter.SCHEDULE
    asked = diagnosed(str(newest.id))
    assert asked.rows.pending == 0


def test_a_schedule_that_is_switched_off_plans_nothing_more_and_stays_off(
    workload: Written, caught_up: list[FlowRun], home: Settings
) -> None:
    with get_client(sync_client=True) as client:
        nightly = deployed(client, "optimize-workload")
        assert nightly.schedules[0].active
        (home.home / "run" / "deployed").write_text('{"digest": "another"}')
        assert deploying.deploy(home=home.home), "something has changed"
        again = deployed(client, "optimize-workload")
        assert again.schedules[0].active, "a new deployment leaves the switch alone"
        client.update_deployment_schedule(again.id, again.schedules[0].id, active=False)
        planned = [run for run in scheduled(client, again.id) if expected(run) > datetime.now(UTC)]
        assert planned == []
        assert not deploying.deploy(home=home.home)
        assert not deployed(client, "optimize-workload").schedules[0].active


def test_a_replay_started_in_prefect_says_identical_and_makes_no_run_in_the_ledger(
    workload: Written, caught_up: list[FlowRun]
) -> None:
    newest = caught_up[-1]
    run_id = workload.start("replay-run")
    assert ended(run_id)[0] == "Completed"
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(run_id).name == f"replay-{NAME}-{str(newest.id)[:8]}"
    said = artifact(run_id, f"replay-{NAME}")
    assert f"run `{newest.id}`: identical" in said
    assert "| requests |" in said
    with transaction() as db:
        assert not runs.is_known(db, str(run_id))


def test_a_replay_that_comes_out_differently_is_a_failed_run_with_the_first_difference(
    workload: Written, caught_up: list[FlowRun]
) -> None:
    newest = str(caught_up[-1].id)
    with transaction() as db:
        db.execute(
            text(
                "update answers set confidence = confidence / 2 where run_id = :run and record_key ="
                " (select min(record_key) from answers where run_id = :run and tier = 'cheap')"
            ),
            {"run": newest},
        )
    run_id = deployments.start(
        "replay-run", parameters={"workload": str(workload.folder), "run_id": newest[:12]}, workload=NAME
    )
    name, message = ended(run_id)
    assert name == "Failed"
    assert "divergent: optimize deployed" in message
    assert "first confidences" in message
    said = artifact(run_id, f"replay-{NAME}")
    assert "cause: ledger" in said
    assert "recorded" in said


def test_a_replay_of_what_is_not_there_fails_with_the_reason(workload: Written, caught_up: list[FlowRun]) -> None:
    run_id = deployments.start(
        "replay-run", parameters={"workload": str(workload.folder), "run_id": "no-such-run"}, workload=NAME
    )
    name, message = ended(run_id)
    assert name == "Failed"
    assert "no run begins with 'no-such-run'" in message
