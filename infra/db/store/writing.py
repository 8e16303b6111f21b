"""Writing rows: a few by INSERT, many by COPY; doing it again is harmless either way."""

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from operator import itemgetter
from typing import Any, LiteralString, cast

import orjson
import psycopg
from psycopg import adapters
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.errors import CharacterNotInRepertoire, UntranslatableCharacter
from psycopg.pq import Format
from psycopg.sql import SQL, Composed, Identifier
from sqlalchemy import Table
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
    the columns of the first, and columns that are not given get their default. JSONB holds numbers by their digits: a
    float of 1e16 or more comes back as an integer. Raises ValueError for a row that Postgres could not hold (a NUL
    character, half of a surrogate pair, NaN in JSON), and SQLAlchemy's DBAPIError as any statement does.
    """
    return _copy(db, table, rows, overwrite=False)


def copy_over(db: Session, table: type[Base], rows: Iterable[Row]) -> int:
    """Insert rows by COPY; those whose key exists already are overwritten, and the last of a key in `rows` wins.

    Returns how many rows were inserted or changed; a row that stands there just so is not written again. For a table
    with columns beside its key, and otherwise as `copy_new`.
    """
    return _copy(db, table, rows, overwrite=True)


def _copy(db: Session, table: type[Base], rows: Iterable[Row], *, overwrite: bool) -> int:
    first, rows = _peeked(rows)
    if first is None:
        return 0
    way = _way(table, tuple(first))
    with _cursor(db, way.copy) as cursor:
        cursor.execute(way.stage)
        if _holds(cursor, way.is_used):  # only after an earlier call in this transaction; TRUNCATE takes milliseconds
            cursor.execute(way.empty)
        _pour(cursor, way.copy, rows)
        if not overwrite:
            cursor.execute(way.insert_new)
        elif _holds(cursor, way.has_twins):
            cursor.execute(way.insert_last)
        else:
            cursor.execute(way.insert_over)
        return cursor.rowcount


def copy_into(db: Session, table: Table, rows: Iterable[Row]) -> int:
    """COPY rows into a table of the transaction's own, where no key is in the way; returns how many. As `copy_new`."""
    first, rows = _peeked(rows)
    if first is None:
        return 0
    copy = _copying(table, tuple(first), into=table.name)
    with _cursor(db, copy) as cursor:
        _pour(cursor, copy, rows)
        return cursor.rowcount


def _peeked(rows: Iterable[Row]) -> tuple[Row | None, Iterator[Row]]:
    iterator = iter(rows)
    first = next(iterator, None)
    return first, iterator if first is None else chain((first,), iterator)


def _pour(cursor: "psycopg.Cursor[Any]", copying: "_Copying", rows: Iterator[Row]) -> None:
    cursor.adapters.register_dumper(_Json, _Json)
    cursor.adapters.register_dumper(_UuidText, _UuidText)
    with cursor.copy(copying.statement) as copy:
        copy.set_types(copying.types)
        values, width = copying.values, len(copying.types)
        for row in rows:
            if len(row) != width:
                raise ValueError(f"a row for {copying.table} has other columns than the first: {sorted(row)}")
            copy.write_row(values(row))


def _holds(cursor: "psycopg.Cursor[Any]", question: bytes) -> bool:
    return cast("tuple[bool]", cursor.execute(question).fetchone())[0]


