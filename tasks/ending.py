"""Ending early: a run says of itself in Prefect that it was cancelled, and why."""

from contextlib import suppress
from uuid import UUID

from prefect import State
from prefect.exceptions import Abort
from prefect.runtime import flow_run as current_flow_run
from prefect.states import Cancelled

from infra import deployments, leases, schedules


class Ended(Abort):
    """The run has ended in Prefect already; its engine takes this state and says nothing of an error."""

    def __init__(self, state: State) -> None:
        super().__init__(state.message)
        self.state = state


def end_superseded() -> State | None:
    """End a late run of a schedule as Skipped when a newer one is due; None when it has to begin."""
    newer = schedules.superseded(UUID(str(current_flow_run.id)))
    return end_cancelled(newer, name="Skipped") if newer else None


def end_cancelled(message: str, *, name: str = "Cancelled", held_as: State | None = None) -> State:
    """End the current run in Prefect as cancelled: raises Ended, or returns the state when Prefect does not answer.

    A flow that returns this state is logged by Prefect as one that failed unexpectedly. A run that Prefect holds as
    suspended stays in that state.
    """
    if held_as is not None:
        raise Ended(held_as)
    state: State = Cancelled(name=name, message=message)
    with suppress(deployments.PrefectError):
        deployments.end(UUID(str(current_flow_run.id)), state)
        raise Ended(state)
    return state


def suspended() -> State | None:
    """The current run's state when somebody has suspended it in Prefect: it is to go on there with Resume."""
    with suppress(deployments.PrefectError):
        return deployments.suspended(UUID(str(current_flow_run.id)))
    return None


def is_unwanted(run_id: str) -> bool:
    """Whether somebody wants this run cancelled; asked when its process is told to end, which has other reasons too."""
    if leases.stopping():
        return True
    with suppress(deployments.PrefectError):
        return deployments.is_cancelled(UUID(run_id))
    return False
