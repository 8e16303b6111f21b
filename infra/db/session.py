"""The one engine, and sessions on it; schema upgrades by Alembic."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from domain.errors import StoreError
from infra.settings import load_settings

MIGRATIONS = Path(__file__).parent / "migrations"

# A dead peer is noticed in half a minute, a forgotten lock or transaction cannot hold others up for ever.
CONNECT_ARGS = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "headrace",
    "options": "-c lock_timeout=15s -c statement_timeout=300s -c idle_in_transaction_session_timeout=30s",
}


def database_url() -> str:
    """The ledger's address; raises StoreError when neither the user nor the stack has given one."""
    url = load_settings().database_url
    if url is None:
        raise StoreError("no database is configured", hint="Start the stack with `headrace up` or set DATABASE_URL.")
    return url


@cache
def engine_for(url: str) -> Engine:
    """One pooled engine a process and address."""
    return create_engine(url, pool_pre_ping=True, pool_size=5, max_overflow=10, connect_args=CONNECT_ARGS)


@contextmanager
def transaction() -> Generator[Session]:
    """A session whose work is committed as a whole at the end, or not at all; raises StoreError."""
    factory = sessionmaker(engine_for(database_url()), expire_on_commit=False)
    try:
        with factory.begin() as session:
            yield session
    except OperationalError as error:
        raise StoreError(f"Postgres is not available: {_first_line(error)}") from error
    except DBAPIError as error:
        raise StoreError(f"Postgres refused: {_first_line(error)}") from error


def migrate() -> None:
    """Bring the schema to the newest version; a second migrator waits for the first."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", database_url().replace("%", "%%"))
    command.upgrade(config, "head")


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if error.orig else type(error).__name__
