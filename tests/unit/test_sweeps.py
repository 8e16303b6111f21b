"""What becomes of a flow run that Prefect takes for alive."""

import pytest

from domain.sweeps import MOST_RESTARTS, PENDING_S, SILENT_S, STARTING_S, Fate, Seen, fate, fate_of_pending


def seen(
    *,
    cancelling: bool = False,
    for_s: float = 1e4,
    ledger: str | None = None,
    held: bool = False,
    silent_s: float | None = 0,
) -> Seen:
    return Seen(cancelling=cancelling, for_s=for_s, ledger=ledger, held=held, silent_s=silent_s)


@pytest.mark.parametrize("cancelling", [True, False])
def test_a_run_whose_lease_is_held_is_its_holders_to_end(cancelling: bool) -> None:
    assert fate(seen(cancelling=cancelling, ledger="running", held=True, silent_s=1e6)) is Fate.LEAVE


@pytest.mark.parametrize("ledger", ["running", "lost"])
def test_a_lost_run_is_cancelled_where_that_is_wanted_and_else_left_to_the_ledger(ledger: str) -> None:
    assert fate(seen(ledger=ledger, silent_s=1e6)) is Fate.LEAVE
    assert fate(seen(ledger=ledger, cancelling=True, for_s=0)) is Fate.CANCEL


def test_what_the_ledger_has_cancelled_is_cancelled_at_once() -> None:
    assert fate(seen(cancelling=True, for_s=0, ledger="cancelled")) is Fate.CANCEL


@pytest.mark.parametrize("ledger", [None, "cancelled", "crashed", "paused"])
def test_a_run_that_begins_or_waits_is_left_while_its_heart_beats(ledger: str | None) -> None:
    assert fate(seen(ledger=ledger, silent_s=SILENT_S - 1)) is Fate.LEAVE
    assert fate(seen(ledger=ledger, silent_s=None)) is Fate.LEAVE, "no heartbeat was ever asked for"
    assert fate(seen(ledger=ledger, silent_s=1e6, for_s=SILENT_S - 1)) is Fate.LEAVE, "it has just begun again"
    assert fate(seen(ledger=ledger, silent_s=SILENT_S)) is Fate.CRASH


def test_a_run_that_is_cancelled_while_it_begins_has_a_moment_to_see_it() -> None:
    assert fate(seen(cancelling=True, for_s=STARTING_S - 1)) is Fate.LEAVE
    assert fate(seen(cancelling=True, for_s=STARTING_S)) is Fate.CANCEL


def test_a_run_that_no_process_begins_is_begun_again_but_not_for_ever() -> None:
    assert fate_of_pending(for_s=PENDING_S, process=False, restarts=0) is Fate.RESTART
    assert fate_of_pending(for_s=PENDING_S, process=False, restarts=MOST_RESTARTS - 1) is Fate.RESTART
    assert fate_of_pending(for_s=PENDING_S, process=False, restarts=MOST_RESTARTS) is Fate.CRASH


@pytest.mark.parametrize("restarts", [0, MOST_RESTARTS])
def test_a_run_that_a_process_may_be_about_to_begin_is_left(restarts: int) -> None:
    assert fate_of_pending(for_s=1e6, process=True, restarts=restarts) is Fate.LEAVE
    assert fate_of_pending(for_s=PENDING_S - 1, process=False, restarts=restarts) is Fate.LEAVE
