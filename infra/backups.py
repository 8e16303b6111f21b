"""Backups of the embedded stack: four databases and the servers' files, with their digests.

A backup is a folder: `<database>.dump` (pg_dump's own format), `<folder>.tar`, and `manifest.json` with each file's
sha256. It can be taken while everything runs. It holds rows, prompts and answers as they are, and no secret of ours.
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from pydantic import TypeAdapter

from domain.errors import HeadraceError, InputError, Place, StoreError
from infra import credentials, ports, postgres, stack
from infra.db import revisions
from infra.settings import Settings

MANIFEST, FORMAT = "manifest.json", 1
FOLDERS = ("mlartifacts", "phoenix")
"""Folders of the home that hold what MLflow and Phoenix keep outside their databases."""
ORDER = postgres.DATABASES
"""The ledger first: what it names in the others was there before. Files last: by then what a database names is one."""
_CHUNK = 1 << 20


class BackupError(HeadraceError):
    """A dump or a restore did not work; what was there before is still there."""

    hint = "Read what it says; nothing was replaced."


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a backup."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds; `revision` is the schema of the ledger, `server` the version of Postgres."""

    format: int
    made_at: str
    revision: str
    server: int
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """Size of all parts."""
        return sum(part.bytes for part in self.parts)


Say = Callable[[str], None]


def back_up(settings: Settings, folder: Path, say: Say) -> Manifest:
    """Write a backup into a new folder, whole or not at all; raises InputError, StoreError, BackupError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(Place(str(folder)), "there is something already", hint="Name a folder that is not there yet.")
    check_ours(settings, say)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True, mode=0o700)
    try:
        version, revision = _state_of(settings)
        for name in ORDER:
            say(f"database {name}")
            # The views are made anew from their files, and grants with them.
            arguments = ["--format=custom", "--no-owner", "--no-privileges", "--exclude-schema=views"]
            run(settings, "pg_dump", postgres.SUPERUSER, *arguments, f"--file={part / name}.dump", name)
        for name in FOLDERS:
            if (settings.home / name).is_dir():
                say(f"files {name}")
                _pack(settings.home / name, part / f"{name}.tar")
        files = [_part(file) for file in sorted(part.iterdir())]
        made = Manifest(FORMAT, datetime.now(UTC).isoformat(timespec="seconds"), revision, version, tuple(files))
        credentials.dump(part / MANIFEST, asdict(made))
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return made


def check(folder: Path) -> Manifest:
    """Read a backup's manifest and compare every file with it; raises InputError."""
    try:
        found = TypeAdapter(Manifest).validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(Place(str(folder)), "this is no backup", hint="Name a folder of `headrace backup`.") from error
    if found.format != FORMAT:
        raise InputError(Place(str(folder)), f"its format is {found.format}, this code reads {FORMAT}")
    missing = {f"{name}.dump" for name in ORDER} - {part.name for part in found.parts}
    for part in found.parts:
        file = folder / part.name
        if Path(part.name).name != part.name or not file.is_file() or _part(file) != part:
            missing.add(part.name)
    if missing:
        said = f"not as it was written: {', '.join(sorted(missing))}"
        raise InputError(Place(str(folder)), said, hint="Take another backup; nothing was replaced.")
    if found.revision not in revisions.known():
        said = f"the ledger's schema {found.revision!r} is of a newer release"
        raise InputError(Place(str(folder)), said, hint="Restore it with the release that made it.")
    return found


def check_ours(settings: Settings, say: Say) -> None:
    """Say which servers are the user's own, and are left alone; raises InputError when the ledger is."""
    elsewhere = stack.replaced(settings)
    if not settings.embedded or "postgres" in elsewhere:
        hint = "Use your server's own backups; docs/operations.md has the commands."
        setting = "DATABASE_URL" if settings.database_url else "HEADRACE_EMBEDDED"
        raise InputError(Place(setting), "the ledger is elsewhere; only an embedded one is backed up", hint=hint)
    for name in sorted(elsewhere):
        say(f"{name} is elsewhere: what it holds needs a backup of its own")


def server(settings: Settings, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
    """A connection to the embedded server as its superuser; raises StoreError when it is not up."""
    port = ports.remembered(settings).get("postgres")
    if port is None or not postgres.answers(settings, port):
        raise StoreError("Postgres is not up", hint="Start it with `headrace up`.")
    url = f"postgresql://{postgres.SUPERUSER}@127.0.0.1:{port}/{database}"
    return psycopg.connect(url, passfile=str(postgres.passfile(settings)), autocommit=True)


def _state_of(settings: Settings) -> tuple[int, str]:
    with server(settings, "headrace") as db:
        if db.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
            raise BackupError("there is no ledger yet", hint="Start the stack with `headrace up`.")
        row = db.execute("SELECT version_num FROM alembic_version").fetchone()
        return db.info.server_version, str(row[0]) if row else ""


def run(settings: Settings, program: str, role: str, *arguments: str) -> None:
    """Run one of Postgres' own programs as a role, whose password is in a file; raises BackupError."""
    port = str(ports.remembered(settings)["postgres"])
    command = [str(postgres.binaries() / program), "-h", "127.0.0.1", "-p", port, "-U", role, "-w"]
    environment: Mapping[str, str] = {**os.environ, "PGPASSFILE": str(postgres.passfile(settings))}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BackupError(f"{program} ended with {done.returncode}: {done.stderr.strip().splitlines()[:1]}")


def _pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname=".", filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return member if member.isfile() or member.isdir() else None


def _part(file: Path) -> Part:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return Part(file.name, file.stat().st_size, digest.hexdigest())
