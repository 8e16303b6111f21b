"""The ledger's tables on a real Postgres: migrations, natural keys, and the equation that no row escapes."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import func, inspect, select, text
from sqlalchemy.engine import make_url

from domain.datasets import BadRow, Record, Split
from domain.errors import Place, StoreError
from domain.ledgers import Attempt, OutcomeClass, Stage
from domain.outcomes import Outcome, Unanswered
from domain.promotions import former_champion
from domain.requests import Completion, Reading, Request, Usage
from domain.workloads import TierName
from infra.db.session import MIGRATIONS, engine_for, migrate, transaction
from infra.db.store import answers, calls, datasets, promotions, replays, runs
from infra.db.store.answers import StoredAnswer, StoredQuarantine
from infra.db.tables import AnswerRow, AttemptRow, Base, CompletionRow
from infra.snapshots import take_snapshot
from tests.integration.begun_runs import open_run

VERSION = "select version_num from alembic_version"


@pytest.fixture
def empty_database(ledger: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a new database without a table; the settings name it."""
    name = f"t{uuid.uuid4().hex}"
    with engine_for(ledger).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"create database {name}"))
    url = make_url(ledger).set(database=name).render_as_string(hide_password=False)
    monkeypatch.setenv("HEADRACE_DATABASE_URL", url)
    return url


def tables(url: str) -> set[str]:
    engine = engine_for(url)
    found = set(inspect(engine).get_table_names())
    engine.dispose()
    return found


def test_migrations_make_every_table_of_an_empty_database_and_then_change_nothing(empty_database: str) -> None:
    assert tables(empty_database) == set()
    migrate()
    assert tables(empty_database) == {*Base.metadata.tables, "alembic_version"}
    with transaction() as db:
        before = db.scalar(text(VERSION))
        db.add(CompletionRow(**completion_columns("kept")))
    migrate()
    with transaction() as db:
        assert db.scalar(text(VERSION)) == before
        assert db.scalar(select(CompletionRow.text)) == "kept"
    engine_for(empty_database).dispose()


def completion_columns(said: str) -> dict[str, object]:
    return {
        "request_hash": "a" * 64,
        "sample_index": 0,
        "model": "m",
        "text": said,
        "finish_reason": "stop",
        "label_logprobs": {},
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "cached_tokens": 0,
        "frame_hash": "b" * 64,
        "last_message": {"role": "user", "content": "q"},
    }


