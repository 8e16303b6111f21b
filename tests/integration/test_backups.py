"""The drill: a backup of the running stack, restored into an empty one elsewhere, where a run replays as it did."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from domain.errors import InputError
from infra import backups, ports, postgres, restoring, stack
from infra.db.session import transaction
from infra.db.store import runs
from infra.exchange import import_runs
from infra.settings import Settings
from infra.versions import code_version
from tests.conftest import OTHERS_NAMES
from tests.integration.recorded_runs import FILE, ROOT, run_of

ROUTE = run_of("route")
OTHERS = ("prefect", "mlflow", "phoenix")
ROWS = "SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {} t"


@contextmanager
def _of(settings: Settings, database: str) -> Generator[psycopg.Connection[tuple[object, ...]]]:
    port = ports.remembered(settings)["postgres"]
    url = f"postgresql://{database}@127.0.0.1:{port}/{database}"
    with psycopg.connect(url, passfile=str(postgres.passfile(settings)), autocommit=True) as db:
        yield db


def _digests(settings: Settings) -> dict[str, object]:
    """Every table of the ledger, and one of each other database, by what it holds."""
    found: dict[str, object] = {}
    with _of(settings, "headrace") as db:
        tables = db.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").fetchall()
        for (table,) in tables:
            found[str(table)] = db.execute(ROWS.format(table).encode()).fetchone()
    for name in OTHERS:
        with _of(settings, name) as db:
            found[name] = db.execute(ROWS.format("kept").encode()).fetchone()
    return found


@pytest.fixture(scope="module")
def filled(home: Settings, ledger: str) -> Iterator[Settings]:
    """The shared stack with a recorded run in its ledger, something in the other databases, and artifacts."""
    import_runs(FILE)
    with transaction() as db:
        runs.add_summary(db, ROUTE, {"code": code_version()})
    artifact = home.home / "mlartifacts" / "drill" / "model.json"
    artifact.parent.mkdir(parents=True)
    artifact.write_text('{"kept": true}')
    for name in OTHERS:
        with _of(home, name) as db:
            db.execute("CREATE TABLE kept (id int PRIMARY KEY, said text)")
            db.execute("INSERT INTO kept SELECT n, 'row ' || n FROM generate_series(1, 50) n")
    yield home
    for name in OTHERS:
        with _of(home, name) as db:
            db.execute("DROP TABLE kept")
    artifact.unlink()
    artifact.parent.rmdir()


@pytest.fixture(scope="module")
def backup(filled: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of it."""
    folder = tmp_path_factory.mktemp("backups") / "first"
    backups.back_up(filled, folder, _nothing)
    return folder


