"""What is to be done about a dataset that is said to have changed."""

import pytest

from domain.dispatches import Act, Started, decide, idempotency_key

LAST = Started(7, "v2", "run", under_way=True)
OVER = Started(7, "v2", "run", under_way=False)


@pytest.mark.parametrize("last", [None, OVER])
def test_content_that_a_complete_run_has_dealt_with_starts_nothing(last: Started | None) -> None:
    assert decide("v1", complete="v1", last=last) is Act.UNCHANGED


@pytest.mark.parametrize("complete", [None, "v1", "v2"])
def test_content_that_a_run_is_dealing_with_joins_it(complete: str | None) -> None:
    assert decide("v2", complete=complete, last=LAST) is Act.JOINED


@pytest.mark.parametrize(("complete", "last"), [(None, None), ("v1", LAST), ("v1", OVER)])
def test_new_content_starts_a_run(complete: str | None, last: Started | None) -> None:
    assert decide("v3", complete=complete, last=last) is Act.START


def test_content_that_comes_back_while_a_run_deals_with_other_content_is_started_after_it() -> None:
    assert decide("v1", complete="v1", last=LAST) is Act.START


@pytest.mark.parametrize("complete", ["v1", "v3"])
def test_content_whose_run_ended_without_being_the_newest_complete_one_is_started_again(complete: str) -> None:
    assert decide("v2", complete=complete, last=OVER) is Act.START


def test_a_key_covers_flow_version_parameters_and_the_start_before() -> None:
    given = {"version": "v1", "only_changed": True}
    key = idempotency_key("f", given, after=1)
    assert key == idempotency_key("f", dict(reversed(given.items())), after=1)
    others = [
        idempotency_key("g", given, after=1),
        idempotency_key("f", {**given, "version": "v2"}, after=1),
        idempotency_key("f", {**given, "only_changed": False}, after=1),
        idempotency_key("f", given, after=2),
    ]
    assert len({key, *others}) == 5
