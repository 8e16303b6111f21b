"""Dispatches: what is to be done about a dataset that is said to have changed."""

from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from pydantic import JsonValue

from domain.canonical import digest


class Act(StrEnum):
    """Nothing, since its content was dealt with; nothing, since a run deals with it; or start a run."""

    UNCHANGED = "unchanged"
    JOINED = "joined"
    START = "started"


@dataclass(frozen=True, slots=True)
class Started:
    """The newest start for a dataset: the number of its change, the version, the run, and whether that one still has
    to end, however it will."""

    number: int
    version: str
    run_id: str | None
    under_way: bool


def decide(version: str, *, complete: str | None, last: Started | None) -> Act:
    """What a dataset version asks for, given the one of the newest complete run and the newest start.

    While that start's run is under way, it is what the next state of things comes from: the same content joins it, and
    other content is started after it, also content that was dealt with before. A run that has ended counts only as the
    newest complete one: where it failed or was cancelled, or another one has moved on since, the same content is
    started again.
    """
    if last is not None and last.under_way:
        return Act.JOINED if last.version == version else Act.START
    return Act.UNCHANGED if version == complete else Act.START


def idempotency_key(flow: str, parameters: dict[str, JsonValue], *, after: int) -> str:
    """The key under which Prefect starts one run, however often it is asked: it covers flow, dataset version and all
    other parameters, and the number of the start before it, so that content that comes back is started again."""
    return f"headrace-{digest([flow, cast(JsonValue, parameters), after])}"
