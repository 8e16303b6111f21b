"""Retention: what nothing needs goes, whole and in batches; what stays replays and reconciles as before."""

import json
import os
import time
import uuid
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import func, select, text, update

from domain.datasets import Record, Split
from domain.errors import NotFound, Place
from domain.retentions import PRUNED, Need
from infra import pruning, stopping
from infra.db.session import database_url, engine_for, migrate, transaction
from infra.db.store import leases, runs
from infra.db.store import pruning as store
from infra.db.tables import AttemptRow, CompletionRow, DatasetVersionRow, FrameRow, ImportedAnswerRow, RecordRow, RunRow
from infra.doctor import diagnose
from infra.exchange import import_runs
from infra.replaying import replay
from infra.requeueing import requeue
from infra.snapshots import store_snapshot
from tests.integration.recorded_runs import EXAMPLE, FILE, run_of

OPTIMIZE, ROUTE = run_of("optimize"), run_of("route")
DAYS = timedelta(days=90)


@pytest.fixture(scope="module")
def database(ledger: str) -> Iterator[None]:
    """A ledger of this file's own: retention looks at all of it, leases of others' runs included."""
    shared = os.environ["HEADRACE_DATABASE_URL"]
    name = f"pruning_{uuid.uuid4().hex[:8]}"
    server = shared.replace("+psycopg", "")
    with psycopg.connect(server, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}".encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_DATABASE_URL", f"{shared.rpartition('/')[0]}/{name}")
        migrate()
        import_runs(FILE)
        yield
        engine_for(database_url()).dispose()
    with psycopg.connect(server, autocommit=True) as db:
        db.execute(f"DROP DATABASE {name}".encode())


@pytest.fixture
def clean(database: None) -> Iterator[None]:
    """The recorded runs alone."""
    yield
    with transaction() as db:
        ids = list(db.scalars(select(RunRow.id).where(RunRow.id.not_in([OPTIMIZE, ROUTE]))))
        for table in ("leases", "changes", "deliveries", "starts", "notices"):
            db.execute(text(f"DELETE FROM {table}"))  # noqa: S608
        db.execute(text("DELETE FROM promotions WHERE run_id = ANY(:ids)"), {"ids": ids})
        db.execute(text("DELETE FROM tunings WHERE run_id = ANY(:ids)"), {"ids": ids})
        db.execute(text("DELETE FROM audited_rows"))
        if ids:
            store.mark(db, ids)
        for run_id in ids:
            while store.remove_some(db, run_id, most=10_000):
                pass


pytestmark = pytest.mark.usefixtures("clean")


def clone(run_id: str = ROUTE, *, days: float = 200, **changes: Any) -> str:
    """A run like a recorded one, that ended so long ago."""
    new = str(uuid.uuid4())
    ended = datetime.now(UTC) - timedelta(days=days)
    with transaction() as db:
        for table in (RunRow, *store.RUNS_OWN):
            key = "id" if table is RunRow else "run_id"
            columns = [column.name for column in table.__table__.columns]
            chosen = {name: name for name in columns} | {key: ":new"}
            if table is AttemptRow:
                chosen["attempt_id"] = "gen_random_uuid()"
            if table is RunRow:
                chosen |= {"ended_at": ":ended"}
            names, values = ", ".join(chosen), ", ".join(chosen.values())
            query = f"INSERT INTO {table.__tablename__} ({names}) SELECT {values} FROM {table.__tablename__} WHERE {key} = :old"  # noqa: E501, S608
            given = {"new": new, "old": run_id, "ended": ended}
            db.execute(text(query), {name: value for name, value in given.items() if f":{name}" in query})
        if changes:
            runs.change_run(db, new, **changes)
    return new


def prune(*, workload: str | None = None, dry_run: bool = False) -> pruning.Pruned:
    return pruning.prune(DAYS, workload=workload, dry_run=dry_run, say=print)


def known() -> set[str]:
    with transaction() as db:
        return set(db.scalars(select(RunRow.id)))


def counts() -> dict[str, int]:
    with transaction() as db:
        return {
            table.__tablename__: db.scalar(select(func.count()).select_from(table)) or 0
            for table in (RunRow, *store.RUNS_OWN, CompletionRow, FrameRow, RecordRow, DatasetVersionRow)
        }


