"""The views that the dashboard reads: files of SQL in `infra/db/views`, laid whole into a schema of their own.

They hold no data, so they have no migrations: when one file differs from what is there, all are made anew.
"""

from pathlib import Path

from sqlalchemy import text
from sqlalchemy.orm import Session

from infra.db import revisions

SCHEMA, READER = "views", "headrace_reader"
"""READER is the role that may look at them and at nothing else; without such a role nobody but we can."""
FILES = revisions.VIEWS
_LOCK = 0x48454144


def lay(db: Session, folder: Path = FILES) -> bool:
    """Make the schema as the files say; True when it was not so yet. A second caller waits for the first."""
    db.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    wanted = revisions.views_digest(folder)
    fresh = db.scalar(text("SELECT obj_description(to_regnamespace(:name), 'pg_namespace')"), {"name": SCHEMA})
    if fresh != wanted:
        drop(db)
        db.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        for file in sorted(folder.glob("*.sql")):
            db.connection().exec_driver_sql(file.read_text().replace("%", "%%"))
        db.execute(text(f"COMMENT ON SCHEMA {SCHEMA} IS '{wanted}'"))
    if db.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :name"), {"name": READER}):
        _open(db)
    return fresh != wanted


def drop(db: Session) -> None:
    """Take the views away, as a migration must that changes what they read."""
    db.execute(text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))


def _open(db: Session) -> None:
    database = db.connection().dialect.identifier_preparer.quote(db.scalar(text("SELECT current_database()")) or "")
    db.execute(text(f"GRANT CONNECT ON DATABASE {database} TO {READER}"))
    db.execute(text(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {READER}"))
    db.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA {SCHEMA} TO {READER}"))
