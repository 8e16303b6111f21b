"""Leases on a real Postgres: one writer, takeover by the database's clock, and a fence that no stale holder passes."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress

import pytest
from sqlalchemy import delete, text, update
from sqlalchemy.orm import Session

from domain.errors import LeaseLost, RunCancelled, RunUnderWay, StoreError
from infra import leases, sweeping
from infra.db import session
from infra.db.session import Fence, database_url, engine_for, retried, transaction
from infra.db.store import leases as store
from infra.db.store import runs
from infra.db.store.leases import Taken
from infra.db.tables import LeaseRow
from infra.deployments import PrefectError
from infra.settings import Settings, load_settings
from tests.integration.begun_runs import open_run

DEAD_S = 2.0
"""Short leases, so that the dead are soon known to be dead."""


@pytest.fixture
def settings(ledger: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings with short leases; what the test still holds is given back."""
    monkeypatch.setenv("HEADRACE_LEASE_S", str(DEAD_S))
    yield load_settings()
    leases.release()


@pytest.fixture
def run_id(ledger: str) -> str:
    """A run that has begun, and that no lease is held for."""
    run_id = open_run()
    with engine_for(database_url()).begin() as connection:
        connection.execute(delete(LeaseRow).where(LeaseRow.run_id == run_id))
    return run_id


@pytest.fixture
def work() -> str:
    """A piece of work that nobody has touched."""
    return leases.work_of("optimize", uuid.uuid4().hex)


def take(work: str, run_id: str, *, ttl_s: float = 60) -> int | None:
    with transaction() as db:
        taken = store.take(db, work, run_id, holder="elsewhere pid 1", ttl_s=ttl_s)
    return taken and taken.token


def expire(work: str) -> None:
    """Let a lease's time be over."""
    with engine_for(database_url()).begin() as connection:
        over = text("clock_timestamp() - interval '1 second'")
        connection.execute(update(LeaseRow).where(LeaseRow.work == work).values(expires_at=over))


def state_of(run_id: str) -> str:
    with engine_for(database_url()).begin() as connection:
        return connection.execute(text("select state from runs where id = :id"), {"id": run_id}).scalar_one()


