"""Prefect's schedules: whether a late run of one still has anything to do."""

from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort

from domain.lateness import DueRun, newer_due, skipped_because
from infra.deployments import PrefectError, client_for

LOOKED_AT = 200
"""Newer runs that are looked at; the newest first."""


def superseded(run_id: UUID) -> str | None:
    """Why a run that a schedule started need not begin: a newer time of the same schedule is due. None when it has to.

    What a person or a delivery started is never superseded, nor is a run that has begun before. A Prefect that does
    not answer supersedes nothing.
    """
    with suppress(PrefectError), client_for("say what else is due") as client:
        run = client.read_flow_run(run_id)
        own = _due(run)
        if not run.auto_scheduled or run.run_count > 1 or own is None or run.deployment_id is None:
            return None
        now = datetime.now(UTC)
        newer = newer_due(own, _after(client, run.deployment_id, own.due_at, now), now=now)
        return skipped_because(newer) if newer else None
    return None


def _after(client: SyncPrefectClient, deployment: UUID, after: datetime, before: datetime) -> list[DueRun]:
    """The runs of a deployment's schedules that were due between two moments."""
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment]),
            expected_start_time=FlowRunFilterExpectedStartTime(after_=after, before_=before),  # pyright: ignore[reportArgumentType],
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=LOOKED_AT,
    )
    return [due for run in found if run.auto_scheduled and (due := _due(run))]


def _due(run: FlowRun) -> DueRun | None:
    if run.expected_start_time is None or run.state is None:
        return None
    return DueRun(
        run_id=str(run.id),
        name=run.name,
        due_at=run.expected_start_time,
        state=run.state.name or run.state.type.value.title(),
        parameters=run.parameters,
    )
