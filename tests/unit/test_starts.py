"""Who started a run: what Prefect says of its flow run, and what the ledger knows of its key."""

from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from sqlalchemy.orm import Session

from domain.starts import Starter, starter
from tasks.beginning import started_by


@pytest.mark.parametrize(
    ("scheduled", "creator", "delivered", "told"),
    [
        (True, "SCHEDULE", False, Starter.SCHEDULE),
        (True, None, False, Starter.SCHEDULE),
        (False, "SCHEDULE", False, Starter.SCHEDULE),
        (False, "AUTOMATION", False, Starter.AUTOMATION),
        (False, None, True, Starter.DELIVERY),
        (False, None, False, Starter.PERSON),
        (False, "SOMETHING NEW", False, Starter.PERSON),
    ],
)
def test_who_started_a_run(scheduled: bool, creator: str | None, delivered: bool, told: Starter) -> None:
    assert starter(scheduled=scheduled, creator=creator, delivered=delivered) is told


def test_it_is_left_open_where_prefect_has_not_said() -> None:
    assert started_by(Session()) is None
    with FlowRunContext.model_construct(flow_run=None):
        assert started_by(Session()) is None


def test_a_run_without_a_key_of_ours_is_not_looked_for_in_the_ledger() -> None:
    run = FlowRun.model_validate({"flow_id": str(uuid4()), "created_by": {"type": "AUTOMATION"}})
    with FlowRunContext.model_construct(flow_run=run):
        assert started_by(Session()) is Starter.AUTOMATION
