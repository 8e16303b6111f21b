"""Reading the views as the role that may do nothing else: what the dashboard sees of the ledger."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from domain.errors import SchemaMismatch, StoreError
from infra.db import revisions
from infra.settings import load_settings

_LIMITS = {
    "default_transaction_read_only": "on",
    "statement_timeout": "20s",
    "search_path": "views",
    "timezone": "UTC",  # pages say UTC and cut days; a server, database or role may be set to another zone
    "max_parallel_workers_per_gather": "2",
    "work_mem": "64MB",  # a million rows of two runs are joined without sorting them on disk
}
POOL = {"pool_size": 3, "max_overflow": 5, "pool_timeout": 30}
"""Connections kept, and more at a time; who has waited for one longer than so many seconds is told so."""
Value = str | int | float | bool | None
_checked: set[str] = set()  # addresses whose views were seen to be those of this code


def read(query: str, given: Mapping[str, Value] | None = None) -> list[dict[str, Any]]:
    """The rows of a query on the schema `views`, columns by name; `:name` in it stands for a given value.

    Raises StoreError when the database is away, refuses, takes more than 20 seconds, or has no connection left for us,
    and SchemaMismatch when the views are of another release.
    """
    url = _url()
    try:
        with _engine(url).connect() as connection:
            if url not in _checked:
                _check(connection)
                _checked.add(url)
            return [dict(row) for row in connection.execute(text(query), dict(given or {})).mappings()]
    except SQLAlchemyError as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        said = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise StoreError(f"the views cannot be read: {said}", hint="See `headrace status`.") from error


def check() -> None:
    """Make sure that the views are those of this code, as the first `read` does; raises SchemaMismatch, StoreError."""
    _checked.discard(_url())
    read("SELECT 1 AS there")


def _check(connection: Connection) -> None:
    laid = connection.scalar(text("SELECT obj_description(to_regnamespace('views'), 'pg_namespace')"))
    if laid != revisions.views_digest():
        said = "of another release than this code" if laid else "not there yet"
        fix = "Bring them there with `headrace migrate` of the newer release, and use that release here too."
        raise SchemaMismatch(f"the dashboard's views are {said}.", hint=fix)


def _url() -> str:
    url = load_settings().reader_url
    if not url:
        raise StoreError(
            "no database is configured for the dashboard",
            hint="Start the stack with `headrace up`, or set HEADRACE_READER_URL as docs/operations.md says.",
        )
    return url


@cache
def _engine(url: str) -> Engine:
    options = " ".join(f"-c {name}={value}" for name, value in _LIMITS.items())
    return create_engine(
        url,
        pool_pre_ping=True,
        **POOL,
        connect_args={"connect_timeout": 5, "application_name": "headrace-dashboard", "options": options},
    )
