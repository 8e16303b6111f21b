"""prefect.yaml: Prefect takes every word of it, and a workload of the user's own gets the same."""

import copy
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule

from infra.deploying import entries, flow_name, keep_switches, read_file
from infra.deployments_schema import problems

FLOWS = ("optimize-workload", "route-batch", "audit-bundle", "replay-run")
BERLIN = "Europe/Berlin"
SPRING, AUTUMN = date(2026, 3, 29), date(2026, 10, 25)
"""02:00 to 03:00 is skipped there, and shown twice."""


@pytest.fixture
def spec() -> dict[str, Any]:
    return copy.deepcopy(read_file())


def test_every_flow_is_declared_and_nothing_is_wrong(spec: dict[str, Any]) -> None:
    assert tuple(flow_name(entry) for entry in spec["deployments"]) == FLOWS
    assert problems(spec) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"concurency_limit": 3}, "Prefect knows no 'concurency_limit'"),
        ({"tags": ["headrace"]}, "the tags headrace and workload:NAME"),
        ({"parameters": {"workloads": "x"}}, "'workloads' is not a parameter of the flow"),
        ({"concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"}}, "others wait"),
        ({"description": ""}, "a description"),
        ({"schedules": [{"cron": "0 3 * * *", "timezone": "UTC", "active": False}]}, "a slug of its own"),
        (
            {"schedules": [{"slug": "s", "cron": "0 3 * * *", "timezone": "Europe/Bonn", "active": False}]},
            "schedule s: ",
        ),
        ({"schedules": [{"slug": "s", "cron": "0 61 * * *", "timezone": "UTC", "active": False}]}, "schedule s: "),
        ({"schedules": [{"slug": "s", "interval": 60, "timezone": "UTC", "active": True}]}, "switched off"),
        ({"schedules": [{"slug": "s", "interval": 60, "parameters": {"max_rows": 1}}]}, "no parameters of its own"),
        ({"schedules": [{"slug": "s", "interval": 60, "cron": "* * * * *"}]}, "Exactly one of"),
    ],
)
def test_a_mistake_is_said(spec: dict[str, Any], change: dict[str, Any], said: str) -> None:
    spec["deployments"][0].update(change)
    assert any(said in problem for problem in problems(spec)), problems(spec)


def test_a_flow_that_is_not_declared_is_said(spec: dict[str, Any]) -> None:
    del spec["deployments"][-1]
    assert problems(spec) == ["flows/replay_run.py is not deployed"]


def test_a_workload_of_ones_own_gets_the_same_under_its_name(spec: dict[str, Any]) -> None:
    made = entries(spec, {"mine": "/data/mine"})
    assert made[:4] == spec["deployments"]
    for own, written in zip(made[4:], made[:4], strict=True):
        assert (own["name"], own["tags"]) == ("mine", ["headrace", "workload:mine"])
        assert own["parameters"] == {**written["parameters"], "workload": "/data/mine"}
        kept = written.keys() - {"name", "tags", "parameters"}
        assert {key: own[key] for key in kept} == {key: written[key] for key in kept}


def test_what_was_switched_in_the_ui_stays_until_the_file_says_something_new(spec: dict[str, Any]) -> None:
    key, slug = "optimize-workload/default", "nightly"

    def active(known: dict[str, dict[str, bool]], before: dict[str, bool]) -> bool:
        (first, *_) = keep_switches(spec["deployments"], known, said_before=before)
        return bool(first["schedules"][0]["active"])

    assert not active({}, {})
    assert active({key: {slug: True}}, {f"{key}#{slug}": False}), "switched on in the UI"
    spec["deployments"][0]["schedules"][0]["active"] = True
    assert active({key: {slug: False}}, {f"{key}#{slug}": False}), "switched on in the file"
    assert not active({key: {slug: False}}, {f"{key}#{slug}": True}), "switched off in the UI"


@pytest.mark.parametrize("day", [SPRING, AUTUMN])
@pytest.mark.parametrize("cron", ["0 3 * * *", "30 2 * * *", "0 6 * * *", "30 5 * * *"])
async def test_a_cron_schedule_fires_once_on_a_day_of_23_or_25_hours(cron: str, day: date) -> None:
    zone = ZoneInfo(BERLIN)
    start = datetime(day.year, day.month, day.day, tzinfo=zone) - timedelta(days=2)
    fired = await CronSchedule(cron=cron, timezone=BERLIN).get_dates(6, start=start, end=start + timedelta(days=5))
    days = Counter[date](at.astimezone(zone).date() for at in fired)
    assert days[day] == 1
    assert set(days.values()) == {1}, days
    minute, hour = (int(part) for part in cron.split()[:2])
    others = [at.astimezone(zone) for at in fired if at.astimezone(zone).date() != day]
    assert {(at.hour, at.minute) for at in others} == {(hour, minute)}, "local time, before and after"


@pytest.mark.parametrize("day", [SPRING, AUTUMN])
async def test_an_interval_counts_hours_whatever_the_clock_does(day: date) -> None:
    schedule = IntervalSchedule.model_validate(
        {"interval": 6 * 3600, "anchor_date": "2026-01-01T00:00:00", "timezone": "UTC"}
    )
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    fired = await schedule.get_dates(8, start=start, end=start + timedelta(days=2))
    assert [later - earlier for earlier, later in pairwise(fired)] == [timedelta(hours=6)] * 7


def test_the_shipped_schedules_are_off_and_have_time_zones(spec: dict[str, Any]) -> None:
    schedules = [schedule for entry in spec["deployments"] for schedule in entry["schedules"]]
    assert {schedule["active"] for schedule in schedules} == {False}
    assert all(schedule["timezone"] for schedule in schedules)
    assert any("cron" in schedule for schedule in schedules)
    assert any("interval" in schedule for schedule in schedules)
