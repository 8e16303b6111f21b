"""Writing rows: a few by INSERT, many by COPY; doing it again is harmless either way."""

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from operator import itemgetter
from typing import Any, cast

import orjson
import psycopg
from psycopg import adapters
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.errors import CharacterNotInRepertoire, UntranslatableCharacter
from psycopg.pq import Format
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from infra.db.tables import Base

Row = Mapping[str, Any]

ROWS_A_STATEMENT = 500


def add(db: Session, table: type[Base], rows: Iterable[Row]) -> None:
    """Insert a few rows; those whose key exists already stay as they are."""
    for some in _batched(rows):
        db.execute(insert(table).values([dict(row) for row in some]).on_conflict_do_nothing())


def put(db: Session, table: type[Base], rows: Iterable[Row]) -> None:
    """Insert a few rows; those whose key exists already are overwritten."""
    keys = [column.name for column in table.__table__.primary_key]
    for some in _batched(rows):
        statement = insert(table).values([dict(row) for row in some])
        changed = {name: statement.excluded[name] for name in some[0] if name not in keys}
        db.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed))


def _batched(rows: Iterable[Row]) -> Iterator[list[Row]]:
    # itertools.batched needs Python 3.12.
    iterator = iter(rows)
    while some := list(islice(iterator, ROWS_A_STATEMENT)):
        yield some


def copy_new(db: Session, table: type[Base], rows: Iterable[Row]) -> int:
    """Insert rows by COPY; those whose key exists already, or came earlier in `rows`, stay as they are.

    Returns how many rows were inserted. `rows` are read one at a time and may not use `db` themselves; each must have
    the columns of the first, and columns that are not given get their default. Raises ValueError for a row that Postgres
    could not hold as it is (a NUL character, NaN in JSON), and SQLAlchemy's DBAPIError as any statement does.
    """
    return _copy(db, table, rows, overwrite=False)


def copy_over(db: Session, table: type[Base], rows: Iterable[Row]) -> int:
    """Insert rows by COPY; those whose key exists already are overwritten, and the last of a key in `rows` wins.

    Returns how many rows were inserted or changed: a row that stands there as it is counts as nothing. Otherwise as
    `copy_new`.
    """
    return _copy(db, table, rows, overwrite=True)


def _copy(db: Session, table: type[Base], rows: Iterable[Row], *, overwrite: bool) -> int:
    iterator = iter(rows)
    first = next(iterator, None)
    if first is None:
        return 0
    way = _way(table, tuple(first))
    connection = db.connection()
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    with _translated(connection, way), driver.cursor() as cursor:
        cursor.execute(way.stage)
        if _holds(cursor, way.is_used):  # only after an earlier call in this transaction; TRUNCATE takes milliseconds
            cursor.execute(way.empty)
        cursor.adapters.register_dumper(_Json, _Json)
        cursor.adapters.register_dumper(_UuidText, _UuidText)
        with cursor.copy(way.copy) as copy:
            copy.set_types(way.types)
            values, width = way.values, len(way.types)
            for row in chain((first,), iterator):
                if len(row) != width:
                    raise ValueError(f"a row for {way.table} has other columns than the first: {sorted(row)}")
                copy.write_row(values(row))
        if not overwrite:
            cursor.execute(way.insert_new)
        elif _holds(cursor, way.has_twins):
            cursor.execute(way.insert_last)
        else:
            cursor.execute(way.insert_over)
        return cursor.rowcount


def _holds(cursor: psycopg.Cursor[Any], question: bytes) -> bool:
    return cast("tuple[bool]", cursor.execute(question).fetchone())[0]


@dataclass(frozen=True, slots=True)
class _Way:
    """How rows with certain columns get into a table: the statements, the column types, the values of a row."""

    table: str
    types: tuple[str, ...]
    values: Callable[[Row], tuple[Any, ...]]
    stage: bytes
    is_used: bytes
    empty: bytes
    copy: bytes
    insert_new: bytes
    has_twins: bytes
    insert_over: bytes
    insert_last: bytes


