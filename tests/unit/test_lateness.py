"""Of several missed times of a schedule the newest starts, and the others do not."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest

from domain.lateness import DueRun, newer_due, skipped_because

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)


def due(hour: int, state: str = "Late", *, run_id: str = "", **parameters: object) -> DueRun:
    return DueRun(run_id or f"run-{hour}", f"optimize-{hour}", NOW.replace(hour=hour, minute=0), state, parameters)


def test_the_newest_of_many_missed_runs_is_the_only_one_that_starts() -> None:
    missed = [due(hour, state) for hour, state in ((9, "Running"), (10, "AwaitingConcurrencySlot"), (11, "Late"))]
    for order in permutations(missed):
        starts = [own.run_id for own in order if newer_due(own, order, now=NOW) is None]
        assert starts == ["run-11"]


def test_it_names_the_newest_one() -> None:
    newer = newer_due(due(9), [due(10), due(12), due(11)], now=NOW)
    assert newer is not None
    assert skipped_because(newer) == (
        "a newer run of the same schedule is due: optimize-12, 2026-03-01 12:00 UTC (run-12)"
    )


def test_a_run_that_is_not_due_yet_supersedes_nothing() -> None:
    later = replace(due(12), due_at=NOW + timedelta(minutes=1), state="Scheduled")
    assert newer_due(due(11), [later], now=NOW) is None
    assert newer_due(due(11), [later], now=NOW + timedelta(minutes=1)) == later


@pytest.mark.parametrize("state", ["Cancelled", "Cancelling", "Skipped", "Failed", "Crashed"])
def test_a_run_that_will_not_do_the_work_supersedes_nothing(state: str) -> None:
    assert newer_due(due(9), [due(10, state)], now=NOW) is None


@pytest.mark.parametrize("state", ["Scheduled", "Late", "Pending", "AwaitingConcurrencySlot", "Running", "Completed"])
def test_a_run_that_does_the_work_supersedes_older_ones_only(state: str) -> None:
    assert newer_due(due(9), [due(10, state)], now=NOW) == due(10, state)
    assert newer_due(due(11), [due(10, state)], now=NOW) is None


def test_another_schedule_of_the_same_deployment_is_other_work() -> None:
    assert newer_due(due(9, max_rows=10), [due(10, max_rows=20)], now=NOW) is None
    assert newer_due(due(9, max_rows=10), [due(10, max_rows=10)], now=NOW) is not None


def test_of_two_runs_due_at_the_same_time_exactly_one_starts() -> None:
    twins = [due(9, run_id="a"), due(9, run_id="b")]
    assert [newer_due(own, twins, now=NOW) is None for own in twins] == [False, True]


def test_a_run_does_not_supersede_itself() -> None:
    assert newer_due(due(9, "Running"), [due(9, "Running")], now=NOW) is None
