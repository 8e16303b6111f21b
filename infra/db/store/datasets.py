"""Dataset versions and their records."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from domain.datasets import BadRow, Record, Split
from domain.errors import Place
from infra.db.store.writing import add
from infra.db.tables import BadRowRow, DatasetVersionRow, RecordRow


def save_version(db: Session, version: str, *, uri: str, records: Sequence[Record], bad: Sequence[BadRow]) -> bool:
    """Store a snapshot; False when this version is there already, and then nothing is written."""
    if db.get(DatasetVersionRow, version) is not None:
        return False
    add(db, DatasetVersionRow, [{"hash": version, "uri": uri, "records": len(records), "bad_rows": len(bad)}])
    add(
        db,
        RecordRow,
        (
            {
                "dataset_version": version,
                "key": record.key,
                "ordinal": ordinal,
                "record_id": record.record_id,
                "split": record.split,
                "inputs": record.inputs,
                "gold": record.gold,
                "file": record.place.file,
                "line": record.place.line,
            }
            for ordinal, record in enumerate(records)
        ),
    )
    add(
        db,
        BadRowRow,
        (
            {
                "dataset_version": version,
                "key": row.key,
                "file": row.place.file,
                "line": row.place.line,
                "field": row.place.field,
                "reason": row.reason,
                "excerpt": row.excerpt,
            }
            for row in bad
        ),
    )
    return True


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


def stored_record(row: RecordRow) -> StoredRecord:
    """A row of the table as the domain knows it."""
    record = Record(
        record_id=row.record_id,
        inputs=row.inputs,
        gold=row.gold,
        split=Split(row.split),
        place=Place(row.file, row.line),
    )
    return StoredRecord(key=row.key, ordinal=row.ordinal, record=record)


def load_bad_rows(db: Session, version: str) -> list[BadRow]:
    """The rows of a snapshot that cannot be used."""
    rows = db.scalars(select(BadRowRow).where(BadRowRow.dataset_version == version))
    return [BadRow(Place(row.file, row.line, field=row.field), row.reason, row.excerpt) for row in rows]


def split_sizes(db: Session, version: str) -> dict[Split, int]:
    """Rows in each split of a snapshot."""
    query = select(RecordRow.split, func.count()).where(RecordRow.dataset_version == version).group_by(RecordRow.split)
    return {Split(split): count for split, count in db.execute(query)}
