"""H1: a ledger with data in it moves to a new schema whole or not at all, whenever the migrator dies."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from alembic import command
from alembic.config import Config

from domain.errors import SchemaMismatch
from infra.db.session import MIGRATIONS, database_url, engine_for, migrate
from infra.exchange import import_runs
from tests.integration.recorded_runs import FILE, ROOT, run_of

OLDEST, OF_TOMORROW = "0001", "9999"
PATIENCE_S = 60.0
POINTS = {
    "before anything": "SELECT pg_advisory_lock(7243107)",
    "at a column of the first step": "LOCK TABLE bundles IN ACCESS SHARE MODE",
    "when the first step is noted": "LOCK TABLE alembic_version IN SHARE MODE",
    "at a column of the second step": "LOCK TABLE completions IN ACCESS SHARE MODE",
    "at a reference of the second step": "LOCK TABLE dataset_versions IN ROW EXCLUSIVE MODE",
}
"""Where somebody's lock holds a migrator up, so that it can be killed just there."""
MIGRATE = "from infra.db.session import migrate; migrate()"


@pytest.fixture(scope="module")
def address(ledger: str) -> Iterator[str]:
    """A ledger of this file's own."""
    shared = os.environ["HEADRACE_DATABASE_URL"]
    name = f"migrations_{uuid.uuid4().hex[:8]}"
    server = shared.replace("+psycopg", "")
    with psycopg.connect(server, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}".encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_DATABASE_URL", f"{shared.rpartition('/')[0]}/{name}")
        migrate()
        import_runs(FILE)
        yield database_url().replace("+psycopg", "")
        engine_for(database_url()).dispose()
    with psycopg.connect(server, autocommit=True) as db:
        db.execute(f"DROP DATABASE {name}".encode())


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", database_url())
    return config


@pytest.fixture
def old(address: str) -> str:
    """The ledger with a recorded run in it, as the first release left it."""
    migrate()
    with psycopg.connect(address, autocommit=True) as db:
        db.execute("DROP SCHEMA IF EXISTS views CASCADE")
    command.downgrade(_alembic(), OLDEST)
    return address


def _columns(address: str) -> dict[str, list[str]]:
    query = (
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' "
        "AND table_name <> 'alembic_version' ORDER BY 1, ordinal_position"
    )
    found: dict[str, list[str]] = {}
    with psycopg.connect(address) as db:
        for table, column in db.execute(query):
            found.setdefault(table, []).append(column)
    return found


def _digests(address: str, columns: dict[str, list[str]]) -> dict[str, tuple[object, ...] | None]:
    """Every table by what it holds in these columns."""
    with psycopg.connect(address) as db:
        return {
            table: db.execute(
                f"SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) "  # noqa: S608
                f"FROM (SELECT {', '.join(names)} FROM {table}) t".encode()
            ).fetchone()
            for table, names in columns.items()
        }


def _version(address: str) -> str:
    with psycopg.connect(address) as db:
        row = db.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else ""


def _migrator() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", MIGRATE], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def _wait_until(held_up: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not held_up():
        assert time.monotonic() < deadline, "nobody is held up"
        time.sleep(0.05)


@pytest.mark.parametrize("point", POINTS)
def test_a_migrator_that_is_killed_leaves_what_was_there(old: str, point: str, report: Callable[[str], None]) -> None:
    columns = _columns(old)
    before = _digests(old, columns)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with psycopg.connect(old) as holder, psycopg.connect(old, autocommit=True) as watcher:
        holder.execute(POINTS[point].encode())
        migrator = _migrator()
        _wait_until(lambda: watcher.execute(waits).fetchone() == (1,))
        migrator.kill()
        migrator.wait()
        holder.rollback()
        holder.execute("SELECT pg_advisory_unlock_all()")
        holder.commit()
        _wait_until(lambda: watcher.execute(waits).fetchone() == (0,))
        others = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> ALL(ARRAY[%s, %s]) AND application_name <> 'headrace'"
        )
        pids = [holder.info.backend_pid, watcher.info.backend_pid]
        _wait_until(lambda: watcher.execute(others.encode(), pids).fetchone() == (0,))

    assert _version(old) == OLDEST
    assert _digests(old, _columns(old)) == before
    migrate()
    assert _version(old) > OLDEST
    assert _digests(old, columns) == before
    report(f"killed {point}: {sum(int(str(d[0])) for d in before.values() if d)} rows as they were, again to the end")


