"""The dashboard's role: it sees the views, nothing else, and changes nothing; the views follow their files."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from domain.errors import SchemaMismatch, StoreError
from infra import postgres
from infra.db import reader
from infra.db.session import migrate, transaction
from infra.db.store import views
from infra.settings import Settings


def test_it_reads_the_views(run_id: str) -> None:
    found = reader.read("SELECT run_id, kind, state FROM runs WHERE run_id = :run", {"run": run_id})
    assert found == [{"run_id": run_id, "kind": "optimize", "state": "running"}]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM public.runs",
        "SELECT * FROM public.completions",
        "CREATE TABLE views.mine (x int)",
        "DELETE FROM views.runs",
        "SELECT pg_read_file('/etc/hostname')",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SET default_transaction_read_only = off; CREATE TEMP TABLE mine AS SELECT 1; DELETE FROM public.runs",
    ],
)
def test_it_may_do_nothing_else(ledger: str, statement: str) -> None:
    with pytest.raises(StoreError, match=r"permission denied|read-only|must be superuser|cannot insert"):
        reader.read(statement)


def test_its_password_file_knows_no_other_password(home: Settings, ledger: str) -> None:
    lines = postgres.reader_passfile(home).read_text().splitlines()
    assert [line.split(":")[3] for line in lines] == [postgres.READER]
    url = os.environ["HEADRACE_READER_URL"].replace("+psycopg", "")
    with psycopg.connect(url, passfile=str(postgres.reader_passfile(home))) as db:
        assert db.execute("SELECT current_user").fetchone() == (postgres.READER,)


@pytest.fixture
def other_files(ledger: str, tmp_path: Path) -> Iterator[Path]:
    """A copy of the view files that a test may change; afterwards the views are as they were."""
    reader.check()
    for file in views.FILES.glob("*.sql"):
        (tmp_path / file.name).write_text(file.read_text())
    yield tmp_path
    migrate()


def test_views_are_made_anew_when_a_file_changes_and_only_then(other_files: Path) -> None:
    with transaction() as db:
        assert not views.lay(db, other_files)
    (other_files / "99_more.sql").write_text("CREATE VIEW views.more AS SELECT 42 AS answer, 'a%b' AS sign;")
    with transaction() as db:
        assert views.lay(db, other_files)
        assert not views.lay(db, other_files)
    assert reader.read("SELECT * FROM more") == [{"answer": 42, "sign": "a%b"}]
    migrate()
    with pytest.raises(StoreError, match="does not exist"):
        reader.read("SELECT * FROM more")


def test_views_of_another_release_are_refused(other_files: Path) -> None:
    (other_files / "99_more.sql").write_text("CREATE VIEW views.more AS SELECT 42 AS answer;")
    with transaction() as db:
        views.lay(db, other_files)
    with pytest.raises(SchemaMismatch, match=r"another release.*headrace migrate"):
        reader.check()
    with pytest.raises(SchemaMismatch):
        reader.read("SELECT * FROM more")
    with transaction() as db:
        views.drop(db)
    with pytest.raises(SchemaMismatch, match="not there yet"):
        reader.read("SELECT 1 AS there")
    migrate()
    assert reader.read("SELECT 1 AS there") == [{"there": 1}]


def test_a_broken_file_leaves_the_views_as_they_were(other_files: Path) -> None:
    (other_files / "99_more.sql").write_text("CREATE VIEW views.more AS SELECT * FROM public.nothing;")
    with pytest.raises(StoreError, match="nothing"), transaction() as db:
        views.lay(db, other_files)
    assert reader.read("SELECT count(*) >= 0 AS there FROM runs") == [{"there": True}]


def test_times_are_utc_whatever_the_database_is_set_to(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ledger.replace("+psycopg", "")
    with psycopg.connect(ours, autocommit=True) as db:
        db.execute("ALTER DATABASE headrace SET timezone TO 'Asia/Tokyo'")
    try:
        monkeypatch.setenv("HEADRACE_READER_URL", f"{os.environ['HEADRACE_READER_URL']}?sslmode=prefer")  # made anew
        with psycopg.connect(ours) as db:
            assert db.execute("SHOW timezone").fetchone() == ("Asia/Tokyo",)
        (found,) = reader.read("SELECT current_setting('timezone') AS zone, now() AS at")
        assert (found["zone"], found["at"].utcoffset()) == ("UTC", timedelta())
    finally:
        with psycopg.connect(ours, autocommit=True) as db:
            db.execute("ALTER DATABASE headrace RESET timezone")


def test_no_connection_left_is_said_as_every_other_failure(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_READER_URL", f"{os.environ['HEADRACE_READER_URL']}?gssencmode=disable")  # made anew
    for name, value in {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0}.items():
        monkeypatch.setitem(reader.POOL, name, value)
    with ThreadPoolExecutor(3) as readers:
        asked = [readers.submit(reader.read, "SELECT pg_sleep(2)") for _ in range(3)]
        failed = [error for each in asked if (error := each.exception())]
    assert failed
    assert all(isinstance(error, StoreError) and "QueuePool" in str(error) for error in failed)
