"""B2: Postgres commits, and the answer to every fifth COMMIT is lost with its connection."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from infra.db.session import database_url, engine_for, retried
from infra.llm.scripted import Script, ScriptedServer
from tests.faults.invariants import check, one, paid
from tests.faults.material import RULES, write_workload
from tests.faults.nemesis import Foreman, behind
from tests.faults.proxy import Plan, Proxy

pytestmark = pytest.mark.timeout(300)
ROWS = 500
EVERY = 5


def test_answers_to_commit_that_are_lost_lose_no_row_and_double_none(
    foreman: Foreman, ledger: str, folder: Path, tmp_path: Path
) -> None:
    run_id, plan = str(uuid.uuid4()), Plan("cut", every=EVERY)
    to = ledger.rpartition("@")[2].partition("/")[0]
    with ScriptedServer(Script(rules=RULES, latency_s=0.01)) as server, Proxy(to, plan) as proxy:
        workload = write_workload(folder, strong=[server.base_url], rows=ROWS)
        foreman.start(workload, run_id, **behind(proxy, ledger, tmp_path)).finish()
        calls = server.calls
    verdict = check(run_id)
    print(f"\nB2: {plan.done} of {plan.seen} answers to COMMIT lost; {verdict}; {calls.requests} calls")
    assert plan.done >= 10
    assert verdict.holds()
    assert (verdict.done, calls.requests) == (ROWS, ROWS)
    assert paid(run_id) == (ROWS, calls.prompt_tokens, calls.completion_tokens)


@pytest.fixture
def tables(ledger: str) -> Iterator[tuple[str, str]]:
    """Two tables of numbers: one without a key, one with."""
    names = ("b2_without_key", "b2_with_key")
    engine = engine_for(ledger)
    with engine.begin() as db:
        db.execute(text(f"CREATE TABLE {names[0]} (n int); CREATE TABLE {names[1]} (n int PRIMARY KEY)"))
    yield names
    with engine.begin() as db:
        db.execute(text(f"DROP TABLE {names[0]}, {names[1]}"))


def test_the_same_without_a_key_doubles_every_row_whose_answer_was_lost(
    ledger: str, tables: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, keyed = tables
    plan = Plan("cut", every=EVERY)
    with Proxy(ledger.rpartition("@")[2].partition("/")[0], plan) as proxy, monkeypatch.context() as patch:
        for name, value in behind(proxy, ledger, tmp_path).items():
            patch.setenv(name, value)

        def write(n: int) -> None:
            def work(db: Session) -> None:
                db.execute(text(f"INSERT INTO {bare} VALUES (:n)"), {"n": n})  # noqa: S608 - our own names
                db.execute(text(f"INSERT INTO {keyed} VALUES (:n) ON CONFLICT DO NOTHING"), {"n": n})  # noqa: S608

            retried(work)

        for n in range(40):
            write(n)
        engine_for(database_url()).dispose()
    doubles = one(f"SELECT count(*) - count(DISTINCT n) FROM {bare}")  # noqa: S608
    print(f"\nB2 unaided: {plan.done} answers lost, {doubles} duplicates without a key, ", end="")
    assert one(f"SELECT count(*) FROM {keyed}") == 40  # noqa: S608
    print("0 with one")
    assert doubles == plan.done > 5
