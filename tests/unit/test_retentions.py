"""Which runs may be forgotten: pure decisions."""

from datetime import UTC, datetime, timedelta

import pytest

from domain.errors import InputError
from domain.retentions import Need, Past, age, sort_out

NOW = datetime(2026, 11, 1, tzinfo=UTC)
BEFORE = NOW - timedelta(days=90)


def past(
    name: str, *, days: int = 200, state: str = "completed", kind: str = "route", needs: tuple[Need, ...] = ()
) -> Past:
    return Past(name, kind, "w", state, NOW - timedelta(days=days), frozenset(needs))


@pytest.mark.parametrize(("text", "days"), [("90d", 90), ("12w", 84), ("36h", 1.5), (" 1d ", 1)])
def test_an_age_is_a_number_and_a_unit(text: str, days: float) -> None:
    assert age(text) == timedelta(days=days)


@pytest.mark.parametrize("text", ["90", "0d", "-3d", "soon", "90 d", "1y", "", "999999d", "1.5d"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        age(text)


def test_the_oldest_go_first_and_the_newest_complete_one_stays() -> None:
    runs = [past("b", days=150), past("c", days=100), past("a"), past("d", days=95, kind="optimize")]

    found = sort_out(runs, before=BEFORE)

    assert [run.id for run in found.removable] == ["a", "b"]
    assert found.kept == {Need.NEWEST: 2}


def test_quarantined_rows_asked_again_are_no_ones_last_complete_batch() -> None:
    whole = past("a")
    again = Past("b", "route", "w", "completed", NOW - timedelta(days=150), requeued=True)

    found = sort_out([whole, again], before=BEFORE)

    assert (found.removable, found.kept) == ((again,), {Need.NEWEST: 1})


def test_a_failed_run_is_no_ones_last_complete_one() -> None:
    assert [run.id for run in sort_out([past("a", state="failed")], before=BEFORE).removable] == ["a"]


@pytest.mark.parametrize("state", ["running", "paused", "scheduled"])
def test_what_has_not_ended_stays(state: str) -> None:
    assert sort_out([past("a", state=state)], before=BEFORE).kept == {Need.OPEN: 1}


def test_a_moment_decides_and_not_a_day() -> None:
    at = [Past(name, "route", "w", "failed", BEFORE + timedelta(seconds=s)) for name, s in (("a", -1), ("b", 0))]

    assert [run.id for run in sort_out(at, before=BEFORE).removable] == ["a"]


@pytest.mark.parametrize(
    "need", [Need.BUNDLE, Need.CERTIFICATE, Need.PROMOTION, Need.AUDIT, Need.UNAUDITED, Need.COMPILE]
)
def test_what_something_needs_stays(need: Need) -> None:
    assert sort_out([past("a", state="failed", needs=(need,))], before=BEFORE).kept == {need: 1}


def test_nothing_of_a_workload_goes_while_it_is_under_way() -> None:
    assert sort_out([past("a", state="failed")], before=BEFORE, under_way={"w"}).kept == {Need.UNDER_WAY: 1}


def test_what_was_begun_is_ended() -> None:
    begun = past("a", state="pruned", needs=(Need.BUNDLE,))

    assert sort_out([begun], before=BEFORE, under_way={"w"}).removable == (begun,)