@pytest.fixture(scope="module")
def elsewhere(defaults: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A home in which nothing has been yet, as on another machine."""
    fresh = defaults.model_copy(update={"home": tmp_path_factory.mktemp("elsewhere") / "home", "port_postgres": 27600})
    yield fresh
    stack.down(fresh)


def _headrace(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line as people use it, with nothing of the shared stack in its surroundings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS_NAMES)}
    folders = {name: os.environ[name] for name in ("HEADRACE_ENVS", "HEADRACE_WEIGHTS")}
    own = {"HEADRACE_HOME": str(settings.home), "HEADRACE_PORT_POSTGRES": str(settings.port_postgres)}
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *words],
        cwd=ROOT,
        env={**kept, **folders, **own, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def _ignore(_state: stack.ServiceState) -> None:
    pass


def test_nothing_that_is_there_is_replaced_unasked(backup: Path, elsewhere: Settings) -> None:
    stack.up(elsewhere, only={"postgres"}, report=_ignore)
    artifact = elsewhere.home / "mlartifacts" / "kept.txt"
    artifact.parent.mkdir(parents=True)
    artifact.write_text("kept")
    with _of(elsewhere, "mlflow") as db:
        db.execute("CREATE TABLE runs AS SELECT 1 AS kept")
    assert _headrace(elsewhere, "migrate").returncode == 0
    notice = "INSERT INTO notices (endpoint, key, event, payload) VALUES ('here', 'one', 'run.failed', '{}')"
    with _of(elsewhere, "headrace") as db:
        db.execute(notice.encode())

    refused = _headrace(elsewhere, "restore", str(backup))

    assert refused.returncode == 2
    assert "not empty: database headrace, database mlflow, folder mlartifacts" in refused.stderr
    with _of(elsewhere, "mlflow") as db:
        db.execute("DROP TABLE runs")
    with _of(elsewhere, "headrace") as db:
        db.execute("DELETE FROM notices")
    artifact.unlink()


def test_a_run_replays_where_its_backup_was_restored(filled: Settings, backup: Path, elsewhere: Settings) -> None:
    before = _digests(filled)

    restored = _headrace(elsewhere, "restore", str(backup))

    assert restored.returncode == 0, restored.stderr
    assert _digests(elsewhere) == before
    assert (elsewhere.home / "mlartifacts" / "drill" / "model.json").read_text() == '{"kept": true}'
    replayed = _headrace(elsewhere, "replay", ROUTE, "--json")
    assert replayed.returncode == 0, replayed.stdout[-2000:] + replayed.stderr
    assert json.loads(replayed.stdout)["identical"]
    refused = _headrace(elsewhere, "restore", str(backup))
    assert refused.returncode == 2
    assert "not empty" in refused.stderr
    assert _headrace(elsewhere, "restore", str(backup), "--force").returncode == 0
    assert _digests(elsewhere) == before


def _names(settings: Settings) -> set[str]:
    with backups.server(settings) as db:
        return {str(name) for (name,) in db.execute("SELECT datname FROM pg_database WHERE NOT datistemplate")}


def _without(backup: Path, name: str) -> None:
    """Take a part out of a manifest, as if its file had been laid beside the others afterwards."""
    manifest = json.loads((backup / "manifest.json").read_text())
    manifest["parts"] = [part for part in manifest["parts"] if part["name"] != name]
    (backup / "manifest.json").write_text(json.dumps(manifest))


def test_a_restore_that_fails_late_leaves_what_was_there(backup: Path, elsewhere: Settings, tmp_path: Path) -> None:
    true = backups.check(backup).revision
    with _of(elsewhere, "headrace") as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
        backups.back_up(elsewhere, tmp_path / "wrong", _nothing)
        db.execute("UPDATE alembic_version SET version_num = %s", [true])
    manifest = tmp_path / "wrong" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"9999"', f'"{true}"'))
    before = _digests(elsewhere)

    failed = _headrace(elsewhere, "restore", str(tmp_path / "wrong"), "--force")

    assert failed.returncode == 1
    assert "newer release" in failed.stderr
    assert _digests(elsewhere) == before
    assert (elsewhere.home / "mlartifacts" / "drill" / "model.json").is_file()
    assert _names(elsewhere) == {"postgres", *postgres.DATABASES}
    assert not list(elsewhere.home.glob(".*.restored"))


def test_a_backup_may_do_what_its_own_role_may_and_brings_what_it_lists(elsewhere: Settings, tmp_path: Path) -> None:
    with _of(elsewhere, "mlflow") as db:
        # Looked up anew by whoever restores it.
        db.execute("CREATE MATERIALIZED VIEW restored_by AS SELECT session_user::text AS name")
    backups.back_up(elsewhere, tmp_path / "made", _nothing)
    _without(tmp_path / "made", "mlartifacts.tar")

    restored = _headrace(elsewhere, "restore", str(tmp_path / "made"), "--force")

    assert restored.returncode == 0, restored.stderr
    with _of(elsewhere, "mlflow") as db:
        assert db.execute("SELECT name FROM restored_by").fetchone() == ("mlflow",)
    assert list((elsewhere.home / "mlartifacts").iterdir()) == []


def test_folders_are_exchanged_all_or_none(tmp_path: Path) -> None:
    places = {tmp_path / name: tmp_path / f".{name}.restored" for name in ("one", "two")}
    for place, new in places.items():
        for folder, said in ((place, "old"), (new, "new")):
            folder.mkdir()
            (folder / "said").write_text(said)

    read: list[str] = []

    with pytest.raises(FileNotFoundError), restoring.exchanged(places):
        read.extend((place / name).read_text() for name in ("said", "nothing") for place in places)
    assert read == ["new", "new"]
    assert [(place / "said").read_text() for place in places] == ["old", "old"]
    (tmp_path / ".two.restored").rename(tmp_path / "gone")
    with pytest.raises(OSError, match="two"), restoring.exchanged(places):
        pass
    assert [(place / "said").read_text() for place in places] == ["old", "old"]


def test_a_ledger_elsewhere_is_not_taken_for_ours(filled: Settings, backup: Path, tmp_path: Path) -> None:
    url = "postgresql+psycopg://somebody@db.example:5432/theirs"
    theirs = filled.model_copy(update={"database_url": url})
    with pytest.raises(InputError, match="DATABASE_URL"):
        backups.back_up(theirs, tmp_path / "made", _nothing)
    with pytest.raises(InputError, match="DATABASE_URL"):
        restoring.restore(theirs, backup, _nothing, force=True)
    assert not (tmp_path / "made").exists()

    said: list[str] = []
    backups.check_ours(filled.model_copy(update={"prefect_api_url": "https://prefect.example/api"}), said.append)
    assert said == ["prefect is elsewhere: what it holds needs a backup of its own"]


def test_a_backup_is_whole_and_for_its_owner_alone(backup: Path) -> None:
    made = backups.check(backup)

    assert {part.name for part in made.parts} >= {f"{name}.dump" for name in postgres.DATABASES} | {"mlartifacts.tar"}
    assert backup.stat().st_mode & 0o077 == 0
    assert [path.name for path in backup.parent.iterdir()] == [backup.name]
    with pytest.raises(InputError, match="something already"):
        backups.back_up(Settings(), backup, _nothing)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def _of_a_newer_release(file: Path) -> None:
    file.write_text(file.read_text().replace('"revision": "0', '"revision": "9'))


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (_flip, "headrace.dump"),
        (_flip, "mlartifacts.tar"),
        (Path.unlink, "mlflow.dump"),
        (Path.unlink, "manifest.json"),
        (_of_a_newer_release, "manifest.json"),
    ],
)
def test_a_damaged_backup_is_refused(backup: Path, tmp_path: Path, damage: Callable[[Path], None], name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(backup, copy)
    backups.check(copy)
    damage(copy / name)

    with pytest.raises(InputError):
        backups.check(copy)


def test_nothing_is_restored_while_servers_run(running: object, home: Settings, backup: Path) -> None:
    with pytest.raises(InputError, match="still running"):
        restoring.restore(home, backup, _nothing, force=True)


def _nothing(_what: str) -> None:
    pass
