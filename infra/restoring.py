"""Restoring a backup: loaded beside what is there, brought to today's schema there, and exchanged for it at once."""

import os
import shutil
import tarfile
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from psycopg import sql

from domain.errors import InputError, Place, StoreError
from infra import ports, postgres, stack
from infra.backups import FOLDERS, ORDER, BackupError, Manifest, Say, check, check_ours, run, server
from infra.db import session
from infra.settings import Settings
from infra.supervision import Supervisor


def restore(settings: Settings, folder: Path, say: Say, *, force: bool) -> Manifest:
    """Put a backup in the place of what the stack holds; all databases and folders are replaced, or none.

    Postgres is started when it is not up, and the ledger brought to this code's schema. Raises InputError when the
    backup is damaged, when servers still run, when the ledger is elsewhere, or when something is here already and
    `force` is not given; BackupError and StoreError.
    """
    found = check(folder)
    check_ours(settings, say)
    up = {name for name, process in Supervisor(settings).processes().items() if process.up} - {"postgres"}
    if up:
        raise InputError(Place(", ".join(sorted(up))), "still running", hint="First stop everything: headrace down")
    os.environ.update(stack.up(settings, only={"postgres"}, report=_quiet).environment)
    if not force and (full := _full(settings)):
        hint = "Restore into another HEADRACE_HOME, or replace what is there with --force."
        raise InputError(Place(str(settings.home)), f"not empty: {', '.join(full)}", hint=hint)
    listed = {part.name for part in found.parts}
    fresh = {settings.home / name: settings.home / f".{name}.restored" for name in FOLDERS}
    try:
        for name in ORDER:
            say(f"database {name}")
            _load(settings, name, folder / f"{name}.dump")
        for place, new in fresh.items():
            archive = f"{place.name}.tar"
            say(f"files {place.name}")
            _unpack(new, folder / archive if archive in listed else None)
        _migrate(settings, _beside("headrace"))
        _exchange(settings, fresh)
    except (psycopg.Error, tarfile.TarError, OSError) as error:
        raise BackupError(str(error).strip().partition("\n")[0]) from error
    finally:
        _drop(settings, map(_beside, ORDER), fresh.values())
    _drop(settings, map(_before, ORDER), map(_old, fresh))
    return found


@contextmanager
def exchanged(fresh: Mapping[Path, Path]) -> Generator[None]:
    """Move new folders to their places, and what was there beside them (`.name.before`).

    When that or the block fails, everything is as it was before. Raises OSError.
    """
    moves: list[tuple[Path, Path]] = []
    for place, new in fresh.items():
        shutil.rmtree(_old(place), ignore_errors=True)
        moves += [(place, _old(place))] if place.exists() else []
        moves += [(new, place)]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
        yield
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        raise


def _quiet(_state: object) -> None:
    pass


def _full(settings: Settings) -> list[str]:
    """The databases and folders that hold anything at all."""
    full = [f"database {name}" for name in ORDER if _has_rows(settings, name)]
    return full + [f"folder {name}" for name in FOLDERS if any(map(Path.is_file, (settings.home / name).rglob("*")))]


def _has_rows(settings: Settings, name: str) -> bool:
    tables = (
        "SELECT schemaname, tablename FROM pg_tables "
        "WHERE schemaname NOT IN ('pg_catalog', 'information_schema') AND tablename NOT LIKE 'alembic_version%'"
    )
    with server(settings, name) as db:
        for schema, table in db.execute(tables).fetchall():
            any_row = sql.SQL("SELECT 1 FROM {} LIMIT 1").format(sql.Identifier(str(schema), str(table)))
            if db.execute(any_row).fetchone():
                return True
    return False


def _load(settings: Settings, name: str, dump: Path) -> None:
    """Load a dump into a database of its own beside the one in use, as the role that owns it: a dump is a program."""
    fresh = sql.Identifier(_beside(name))
    with server(settings) as db:
        db.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(fresh))
        db.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(fresh, sql.Identifier(name)))
        db.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(fresh))
    arguments = ["--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction"]
    run(settings, "pg_restore", name, *arguments, f"--dbname={_beside(name)}", str(dump))


def _unpack(fresh: Path, archive: Path | None) -> None:
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if archive is not None:
        with tarfile.open(archive) as tar:
            tar.extractall(fresh, filter="data")


def _migrate(settings: Settings, database: str) -> None:
    url = _url(settings, database)
    try:
        session.migrate(url)
    finally:
        session.engine_for(url).dispose()


def _exchange(settings: Settings, folders: Mapping[Path, Path]) -> None:
    """Give what was loaded the place of what is in use; that is kept beside it."""
    session.engine_for(_url(settings, "headrace")).dispose()
    with server(settings) as db:
        for name in ORDER:
            db.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(_before(name))))
            for database in (name, _beside(name)):
                db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [database])
        # Renaming takes place whole: the catalogue is as transactional as everything else.
        with exchanged(folders), db.transaction():
            for name in ORDER:
                now, old, new = (sql.Identifier(each) for each in (name, _before(name), _beside(name)))
                db.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(now, old))
                db.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(new, now))


def _drop(settings: Settings, databases: Iterable[str], folders: Iterable[Path]) -> None:
    """Let go what is not in use; what cannot go now is in nobody's way, and goes with the next restore."""
    with suppress(psycopg.Error, StoreError), server(settings) as db:
        for name in databases:
            db.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _url(settings: Settings, database: str) -> str:
    port = ports.remembered(settings)["postgres"]
    return postgres.url(port=port, database=database, role="headrace", driver="postgresql+psycopg")


def _beside(name: str) -> str:
    return f"{name}_restored"


def _before(name: str) -> str:
    return f"{name}_before"


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.before")
