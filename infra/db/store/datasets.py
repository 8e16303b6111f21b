"""Dataset versions and their records."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from domain.datasets import BadRow, Record, Split
from domain.errors import Place
from infra.db.tables import BadRowRow, RecordRow, RunRow, RunRowRow


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record with its identity and its place in the snapshot's order."""

    key: str
    ordinal: int
    record: Record


def load_records(
    db: Session, version: str, *splits: Split, first: int = 0, limit: int | None = None
) -> list[StoredRecord]:
    """Records of these splits in the snapshot's order, from position `first`, at most `limit`."""
    query = (
        select(RecordRow)
        .where(RecordRow.dataset_version == version, RecordRow.split.in_(splits))
        .order_by(RecordRow.ordinal)
        .offset(first)
        .limit(limit)
    )
    return [stored_record(row) for row in db.scalars(query)]


def load_run_rows(db: Session, run_id: str, first: int, last: int) -> list[StoredRecord]:
    """A run's own rows at positions `first` to `last` - 1, in their order."""
    query = (
        select(RecordRow)
        .join(RunRowRow, RunRowRow.record_key == RecordRow.key)
        .join(RunRow, (RunRow.id == RunRowRow.run_id) & (RunRow.dataset_version == RecordRow.dataset_version))
        .where(RunRowRow.run_id == run_id, RunRowRow.position >= first, RunRowRow.position < last)
        .order_by(RunRowRow.position)
    )
    return [stored_record(row) for row in db.scalars(query)]


def stored_record(row: RecordRow) -> StoredRecord:
    """A row of the table as the domain knows it."""
    record = Record(
        record_id=row.record_id,
        inputs=row.inputs,
        gold=row.gold,
        split=Split(row.split),
        place=Place(row.file, row.line),
        key=row.key,
    )
    return StoredRecord(key=row.key, ordinal=row.ordinal, record=record)


def load_bad_rows(db: Session, version: str) -> list[BadRow]:
    """The rows of a snapshot that cannot be used."""
    rows = db.scalars(select(BadRowRow).where(BadRowRow.dataset_version == version))
    return [BadRow(Place(row.file, row.line, field=row.field), row.reason, row.excerpt) for row in rows]


def count_bad_rows(db: Session, version: str) -> int:
    """Rows of a snapshot that cannot be used."""
    return db.scalar(select(func.count()).where(BadRowRow.dataset_version == version)) or 0


def split_sizes(db: Session, version: str) -> dict[Split, int]:
    """Rows in each split of a snapshot."""
    query = select(RecordRow.split, func.count()).where(RecordRow.dataset_version == version).group_by(RecordRow.split)
    return {Split(split): count for split, count in db.execute(query)}
