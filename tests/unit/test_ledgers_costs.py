"""Ledgers, costs and errors: rows are conserved, tokens reconcile, money adds up, failures say what to do."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain import errors
from domain.costs import usd
from domain.errors import HeadraceError, InputError, NothingChanged, Place, RunUnderWay
from domain.ledgers import Conservation, Meter, reconcile
from domain.requests import Usage
from domain.workloads import Prices

EXAMPLES = settings(max_examples=60, deadline=None, database=None, derandomize=True)
counts = st.integers(0, 10**6)


@EXAMPLES
@given(counts, counts, counts, counts, st.integers(-3, 3))
def test_rows_are_conserved_exactly_when_nothing_is_lost_or_doubled(
    outcomes: int, quarantined: int, cancelled: int, pending: int, missing: int
) -> None:
    records = outcomes + quarantined + cancelled + pending + missing
    assert Conservation(records, outcomes, quarantined, cancelled, pending).holds is (missing == 0)


def test_conservation_is_written_as_the_equation_it_is() -> None:
    assert str(Conservation(10, 6, 2, 1, 1)) == "10 records = 6 outcomes + 2 quarantined + 1 cancelled + 1 pending"
    assert "10 records ≠ 6 outcomes" in str(Conservation(10, 6, 2, 1, 0))


BEFORE = Meter(prompt=100, completion=10, started=5.0)


@pytest.mark.parametrize(
    ("after", "holds"),
    [
        (Meter(150, 17, 5.0), True),
        (Meter(151, 17, 5.0), False),
        (Meter(150, 16, 5.0), False),
        (Meter(50, 7, 9.0), None),
        (None, None),
    ],
)
def test_tokens_reconcile_with_the_servers_own_count_or_nothing_is_said(after: Meter | None, holds: object) -> None:
    found = reconcile("s", Usage(50, 7), BEFORE, after)
    assert found.holds is holds
    assert (found.ledger_prompt, found.ledger_completion) == (50, 7)
    assert (found.server_prompt is None) == (holds is None)


def test_a_server_that_was_not_read_before_the_run_cannot_be_reconciled() -> None:
    assert reconcile("s", Usage(), None, BEFORE).holds is None
    assert reconcile("s", Usage(), None, None).holds is None


@pytest.mark.parametrize(
    ("usage", "prices", "expected"),
    [
        (Usage(1_000_000, 0), Prices(input=0.5, output=2), 0.5),
        (Usage(0, 1_000_000), Prices(input=0.5, output=2), 2.0),
        (Usage(1_000_000, 0, cached=600_000), Prices(input=0.5, output=2), 0.5),
        (Usage(1_000_000, 0, cached=600_000), Prices(input=0.5, output=2, cached_input=0.1), 0.26),
        (Usage(1_000_000, 0, cached=1_000_000), Prices(input=0.5, output=2, cached_input=0), 0.0),
        (Usage(), Prices(input=0.5, output=2), 0.0),
    ],
)
def test_a_call_costs_its_tokens_at_their_prices(usage: Usage, prices: Prices, expected: float) -> None:
    assert usd(usage, prices) == pytest.approx(expected)


@EXAMPLES
@given(counts, counts, st.floats(0, 100), st.floats(0, 100))
def test_the_price_of_two_calls_is_the_sum_of_their_prices(prompt: int, completion: int, a: float, b: float) -> None:
    prices = Prices(input=a, output=b)
    both = usd(Usage(prompt + 3, completion + 5), prices)
    assert both == pytest.approx(usd(Usage(prompt, completion), prices) + usd(Usage(3, 5), prices), abs=1e-12)


def descendants(kind: type[HeadraceError]) -> list[type[HeadraceError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in descendants(child))]


def test_every_error_says_whether_another_try_can_help_and_what_to_do() -> None:
    own = [kind for kind in descendants(HeadraceError) if kind.__module__ == errors.__name__]
    assert len(own) > 10
    for kind in own:
        assert isinstance(kind.retryable, bool)
        if issubclass(kind, RunUnderWay):
            assert "headrace cancel 12345678" in str(kind("123456789", "host pid 1"))
            continue
        if issubclass(kind, NothingChanged):
            assert str(kind("123456789")).endswith(f"since run 12345678. Fix: {kind.hint}")
            continue
        error = kind(Place("f", 1), "broken") if issubclass(kind, InputError) else kind("broken")
        assert str(error).endswith(f"broken Fix: {kind.hint}")
    assert {kind.__name__ for kind in own if kind.retryable} == {
        "AnswerGarbled",
        "DatasetUnreachable",
        "ModelUnavailable",
        "StoreError",
        "TraceStoreError",
    }


@pytest.mark.parametrize(
    ("place", "written"),
    [
        (Place("f.csv"), "f.csv"),
        (Place("f.csv", 3), "f.csv:3"),
        (Place("f.csv", 3, 4), "f.csv:3:4"),
        (Place("f.csv", 3, 4, "text"), "f.csv:3:4: text"),
        (Place("f.csv", field="text"), "f.csv: text"),
    ],
)
def test_a_place_is_written_so_that_editors_can_jump_to_it(place: Place, written: str) -> None:
    assert str(place) == written


def test_a_hint_of_its_own_replaces_the_classs() -> None:
    assert str(HeadraceError("broken.", hint="Do this.")) == "broken. Fix: Do this."