def test_only_one_of_many_takes_a_lease(ledger: str, work: str) -> None:
    tokens: list[int | None] = []
    threads = [threading.Thread(target=lambda: tokens.append(take(work, str(uuid.uuid4())))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(tokens, key=str) == [1, *[None] * 7]


def test_a_takeover_has_a_larger_token_and_ends_the_run_that_was_left(run_id: str, work: str) -> None:
    assert take(work, run_id) == 1
    other = open_run()
    assert take(work, other) is None
    expire(work)
    assert take(work, other) == 2
    assert (state_of(run_id), state_of(other)) == ("crashed", "running")


def test_taking_over_the_same_run_lets_it_run_on(run_id: str, work: str) -> None:
    take(work, run_id)
    expire(work)
    assert take(work, run_id) == 2
    assert state_of(run_id) == "running"


def test_a_token_never_comes_again_after_a_release(run_id: str, work: str) -> None:
    token = take(work, run_id)
    assert token == 1
    with transaction() as db:
        store.release(db, work, token)
        assert store.renew(db, work, token, ttl_s=60) is None
    again = take(work, run_id)
    assert again is not None
    assert again > token + 1


def test_a_holder_writes_and_after_a_takeover_writes_nothing(ledger: str, run_id: str, work: str) -> None:
    session.raise_fence(Fence(work, take(work, run_id) or 0))
    try:
        with transaction() as db:
            runs.change_run(db, run_id, state="held")
        expire(work)
        with transaction() as db:  # nobody was quicker
            runs.change_run(db, run_id, state="late")
        with Session(engine_for(database_url())) as other, other.begin():
            assert store.take(other, work, run_id, holder="another", ttl_s=60)
        with pytest.raises(LeaseLost), transaction() as db:
            runs.change_run(db, run_id, state="stale")
        with pytest.raises(LeaseLost):
            retried(lambda db: runs.change_run(db, run_id, state="stale"))
    finally:
        session.lower_fence()
    assert state_of(run_id) == "late"


def test_a_takeover_waits_for_a_write_under_way_and_a_renewal_does_not(ledger: str, run_id: str, work: str) -> None:
    token = take(work, run_id) or 0
    taken: list[int | None] = []
    with Session(engine_for(database_url())) as writing:
        assert store.holds(writing, work, token)
        runs.change_run(writing, run_id, state="written")
        with transaction() as db:
            assert store.renew(db, work, token, ttl_s=60) is False
        expire(work)
        taker = threading.Thread(target=lambda: taken.append(take(work, run_id)))
        taker.start()
        wait_for_a_lock(taker)
        assert taken == []
        writing.commit()
        taker.join()
    assert (taken, state_of(run_id)) == ([token + 1], "written")


def test_a_write_that_begins_during_a_takeover_is_refused(ledger: str, run_id: str, work: str) -> None:
    token = take(work, run_id) or 0
    expire(work)
    held: list[bool] = []

    def ask() -> None:
        with transaction() as db:
            held.append(store.holds(db, work, token))

    with Session(engine_for(database_url())) as taking:
        assert store.take(taking, work, run_id, holder="another", ttl_s=60) == Taken(token + 1)
        writer = threading.Thread(target=ask)
        writer.start()
        wait_for_a_lock(writer)
        assert held == []
        taking.commit()
        writer.join()
    assert held == [False]


def test_a_renewal_that_comes_first_keeps_a_lease_whose_time_was_over(ledger: str, run_id: str, work: str) -> None:
    token = take(work, run_id) or 0
    expire(work)
    taken: list[int | None] = []
    with Session(engine_for(database_url())) as renewing:
        assert store.renew(renewing, work, token, ttl_s=60) is False
        taker = threading.Thread(target=lambda: taken.append(take(work, str(uuid.uuid4()))))
        taker.start()
        wait_for_a_lock(taker)
        renewing.commit()
        taker.join()
    assert taken == [None]


def wait_for_a_lock(thread: threading.Thread) -> None:
    """Until some statement waits for another transaction."""
    waiting = text(
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    )
    with engine_for(database_url()).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not connection.execute(waiting).scalar_one():
            assert thread.is_alive(), "it did not wait"
            time.sleep(0.01)


HOLDER = """
import sys, time
from infra import leases
from infra.db.session import transaction
from infra.db.store import runs
from infra.db.store.leases import Taken
from infra.settings import load_settings

work, run_id = sys.argv[1:]
leases.acquire(work, run_id, load_settings())
print("holds", flush=True)
for line in sys.stdin:
    with transaction() as db:
        runs.change_run(db, run_id, state=line.strip())
    print("written", flush=True)
"""


@pytest.fixture
def holder(settings: Settings, run_id: str, work: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease, and writes when told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, work, run_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert process.stdout
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.communicate()


def test_a_living_holder_is_not_disturbed(
    settings: Settings, holder: subprocess.Popen[str], run_id: str, work: str
) -> None:
    with pytest.raises(RunUnderWay, match=rf"{run_id}.*pid {holder.pid}.*headrace cancel {run_id[:8]}"):
        leases.acquire(work, str(uuid.uuid4()), settings)
    with pytest.raises(RunUnderWay):
        leases.acquire(work, run_id, settings)
    say(holder, "alive")
    assert state_of(run_id) == "alive"


def say(holder: subprocess.Popen[str], state: str) -> None:
    assert holder.stdin
    assert holder.stdout
    holder.stdin.write(f"{state}\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "written\n"


def test_a_dead_holder_is_waited_for_and_its_work_taken_over(
    settings: Settings, holder: subprocess.Popen[str], run_id: str, work: str
) -> None:
    holder.kill()
    leases.acquire(work, run_id, settings)
    assert leases.holds(run_id)
    with transaction() as db:
        runs.change_run(db, run_id, state="resumed")
    assert state_of(run_id) == "resumed"


@pytest.mark.parametrize(("same_run", "code"), [(True, 0), (False, leases.LOST)])
def test_a_paused_holder_that_wakes_up_after_a_takeover_ends_and_has_written_nothing(
    settings: Settings, holder: subprocess.Popen[str], run_id: str, work: str, same_run: bool, code: int
) -> None:
    assert holder.stdin
    holder.send_signal(signal.SIGSTOP)
    leases.acquire(work, run_id if same_run else str(uuid.uuid4()), settings)
    holder.stdin.write("stale\n")
    holder.stdin.flush()
    holder.send_signal(signal.SIGCONT)
    assert holder.wait(timeout=60) == code
    assert state_of(run_id) == ("running" if same_run else "crashed")


def test_a_holder_that_was_killed_on_this_machine_need_not_be_waited_for(
    settings: Settings, holder: subprocess.Popen[str], run_id: str, work: str
) -> None:
    holder.kill()
    holder.wait()
    with transaction() as db:
        long = text("update leases set expires_at = clock_timestamp() + interval '1 hour' where work = :work")
        db.execute(long, {"work": work})
    with transaction() as db:
        assert leases.displace(db, run_id)
        assert store.take(db, work, run_id, holder="another", ttl_s=60)


def test_nobody_displaces_a_process_that_may_be_alive(run_id: str, work: str) -> None:
    take(work, run_id)
    with transaction() as db:
        assert not leases.displace(db, run_id)
    expire(work)
    with transaction() as db:
        assert leases.displace(db, run_id)


def test_a_run_that_ends_by_itself_while_the_sweeper_looks_stays_as_it_ended(
    settings: Settings, run_id: str, work: str
) -> None:
    token = take(work, run_id)
    assert token is not None
    with transaction() as db:
        minute_ago = text("clock_timestamp() - interval '1 minute'")
        db.execute(update(LeaseRow).where(LeaseRow.work == work).values(expires_at=minute_ago))

    def sweep() -> None:
        with suppress(PrefectError):  # there is none
            sweeping.turn(settings)

    thread = threading.Thread(target=sweep)
    with transaction() as db:  # the run's own end, late; the sweeper has seen it as lost by then
        assert store.renew(db, work, token, ttl_s=60) is False
        runs.change_run(db, run_id, state="completed")
        store.release(db, work, token)
        thread.start()
        wait_for_a_lock(thread)
    thread.join()
    assert state_of(run_id) == "completed"


@pytest.mark.parametrize(("state", "then"), [("running", "cancelled"), ("paused", "cancelled"), ("failed", "failed")])
def test_only_a_run_that_was_still_to_end_is_ended_for_its_process(run_id: str, state: str, then: str) -> None:
    with transaction() as db:
        runs.change_run(db, run_id, state=state)
        assert runs.end_lost(db, run_id, state="cancelled") is (state != then)
    assert state_of(run_id) == then


def test_a_released_lease_is_free_at_once(settings: Settings, run_id: str, work: str) -> None:
    leases.acquire(work, run_id, settings)
    leases.release()
    assert not leases.holds(run_id)
    assert take(work, str(uuid.uuid4())) is not None


def test_a_wish_to_cancel_reaches_the_holder(settings: Settings, run_id: str, work: str) -> None:
    leases.acquire(work, run_id, settings)
    leases.check()
    with transaction() as db:
        runs.change_run(db, run_id, cancel_requested=True)
    deadline = time.monotonic() + 30
    while not leases.stopping():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(RunCancelled, match=f"headrace resume {run_id[:8]}"):
        leases.check()


def test_every_connection_limits_locks_statements_and_idleness_and_asks_whether_its_peer_lives(ledger: str) -> None:
    limits = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "tcp_keepalives_idle")
    with transaction() as db:
        shown = {name: db.scalar(text(f"show {name}")) for name in (*limits, "tcp_user_timeout")}
    assert not {"0", "0ms", "0s"} & {str(value) for value in shown.values()}


def kill_own_backend(db: Session) -> None:
    """As an administrator does; the next statement finds a broken connection."""
    own = db.scalar(text("select pg_backend_pid()"))
    with engine_for(database_url()).begin() as other:
        other.execute(text("select pg_terminate_backend(:pid)"), {"pid": own})


def test_work_is_done_again_when_its_connection_was_killed(run_id: str) -> None:
    tries: list[int] = []

    def write(db: Session) -> str:
        tries.append(1)
        runs.change_run(db, run_id, state="tried")
        if len(tries) < 3:
            kill_own_backend(db)
        return "done"

    assert retried(write) == "done"
    assert (len(tries), state_of(run_id)) == (3, "tried")


def test_what_another_try_cannot_help_is_tried_once(run_id: str) -> None:
    tries: list[int] = []

    def wrong(db: Session) -> None:
        tries.append(1)
        db.execute(text("select 1 / 0"))

    with pytest.raises(StoreError, match="division by zero"):
        retried(wrong)
    assert len(tries) == 1


def test_patience_with_a_postgres_that_is_away_ends(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_STORE_PATIENCE_S", "0.5")
    tries: list[int] = []

    def write(db: Session) -> None:
        tries.append(1)
        kill_own_backend(db)
        db.execute(text("select 1"))

    with pytest.raises(StoreError):
        retried(write)
    assert len(tries) > 1