def test_two_migrators_at_once_leave_one_schema_and_no_error(empty_database: str) -> None:
    words = [sys.executable, "-c", "from infra.db.session import migrate; migrate()"]
    both = [subprocess.Popen(words, env=dict(os.environ), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert tables(empty_database) == {*Base.metadata.tables, "alembic_version"}


def test_promotions_from_before_the_audit_are_in_it_and_going_back_works(empty_database: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", empty_database)
    command.upgrade(config, "0001")
    engine = engine_for(empty_database)  # a transaction of ours refuses this schema
    run = "insert into runs (id, kind, workload, workload_hash, spec, state, meters_before) values "
    values = "(:id, 'optimize', 'w', 'h', '{}', 'completed', '{}')"
    with engine.begin() as db:
        for number, (bundle, passed) in enumerate([("a", True), ("b", False), ("c", True), ("c", True)]):
            db.execute(text(run + values), {"id": f"r{number}"})
            body = {"hash": bundle, "run": f"r{number}", "passed": passed, "at": f"2026-01-0{number + 1}"}
            db.execute(
                text(
                    "insert into bundles (hash, workload, run_id, body) values (:hash, 'w', :run, '{}') "
                    "on conflict do nothing"
                ),
                body,
            )
            db.execute(
                text(
                    "insert into promotions (run_id, bundle_hash, workload, passed, reasons, at) "
                    "values (:run, :hash, 'w', :passed, '{}', cast(:at as timestamptz))"
                ),
                body,
            )
        db.execute(text("insert into aliases (workload, alias, bundle_hash) values ('w', 'champion', 'c')"))
    migrate()
    with transaction() as db:
        moves = [entry.move for entry in promotions.load_entries(db, "w")]
    assert [(move.from_hash, move.to_hash) for move in moves] == [(None, "a"), ("a", "c"), ("c", "c")]
    assert former_champion(moves, "c") == "a"
    engine_for(empty_database).dispose()


def test_the_models_are_exactly_what_the_migrations_make(ledger: str) -> None:
    with engine_for(ledger).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_first_answer_to_a_request_stays(ledger: str) -> None:
    request = Request.of({"model": "m", "messages": [{"role": "user", "content": uuid.uuid4().hex}]}, None)
    for said in ("first", "second"):
        completion = Completion(request.hash, said, "stop", Usage(3, 2, 1), {"topic": {"a": -0.5}}, fingerprint="f")
        with transaction() as db:
            calls.save_completions(db, [(request, completion)])
    with transaction() as db:
        (kept,) = calls.load_completions(db, [request.hash, "f" * 64]).values()
        assert calls.load_request(db, request.hash) == request
    assert kept == Completion(request.hash, "first", "stop", Usage(3, 2, 1), {"topic": {"a": -0.5}}, fingerprint="f")


@pytest.mark.parametrize(
    "readings",
    [
        None,
        {},
        {
            "topic": Reading(-0.1, -0.1, 1, allowed=0.1 + 0.2),
            "null": Reading(-1e-7, -9999.0, 3),
            "é": Reading(0.0, 0.0, 1),
        },
    ],
)
def test_readings_come_back_as_they_were_for_the_row_path_and_for_replay(
    ledger: str, readings: dict[str, Reading] | None
) -> None:
    request = Request.of({"model": "m", "messages": [{"role": "user", "content": uuid.uuid4().hex}]}, None)
    said = Completion(request.hash, "x", "stop", Usage(3, 2, 1), {}, readings=readings)
    with transaction() as db:
        calls.save_completions(db, [(request, said)])
    with transaction() as db:
        (kept,) = calls.load_completions(db, [request.hash]).values()
        (replayed,) = replays.load_completions(db, [request.hash]).values()
    assert kept == said == replayed.completion


def attempt(attempt_id: str, *, prompt: int = 10, cached: bool = False) -> Attempt:
    return Attempt(
        attempt_id=attempt_id,
        stage=Stage.GENERATE,
        tier="cheap",
        record_key="k" * 64,
        request_hash="h" * 64,
        number=1,
        cached=cached,
        usage=Usage(prompt, 5, 2),
        seconds=0.5,
        usd=0.25,
        worker="ledger" if cached else "http://one/v1",
        outcome=OutcomeClass.ANSWERED,
    )


def test_an_attempt_recorded_twice_is_paid_once(run_id: str) -> None:
    once, other = attempt(str(uuid.uuid4())), attempt(str(uuid.uuid4()), prompt=7)
    for some in ([once], [once, other], [other]):
        with transaction() as db:
            calls.save_attempts(db, run_id, some)
    with transaction() as db:
        (spent,) = calls.spending(db, run_id)
    assert (spent.calls, spent.cached, spent.usage, spent.usd) == (2, 0, Usage(17, 10, 4), 0.5)


def test_a_look_up_in_the_ledger_is_counted_and_is_no_call(run_id: str) -> None:
    with transaction() as db:
        calls.save_attempts(db, run_id, [attempt(str(uuid.uuid4()), cached=True), attempt(str(uuid.uuid4()))])
        found = {part.worker: (part.calls, part.cached) for part in calls.spending(db, run_id)}
    assert found == {"ledger": (0, 1), "http://one/v1": (1, 0)}


def test_a_later_answer_of_a_tier_to_a_row_replaces_the_earlier(run_id: str) -> None:
    def said(output: dict[str, str] | None) -> StoredAnswer:
        return StoredAnswer("k", "cheap", "h" * 64, output, 0.5, reasks=0, tokens=3, usd=0.1, failed=None)

    for output in (None, {"topic": "a"}):
        with transaction() as db:
            answers.save_answers(db, run_id, [said(output)])
    with transaction() as db:
        assert answers.load_answers(db, run_id, "cheap") == {"k": said({"topic": "a"})}
        assert answers.load_answers(db, run_id, "strong") == {}


def test_more_rows_than_one_statement_takes_all_arrive_once(run_id: str) -> None:
    many = [
        StoredAnswer(f"{n:064x}", "cheap", "h" * 64, {"n": n}, None, reasks=0, tokens=0, usd=0.0, failed=None)
        for n in range(1_234)
    ]
    for _ in range(2):
        with transaction() as db:
            answers.save_answers(db, run_id, many)
    with transaction() as db:
        count = db.scalar(select(func.count()).select_from(AnswerRow).where(AnswerRow.run_id == run_id))
        assert count == len(many)


def test_nothing_of_a_failed_transaction_stays(run_id: str) -> None:
    def work() -> None:
        with transaction() as db:
            calls.save_attempts(db, run_id, [attempt(str(uuid.uuid4()))])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    with transaction() as db:
        count = db.scalar(select(func.count()).select_from(AttemptRow).where(AttemptRow.run_id == run_id))
        assert count == 0


def record(n: int) -> Record:
    return Record(f"id{n}", {"text": f"text {n}"}, {"topic": "a"}, Split.TEST, Place("rows.jsonl", n + 1))


@pytest.fixture
def snapshot(ledger: str) -> str:
    """A stored dataset version of five records and a bad row."""
    bad = BadRow(Place(f"{uuid.uuid4()}.jsonl", 6, field="text"), "is missing", "{}")
    rows = [*(record(n) for n in range(5)), bad]
    version, new = take_snapshot(open_run(), rows, uri="rows.jsonl", splits=[Split.TEST], max_rows=None)
    assert new
    return version


def outcome(n: int) -> Outcome:
    return Outcome(record(n).key, TierName.CHEAP, {"topic": "a"}, 0.9, escalated=False, usd=0.1)


def test_a_snapshot_is_stored_once_in_its_order_with_its_bad_rows(snapshot: str) -> None:
    with transaction() as db:
        rows = datasets.load_records(db, snapshot, Split.TEST)
        assert [row.record for row in rows] == [record(n) for n in range(5)]
        assert [row.key for row in datasets.load_records(db, snapshot, Split.TEST, first=1, limit=2)] == [
            record(1).key,
            record(2).key,
        ]
        assert datasets.split_sizes(db, snapshot) == {Split.TEST: 5}
        assert [bad.reason for bad in datasets.load_bad_rows(db, snapshot)] == ["is missing"]


def nothing(run_id: str, snapshot: str) -> None:
    pass


def some(run_id: str, snapshot: str) -> None:
    with transaction() as db:
        answers.save_settled(db, run_id, snapshot, [outcome(0), outcome(1), Unanswered(record(2).key, "no idea")])


def some_then_cancelled(run_id: str, snapshot: str) -> None:
    some(run_id, snapshot)
    with transaction() as db:
        runs.change_run(db, run_id, state="cancelled")


def everything(run_id: str, snapshot: str) -> None:
    some(run_id, snapshot)
    with transaction() as db:
        answers.save_settled(db, run_id, snapshot, [outcome(3), outcome(4)])


def everything_twice(run_id: str, snapshot: str) -> None:
    everything(run_id, snapshot)
    everything(run_id, snapshot)


@pytest.mark.parametrize(
    ("settle", "said"),
    [
        (nothing, "5 records = 0 outcomes + 0 quarantined + 0 cancelled + 5 pending"),
        (some, "5 records = 2 outcomes + 1 quarantined + 0 cancelled + 2 pending"),
        (some_then_cancelled, "5 records = 2 outcomes + 1 quarantined + 2 cancelled + 0 pending"),
        (everything, "5 records = 4 outcomes + 1 quarantined + 0 cancelled + 0 pending"),
        (everything_twice, "5 records = 4 outcomes + 1 quarantined + 0 cancelled + 0 pending"),
    ],
)
def test_rows_are_conserved(run_id: str, snapshot: str, settle: Callable[[str, str], None], said: str) -> None:
    take_all(run_id)
    settle(run_id, snapshot)
    settle(open_run(), snapshot)  # another run's rows are its own
    with transaction() as db:
        rows = runs.conservation(db, run_id)
    assert str(rows) == said
    assert rows.holds


def take_all(run_id: str) -> None:
    for _ in range(2):
        with transaction() as db:
            runs.take_rows(db, run_id, [(record(n).key, n) for n in range(5)])


def answered_and_quarantined(run_id: str, snapshot: str) -> None:
    with transaction() as db:
        answers.save_settled(db, run_id, snapshot, [outcome(0)])
        answers.save_quarantine(db, run_id, [StoredQuarantine(record(0).key, "validate", Place("f"), "why")])


def nobodys_row(run_id: str, snapshot: str) -> None:
    everything(run_id, snapshot)
    with transaction() as db:
        answers.save_quarantine(db, run_id, [StoredQuarantine("0" * 64, "validate", Place("f"), "why")])


@pytest.mark.parametrize("settle", [answered_and_quarantined, nobodys_row])
def test_a_row_counted_twice_or_taken_by_nobody_breaks_the_equation(
    run_id: str, snapshot: str, settle: Callable[[str, str], None]
) -> None:
    take_all(run_id)
    settle(run_id, snapshot)
    with transaction() as db:
        assert not runs.conservation(db, run_id).holds


def test_a_run_begun_again_keeps_its_first_readings_and_its_start(run_id: str) -> None:
    with transaction() as db:
        first = runs.load_run(db, run_id)
        runs.close_run(db, run_id, state="crashed", meters={"s": {"prompt": 5}})
        runs.add_summary(db, run_id, {"a": 1})
        runs.add_summary(db, run_id, {"b": 2})
    with transaction() as db:
        runs.open_run(db, run_id, kind="optimize", workload="w", workload_hash="0" * 64, spec={}, meters={"s": {}})
    with transaction() as db:
        again = runs.load_run(db, run_id)
    assert (again.state, again.meters_before, again.started_at) == ("running", first.meters_before, first.started_at)
    assert again.summary == {"a": 1, "b": 2}


def test_progress_is_one_line_a_stage(run_id: str) -> None:
    for stage, done in (("generate cheap", 1), ("generate strong", 0), ("generate cheap", 9)):
        with transaction() as db:
            runs.save_progress(db, run_id, stage, done=done, total=10, unit="rows")
    with transaction() as db:
        assert [(s.stage, s.done) for s in runs.load_progress(db, run_id)] == [
            ("generate cheap", 9),
            ("generate strong", 0),
        ]


def test_a_database_that_is_down_is_a_retryable_store_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:9/none")
    with pytest.raises(StoreError, match="not available") as caught, transaction() as db:
        db.execute(text("select 1"))
    assert caught.value.retryable