def healthy() -> bool:
    with transaction() as db:
        found = [diagnose(db, run) for run in runs.load_runs(db, limit=100)]
    return all(diagnosis.rows.holds and diagnosis.healthy for diagnosis in found)


def test_what_nothing_needs_goes_and_what_stays_is_untouched() -> None:
    before = counts()
    old, recent = clone(), clone(days=80)

    pruned = prune()

    assert [run.id for run in pruned.runs] == [old]
    assert known() == {OPTIMIZE, ROUTE, recent}
    assert {size.table: size.rows for size in pruned.sizes}["outcomes"] > 0
    assert healthy()
    for run_id in (OPTIMIZE, ROUTE):
        assert replay(run_id, EXAMPLE).seen.identical
    assert prune().runs == ()
    with transaction() as db:
        store.mark(db, [recent])
    assert [run.id for run in prune().runs] == [recent]
    assert counts() == before


def test_a_dry_run_says_the_same_and_leaves_it() -> None:
    clone()
    before = counts()
    said = prune(dry_run=True)

    assert counts() == before
    done = prune()
    assert (said.runs, said.sizes) == (done.runs, done.sizes)
    after = counts()
    assert said.rows == sum(before.values()) - sum(after.values())


@pytest.mark.parametrize(("need", "state"), [(Need.OPEN, "paused"), (Need.OPEN, "running"), (Need.NEWEST, "completed")])
def test_a_run_that_may_go_on_or_is_compared_with_stays(need: Need, state: str) -> None:
    if need is Need.NEWEST:
        clone(workload="another", state=state)
    else:
        clone(state=state)

    assert prune().kept[need] >= 1
    assert len(known()) == 3


@pytest.mark.parametrize("need", [Need.CERTIFICATE, Need.PROMOTION, Need.AUDIT, Need.COMPILE])
def test_a_run_that_something_names_stays(need: Need) -> None:
    old = clone(OPTIMIZE if need is Need.COMPILE else ROUTE)
    names = {
        Need.CERTIFICATE: "INSERT INTO tunings (run_id, workload, dataset_version, evidence, number, delta) "
        "SELECT id, workload, dataset_version, 'e', 1, 0.05 FROM runs WHERE id = :run",
        Need.PROMOTION: "INSERT INTO promotions (run_id, bundle_hash, workload, passed, reasons) "
        "SELECT :run, hash, workload, false, '{}' FROM bundles LIMIT 1",
        Need.AUDIT: "INSERT INTO audited_rows (bundle_hash, record_key, place, audit_run, route_run, record_id, kept) "
        "SELECT hash, 'k', 0, run_id, :run, 'r', true FROM bundles LIMIT 1",
        Need.COMPILE: "SELECT id FROM runs WHERE id = :run",
    }
    with transaction() as db:
        db.execute(text(names[need]), {"run": old})

    assert prune().kept[need] == 1
    assert old in known()
    assert replay(ROUTE, EXAMPLE).seen.identical


def test_a_batch_of_a_bundle_in_use_stays_until_an_audit_has_looked_at_it() -> None:
    old = clone()
    champion = "INSERT INTO aliases SELECT workload, 'champion', hash FROM bundles WHERE hash = (SELECT bundle_hash FROM runs WHERE id = :run)"  # noqa: E501
    with transaction() as db:
        db.execute(text(champion), {"run": old})
    try:
        assert prune().kept[Need.UNAUDITED] == 1
        assert old in known()
        look = "INSERT INTO audits (run_id, workload, bundle_hash, verdict, state, report, routes, usd) SELECT :other, workload, bundle_hash, 'holds', '{}', '{}', jsonb_build_array(id), 0 FROM runs WHERE id = :run"  # noqa: E501
        with transaction() as db:
            db.execute(text(look), {"run": old, "other": ROUTE})
            assert Need.UNAUDITED not in {run.id: run for run in store.load_past(db)}[old].needs
            db.rollback()  # an audit is never deleted
    finally:
        with transaction() as db:
            db.execute(text("DELETE FROM aliases"))

    assert [run.id for run in prune().runs] == [old]


