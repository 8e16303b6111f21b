"""Which schema this code works with: the newest migration of the ledger, and the dashboard's views as files of SQL."""

import hashlib
from functools import cache
from pathlib import Path

from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.orm import Session

from domain.errors import SchemaMismatch

MIGRATIONS = Path(__file__).parent / "migrations"
VIEWS = Path(__file__).parent / "views"


@cache
def known() -> tuple[str, ...]:
    """The revisions that this code knows, the newest first."""
    return tuple(script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions())


def check(db: Session) -> None:
    """Raises SchemaMismatch unless the ledger is at the newest revision that this code knows."""
    found = None
    if db.scalar(text("SELECT to_regclass('alembic_version')")) is not None:
        found = db.scalar(text("SELECT version_num FROM alembic_version"))
    newest = known()[0]
    if found is None:
        raise SchemaMismatch("there is no ledger in this database yet.")
    if found not in known():
        raise SchemaMismatch(
            f"the ledger's schema is {found}, of a newer release than this code, which works with {newest}.",
            hint=SchemaMismatch.of_newer,
        )
    if found != newest:
        raise SchemaMismatch(f"the ledger's schema is {found}, and this code works with {newest}.")


def views_digest(folder: Path = VIEWS) -> str:
    """What the views' schema says of itself when it was laid from these files."""
    files = sorted(folder.glob("*.sql"))
    return hashlib.sha256("\0".join(f"{file.name}\0{file.read_text()}" for file in files).encode()).hexdigest()
