"""One way to write many rows."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from infra.db.tables import Base

ROWS_A_STATEMENT = 500


def add(db: Session, table: type[Base], rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert rows; those whose key exists already stay as they are."""
    for some in _batched(rows):
        db.execute(insert(table).values([dict(row) for row in some]).on_conflict_do_nothing())


def put(db: Session, table: type[Base], rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert rows; those whose key exists already are overwritten."""
    keys = [column.name for column in table.__table__.primary_key]
    for some in _batched(rows):
        statement = insert(table).values([dict(row) for row in some])
        changed = {name: statement.excluded[name] for name in some[0] if name not in keys}
        db.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed))


def _batched(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    # itertools.batched needs Python 3.12.
    iterator = iter(rows)
    while some := list(islice(iterator, ROWS_A_STATEMENT)):
        yield some