def test_a_run_stays_whose_calls_stand_behind_answers_that_were_taken_over() -> None:
    """Its answer to a row was asked again: the first answer is known from its attempts alone."""
    old = clone()
    with transaction() as db:
        some = "(SELECT attempt_id FROM attempts WHERE run_id = :run LIMIT 1)"
        db.execute(text(f"UPDATE attempts SET request_hash = 'before' WHERE attempt_id = {some}"), {"run": old})  # noqa: S608

    assert prune().kept[Need.REUSED] == 1
    assert old in known()


def test_answers_and_snapshots_that_nobody_refers_to_go() -> None:
    before = counts()
    long_ago = datetime.now(UTC) - timedelta(days=200)
    with transaction() as db:
        db.execute(
            text(
                "INSERT INTO completions SELECT (jsonb_populate_record(c, jsonb_build_object("
                "'request_hash', 'f' || right(c.request_hash, 62) || 'x', 'frame_hash', 'lonely', "
                "'created_at', CAST(:at AS timestamptz)))).* FROM completions c LIMIT 7"
            ),
            {"at": long_ago},
        )
        db.execute(text("INSERT INTO request_frames (hash, body) VALUES ('lonely', '{}')"))
        db.execute(
            text("INSERT INTO dataset_versions VALUES ('lonely', 'u', 1, 0, :at), ('newer', 'u', 0, 0, now())"),
            {"at": long_ago},
        )
        db.execute(
            text(
                "INSERT INTO records (dataset_version, key, ordinal, record_id, split, inputs, file) "
                "VALUES ('lonely', 'k', 0, 'r', 'incoming', '{}', 'f')"
            )
        )
        used = "(SELECT request_hash FROM answers LIMIT 5)"
        db.execute(text(f"UPDATE completions SET created_at = :at WHERE request_hash IN {used}"), {"at": long_ago})  # noqa: S608

    pruned = prune()

    assert {size.table: size.rows for size in pruned.sizes} == {
        "records": 1,
        "dataset_versions": 1,
        "completions": 7,
    }
    after = counts()
    assert after.pop("dataset_versions") == before.pop("dataset_versions") + 1
    assert after == before


def test_beside_a_run_under_way_its_workload_and_all_answers_stay() -> None:
    old, other = clone(), clone(workload="another")
    newest = clone(workload="another", days=100)
    running = clone(days=0, state="running", ended_at=None)
    with transaction() as db:
        db.execute(
            text("INSERT INTO leases VALUES ('w', :run, 1, 'here', now() + interval '1 minute')"), {"run": running}
        )
        db.execute(text("INSERT INTO request_frames (hash, body) VALUES ('lonely', '{}')"))
        # Else the run under way could take its answers over at any moment.
        db.execute(text("DELETE FROM run_deployments WHERE run_id = :other"), {"other": other})

    pruned = prune()

    assert [run.id for run in pruned.runs] == [other]
    assert {old, newest, running} < known()
    assert not pruned.quiet
    with transaction() as db:
        assert db.get(FrameRow, "lonely") is not None
        db.execute(text("DELETE FROM request_frames WHERE hash = 'lonely'"))


def test_one_that_was_killed_is_gone_on_with_and_harms_nothing_meanwhile() -> None:
    before = counts()
    old = clone()
    with transaction() as db:
        store.mark(db, [old])
    for _ in range(5):
        with transaction() as db:
            store.remove_some(db, old, most=10)
    assert healthy()

    assert [run.id for run in prune().runs] == [old]
    assert counts() == before


def test_nobody_goes_on_with_one_that_is_being_forgotten() -> None:
    old = clone()
    with transaction() as db:
        store.mark(db, [old])
        store.remove_some(db, old, most=10)

    with pytest.raises(NotFound, match="forgotten"):
        stopping.reopen(old, max_usd=None, max_tokens=None)
    with pytest.raises(NotFound, match="forgotten"):
        requeue(old)
    with pytest.raises(NotFound, match="forgotten"), transaction() as db:
        runs.open_run(db, old, kind="route", workload="w", workload_hash="0" * 64, spec={}, meters={})
    with transaction() as db:  # as the hook of a flow does that failed because of this
        runs.close_run(db, old, state="failed", meters={})
    with transaction() as db:
        assert runs.load_run(db, old).state == PRUNED