def test_two_migrators_at_once_do_it_once(old: str) -> None:
    columns = _columns(old)
    before = _digests(old, columns)
    both = [_migrator(), _migrator()]

    assert [migrator.wait(PATIENCE_S) for migrator in both] == [0, 0]
    assert _digests(old, columns) == before


def test_one_step_down_and_up_again_loses_nothing_of_what_is_left(address: str) -> None:
    migrate()
    with psycopg.connect(address, autocommit=True) as db:
        db.execute("DROP SCHEMA IF EXISTS views CASCADE")
    head = _version(address)
    while _version(address) != OLDEST:
        command.downgrade(_alembic(), "-1")
        columns = _columns(address)
        kept = _digests(address, columns)
        command.upgrade(_alembic(), "+1")
        assert _digests(address, columns) == kept
        command.downgrade(_alembic(), "-1")
    migrate()
    assert _version(address) == head


def test_of_earlier_runs_those_that_deliveries_started_are_known(address: str) -> None:
    migrate()
    delivered, known = run_of("route"), "SELECT id, started_by FROM runs"
    with psycopg.connect(address, autocommit=True) as db:
        db.execute("DROP SCHEMA IF EXISTS views CASCADE")
        command.downgrade(_alembic(), "0006")
        start = "INSERT INTO starts (key, flow, parameters, run_id) VALUES ('k', 'route-batch', '{}', %s)"
        db.execute(start, [delivered])
        migrate()
        found = dict(db.execute(known).fetchall())
        db.execute("DELETE FROM starts")
    assert len(found) > 1
    assert found == {run_id: "delivery" if run_id == delivered else None for run_id in found}


def _headrace(*words: str) -> tuple[int, str]:
    """Exit code and complaints of the command line, which is every time a process that has seen no ledger yet."""
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=5 * PATIENCE_S,
    )
    return done.returncode, done.stderr


@pytest.fixture
def said_to_be(address: str) -> Iterator[Callable[[str], None]]:
    """Have the ledger say that it is at another revision; afterwards it says the truth."""
    migrate()
    true = _version(address)

    def say(revision: str) -> None:
        with psycopg.connect(address, autocommit=True) as db:
            db.execute("UPDATE alembic_version SET version_num = %s", [revision])

    yield say
    say(true)


@pytest.mark.parametrize(
    ("revision", "why", "fix"), [(OF_TOMORROW, "newer release", "restore the backup"), (OLDEST, OLDEST, "migrate")]
)
@pytest.mark.parametrize(
    "words", [("webhooks", "deliveries"), ("webhooks", "serve", "--port", "0"), ("migrate", "--check")]
)
def test_code_of_another_release_refuses_to_start(
    said_to_be: Callable[[str], None], words: tuple[str, ...], revision: str, why: str, fix: str
) -> None:
    said_to_be(revision)

    code, said = _headrace(*words)

    assert code == 1
    assert why in said
    assert fix in said
    assert "Traceback" not in said


def test_a_newer_ledger_is_not_migrated_by_older_code(said_to_be: Callable[[str], None], address: str) -> None:
    said_to_be(OF_TOMORROW)

    with pytest.raises(SchemaMismatch, match=r"newer release.*docs/operations"):
        migrate()
    code, said = _headrace("migrate")

    assert (code, "newer release" in said, "Traceback" in said) == (1, True, False)
    assert _version(address) == OF_TOMORROW


def test_an_older_ledger_is_refused_until_it_is_migrated(old: str) -> None:
    assert _headrace("migrate", "--check")[0] == 1
    assert _version(old) == OLDEST
    assert _headrace("migrate") == (0, "")
    assert _headrace("migrate", "--check") == (0, "")
    assert _headrace("webhooks", "deliveries") == (0, "")