@cache
def _way(table: type[Base], names: tuple[str, ...]) -> _Way:
    # Names of tables and columns are ours, never a user's; none needs quotes.
    name = table.__tablename__
    columns, keys = ", ".join(names), ", ".join(column.name for column in table.__table__.primary_key)
    staged = f"staged_{name}"
    others = [column for column in names if column not in table.__table__.primary_key]
    changed = ", ".join(f"{column} = excluded.{column}" for column in others)
    before, after = (", ".join(f"{of}.{column}" for column in others) for of in (name, "excluded"))
    # What stands there already is not written again: a repeated transaction leaves no dead rows behind.
    over = f"DO UPDATE SET {changed} WHERE ({before}) IS DISTINCT FROM ({after})" if others else "DO NOTHING"
    into = f"INSERT INTO {name} ({columns})"
    # ctid grows in the order of COPY: the table was emptied just before.
    last = f"SELECT DISTINCT ON ({keys}) {columns} FROM {staged} ORDER BY {keys}, ctid DESC"
    return _Way(
        table=name,
        types=tuple(_type_name(table, column) for column in names),
        values=cast("Callable[[Row], tuple[Any, ...]]", itemgetter(*names)) if len(names) > 1 else _only(names[0]),
        stage=f"CREATE TEMP TABLE IF NOT EXISTS {staged} (LIKE {name} INCLUDING DEFAULTS) ON COMMIT DELETE ROWS".encode(),
        is_used=f"SELECT EXISTS (SELECT FROM {staged})".encode(),
        empty=f"TRUNCATE {staged}".encode(),
        copy=f"COPY {staged} ({columns}) FROM STDIN (FORMAT BINARY)".encode(),
        insert_new=f"{into} SELECT {columns} FROM {staged} ON CONFLICT DO NOTHING".encode(),
        has_twins=f"SELECT EXISTS (SELECT FROM {staged} GROUP BY {keys} HAVING count(*) > 1)".encode(),
        insert_over=f"{into} SELECT {columns} FROM {staged} ON CONFLICT ({keys}) {over}".encode(),
        insert_last=f"{into} {last} ON CONFLICT ({keys}) {over}".encode(),
    )


def _only(name: str) -> Callable[[Row], tuple[Any, ...]]:
    return lambda row: (row[name],)


_DIALECT = postgresql.dialect()


def _type_name(table: type[Base], column: str) -> str:
    """Postgres's name of a column's type, without its length: psycopg knows it by that."""
    name = table.__table__.columns[column].type.compile(_DIALECT).split("(")[0].lower()
    return {"float": "double precision"}.get(name, name)  # FLOAT(53)


class _Json(Dumper):
    """A value for a JSONB column; orjson, and the standard library for what orjson cannot say."""

    format = Format.BINARY
    oid = adapters.types["jsonb"].oid

    def dump(self, obj: Any) -> Buffer:
        try:
            text = orjson.dumps(obj)
        except TypeError:  # integers of more than 64 bits, keys that are no text
            text = json.dumps(obj, allow_nan=False).encode()
        if b"null" in text:  # orjson writes NaN and infinity as null
            json.dumps(obj, allow_nan=False)
        return b"\x01" + text


class _UuidText(Dumper):
    """A UUID that is text in Python: a column of SQLAlchemy's Uuid(as_uuid=False)."""

    format = Format.BINARY
    oid = adapters.types["uuid"].oid

    def dump(self, obj: Any) -> Buffer:
        return bytes.fromhex(str(obj).replace("-", ""))


@contextmanager
def _translated(connection: Connection, way: _Way) -> Generator[None]:
    """Errors of the driver as SQLAlchemy raises them; it does not see what passes it by."""
    try:
        yield
    except (CharacterNotInRepertoire, UntranslatableCharacter) as error:
        where = (error.diag.context or way.table).splitlines()[-1]
        raise ValueError(f"a text holds a NUL character, which Postgres cannot store ({where[:200]})") from error
    except psycopg.Error as error:
        lost = connection.dialect.is_disconnect(cast(Any, error), None, None)
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            way.copy.decode(), None, error, psycopg.Error, connection_invalidated=lost, dialect=connection.dialect
        ) from error