def test_of_a_run_that_is_not_marked_nothing_goes() -> None:
    old = clone()
    before = counts()
    with transaction() as db:
        assert store.remove_some(db, old, most=10) == 0

    assert counts() == before


def test_a_snapshot_that_is_stored_again_stays_for_the_run_to_come() -> None:
    rows = [Record("again", {"text": "again"}, None, Split.INCOMING, Place("f", 1), "again")]
    version, new = store_snapshot(rows, uri="u")
    with transaction() as db:
        db.execute(text("UPDATE dataset_versions SET created_at = '2020-01-01' WHERE hash = :v"), {"v": version})

    assert (new, store_snapshot(rows, uri="u")) == (True, (version, False))
    assert prune().sizes == ()
    with transaction() as db:
        db.execute(text("UPDATE dataset_versions SET created_at = '2020-01-01' WHERE hash = :v"), {"v": version})
    assert {size.table for size in prune().sizes} == {"records", "dataset_versions"}


def test_answers_that_came_with_an_imported_run_stay_with_it(tmp_path: Path) -> None:
    """The run that compiled stayed in the other ledger: no call here names the answers behind its priors."""
    file, long_ago = tmp_path / "run.zip", datetime.now(UTC) - timedelta(days=200)
    with zipfile.ZipFile(FILE) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            lines = old.read(name).splitlines(keepends=True)
            kept = [line for line in lines if name != "attempts.jsonl" or json.loads(line)["stage"] != "compile"]
            new.writestr(name, b"".join(kept))
    with transaction() as db:
        db.execute(text("DELETE FROM attempts WHERE stage = 'compile'"))
    before = counts()
    try:
        import_runs(file)
        with transaction() as db:
            needed = db.scalar(select(func.count(ImportedAnswerRow.request_hash.distinct()))) or 0
            db.execute(update(CompletionRow).values(created_at=long_ago))

        assert prune().sizes == ()
        assert needed > 0
        assert counts()["completions"] == before["completions"]
        assert replay(OPTIMIZE, EXAMPLE).seen.identical
    finally:
        with transaction() as db:
            db.execute(text("DELETE FROM imported_answers"))
        import_runs(FILE)


SETTLED = """
INSERT INTO deliveries (key, source, delivery_id, body_hash, event, datasets, received_at)
SELECT k, 's', k, 'b', 'e', '[]', CASE WHEN k = 'new' THEN now() ELSE :at END
FROM unnest(ARRAY['empty', 'first', 'last', 'waits', 'new']) AS k;
INSERT INTO changes (delivery_key, dataset, state, run_id, settled_at)
SELECT k, 'd', s, r, CASE WHEN s <> 'waiting' THEN :at + m * interval '1 hour' END
FROM (VALUES ('first', 'started', 'r1', 1), ('first', 'joined', 'r1', 2), ('last', 'started', 'r2', 3),
             ('last', 'unchanged', NULL, 4), ('waits', 'waiting', NULL, 0)) AS v (k, s, r, m);
INSERT INTO starts (key, flow, parameters, run_id, created_at)
VALUES ('s1', 'f', '{}', 'r1', :at), ('s2', 'f', '{}', 'r2', :at), ('s3', 'f', '{}', 'r3', now());
INSERT INTO notices (endpoint, key, event, payload, state, settled_at)
SELECT 'n', s || a, 'e', '{}', s, CASE WHEN s = 'waiting' THEN NULL WHEN a = 'old' THEN :at ELSE now() END
FROM unnest(ARRAY['delivered', 'dead', 'waiting']) AS s, unnest(ARRAY['old', 'new']) AS a;
"""