@dataclass(frozen=True, slots=True)
class _Copying:
    """COPY of certain columns: the statement, the columns' types, the values of a row in their order."""

    table: str
    statement: bytes
    types: tuple[str, ...]
    values: Callable[[Row], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class _Way:
    """How rows with certain columns get into a table by a temporary one."""

    stage: bytes
    is_used: bytes
    empty: bytes
    copy: _Copying
    insert_new: bytes
    has_twins: bytes
    insert_over: bytes
    insert_last: bytes


@cache
def _copying(table: Table, names: tuple[str, ...], *, into: str) -> _Copying:
    statement = SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(Identifier(into), _listed(names))
    types = tuple(_type_name(table, column) for column in names)
    return _Copying(table.name, statement.as_bytes(), types, _values(names))


@cache
def _way(table: type[Base], names: tuple[str, ...]) -> _Way:
    name = table.__tablename__
    keys = [column.name for column in table.__table__.primary_key]
    others = [column for column in names if column not in keys]
    parts = {
        "table": Identifier(name),
        "staged": Identifier(f"staged_{name}"),
        "columns": _listed(names),
        "keys": _listed(keys),
        "changed": SQL(", ").join(SQL("{0} = excluded.{0}").format(Identifier(column)) for column in others),
        "before": SQL(", ").join(Identifier(name, column) for column in others),
        "after": SQL(", ").join(Identifier("excluded", column) for column in others),
    }

    def said(*words: LiteralString) -> bytes:
        return SQL(" ").join(SQL(part).format(**parts) for part in words).as_bytes()

    into = "INSERT INTO {table} ({columns})"
    # What stands there already as it is is not written again: a repeated transaction leaves no dead rows behind.
    over = "ON CONFLICT ({keys}) DO UPDATE SET {changed} WHERE ({before}) IS DISTINCT FROM ({after})"
    return _Way(
        stage=said("CREATE TEMP TABLE IF NOT EXISTS {staged} (LIKE {table} INCLUDING DEFAULTS) ON COMMIT DELETE ROWS"),
        is_used=said("SELECT EXISTS (SELECT FROM {staged})"),
        empty=said("TRUNCATE {staged}"),
        copy=_copying(cast(Table, table.__table__), names, into=f"staged_{name}"),
        insert_new=said(into, "SELECT {columns} FROM {staged} ON CONFLICT DO NOTHING"),
        has_twins=said("SELECT EXISTS (SELECT FROM {staged} GROUP BY {keys} HAVING count(*) > 1)"),
        insert_over=said(into, "SELECT {columns} FROM {staged}", over),
        # ctid grows in the order of COPY, since the table was empty before.
        insert_last=said(into, "SELECT DISTINCT ON ({keys}) {columns} FROM {staged} ORDER BY {keys}, ctid DESC", over),
    )


def _listed(names: Iterable[str]) -> Composed:
    return SQL(", ").join(map(Identifier, names))


def _values(names: tuple[str, ...]) -> Callable[[Row], tuple[Any, ...]]:
    if len(names) == 1:  # itemgetter of one name gives no tuple
        return lambda row: (row[names[0]],)
    return cast("Callable[[Row], tuple[Any, ...]]", itemgetter(*names))


_DIALECT = postgresql.dialect()


def _type_name(table: Table, column: str) -> str:
    """Postgres's name of a column's type, without length and collation: psycopg knows it by that."""
    name = table.columns[column].type.compile(_DIALECT).partition("(")[0].partition(" COLLATE")[0].lower()
    return {"float": "double precision"}.get(name, name)  # FLOAT(53)


class _Json(Dumper):
    """A value for a JSONB column; orjson, and the standard library for what orjson cannot say."""

    format = Format.BINARY
    oid = adapters.types["jsonb"].oid

    def dump(self, obj: Any) -> Buffer:
        try:
            text = orjson.dumps(obj)
        except TypeError:  # integers of more than 64 bits, keys that are no text
            text = json.dumps(obj, allow_nan=False, ensure_ascii=False).encode()
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
def _cursor(db: Session, copying: _Copying) -> Generator["psycopg.Cursor[Any]"]:
    """The driver's own cursor in the session's transaction, with errors as SQLAlchemy raises them."""
    connection = db.connection()
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    try:
        with driver.cursor() as cursor:
            yield cursor
    except (CharacterNotInRepertoire, UntranslatableCharacter) as error:
        where = (error.diag.context or copying.table).splitlines()[-1]
        raise ValueError(f"a text holds a NUL character, which Postgres cannot store ({where[:200]})") from error
    except psycopg.Error as error:
        lost = connection.dialect.is_disconnect(cast(Any, error), cast(Any, driver), None)
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            copying.statement.decode(),
            None,
            error,
            psycopg.Error,
            connection_invalidated=lost,
            dialect=connection.dialect,
        ) from error