def test_messages_settled_long_ago_go_but_not_the_last_start_of_a_dataset() -> None:
    with transaction() as db:
        for statement in SETTLED.strip().split(";\n"):
            db.execute(text(statement.rstrip(";")), {"at": datetime.now(UTC) - timedelta(days=200)})

    assert {"deliveries", "changes", "starts", "notices"}.isdisjoint(
        size.table for size in prune(workload="support-triage").sizes
    )
    said = prune(dry_run=True)
    assert {size.table: size.rows for size in prune().sizes} == {
        "starts": 1,
        "changes": 3,
        "deliveries": 2,
        "notices": 2,
    }
    assert prune().sizes == ()
    with transaction() as db:
        left = {
            table: set(db.scalars(text(f"SELECT {key} FROM {table}")))  # noqa: S608
            for table, key in (("deliveries", "key"), ("changes", "state"), ("starts", "key"), ("notices", "key"))
        }
    assert left == {
        "deliveries": {"last", "waits", "new"},
        "changes": {"started", "waiting"},
        "starts": {"s2", "s3"},
        "notices": {"deliverednew", "deadnew", "waitingold", "waitingnew"},
    }
    assert said.rows == 8


def waits_for(table: str) -> None:
    """Until somebody waits for a lock on a table."""
    deadline = time.monotonic() + 60
    waiting = text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = CAST(:name AS regclass))")
    while True:
        with transaction() as db:
            if db.scalar(waiting, {"name": table}):
                return
        assert time.monotonic() < deadline, f"nobody waits for {table}"
        time.sleep(0.02)


def test_nobody_waits_for_it_while_it_looks() -> None:
    old = clone()
    with transaction() as db:
        token = leases.take(db, "beside", "a run", holder="a test", ttl_s=60)
        assert token is not None
    with ThreadPoolExecutor(1) as pool:
        with transaction() as db:
            db.execute(text("LOCK TABLE attempts IN ACCESS EXCLUSIVE MODE"))
            pruning_meanwhile = pool.submit(prune)
            waits_for("attempts")
            with transaction() as other:  # as a healthy run does every five seconds
                other.execute(text("SET LOCAL lock_timeout = '2s'"))
                assert leases.renew(other, "beside", token.token, ttl_s=60) is False
        assert [run.id for run in pruning_meanwhile.result().runs] == [old]


def test_what_has_come_to_be_needed_since_the_look_stays() -> None:
    """A run begins between the look and the mark; it answers as the old one did, in another workload."""
    old, named, gone = clone(), clone(), clone(state="failed")
    with transaction() as db:
        db.execute(text("DELETE FROM run_deployments WHERE run_id IN (:named, :gone)"), {"named": named, "gone": gone})
    with ThreadPoolExecutor(1) as pool:
        with transaction() as db:
            leases.take(db, "beginning", "a run", holder="a test", ttl_s=60)
            pruning_meanwhile = pool.submit(prune)
            waits_for("leases")
            running = clone(workload="another", days=0, state="running", ended_at=None)
            with transaction() as other:
                name_it = "INSERT INTO promotions (run_id, bundle_hash, workload, passed, reasons) SELECT :run, hash, workload, false, '{}' FROM bundles LIMIT 1"  # noqa: E501
                other.execute(text(name_it), {"run": named})
        pruned = pruning_meanwhile.result()

    assert [run.id for run in pruned.runs] == [gone]
    assert pruned.kept[Need.UNDER_WAY] == 2
    assert known() == {OPTIMIZE, ROUTE, old, named, running}


def test_answers_stay_when_a_run_was_there_since_they_were_looked_for() -> None:
    with transaction() as db:
        db.execute(text("INSERT INTO request_frames (hash, body) VALUES ('lonely', '{}')"))
    with ThreadPoolExecutor(1) as pool:
        with transaction() as db:
            db.execute(text("LOCK TABLE request_frames IN ACCESS EXCLUSIVE MODE"))
            pruning_meanwhile = pool.submit(prune)
            waits_for("request_frames")
            clone(days=0)
        assert not pruning_meanwhile.result().quiet
    with transaction() as db:
        assert db.get(FrameRow, "lonely") is not None
        db.execute(text("DELETE FROM request_frames WHERE hash = 'lonely'"))


def test_only_one_workload_when_told_so() -> None:
    clone()
    first = clone(workload="another")
    clone(workload="another", days=100)

    assert [run.id for run in prune(workload="another").runs] == [first]
