"""Labels that arrive after rows were routed: workload, record id, field and the right value."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue
from sqlalchemy import func, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from infra.db.audit_tables import AuditedRow, LabelRow
from infra.db.bundle_tables import BundleRow

IDS_AT_ONCE = 5_000
Named = tuple[str, str]
"""Record id and field."""


def load_labels(db: Session, workload: str, names: Iterable[Named]) -> dict[Named, JsonValue]:
    """What is known of these fields of these rows."""
    query = select(LabelRow.record_id, LabelRow.field, LabelRow.value).where(
        LabelRow.workload == workload, tuple_(LabelRow.record_id, LabelRow.field).in_(list(names))
    )
    return {(record_id, field): value for record_id, field, value in db.execute(query)}


def load_gold(
    db: Session, workload: str, ids: Collection[str], fields: Sequence[str]
) -> dict[str, dict[str, JsonValue]]:
    """What is right for these rows, by their ids; only where every one of the fields has a label."""
    found: dict[str, dict[str, JsonValue]] = {}
    wanted = sorted(ids)
    for first in range(0, len(wanted), IDS_AT_ONCE):
        query = select(LabelRow.record_id, LabelRow.field, LabelRow.value).where(
            LabelRow.workload == workload,
            LabelRow.record_id.in_(wanted[first : first + IDS_AT_ONCE]),
            LabelRow.field.in_(fields),
        )
        for record_id, field, value in db.execute(query):
            found.setdefault(record_id, {})[field] = value
    return {record_id: gold for record_id, gold in found.items() if gold.keys() >= set(fields)}


def save_labels(db: Session, workload: str, labels: Mapping[Named, JsonValue], *, source: str) -> None:
    """Store labels; a later one to the same field replaces the earlier."""
    values: list[dict[str, Any]] = [
        {"workload": workload, "record_id": name[0], "field": name[1], "value": value, "source": source}
        for name, value in labels.items()
    ]
    if not values:
        return
    statement = insert(LabelRow).values(values)
    changed = {"value": statement.excluded.value, "source": source, "imported_at": func.now()}
    db.execute(statement.on_conflict_do_update(index_elements=["workload", "record_id", "field"], set_=changed))


@dataclass(frozen=True, slots=True)
class LabelCount:
    """Labels of one field of a workload, and the files that they came from."""

    workload: str
    field: str
    labels: int
    sources: int


def count_labels(db: Session) -> list[LabelCount]:
    """How many labels there are, a line a workload and field."""
    query = select(LabelRow.workload, LabelRow.field, func.count(), func.count(LabelRow.source.distinct())).group_by(
        LabelRow.workload, LabelRow.field
    )
    return [LabelCount(*row) for row in db.execute(query.order_by(LabelRow.workload, LabelRow.field)).tuples()]


def count_unlabelled(db: Session) -> dict[str, int]:
    """Kept rows that audits chose and no gold stream has counted, by workload."""
    row = AuditedRow
    query = select(BundleRow.workload, func.count()).join_from(row, BundleRow, BundleRow.hash == row.bundle_hash)
    waiting = query.where(row.kept, row.counted_by.is_(None)).group_by(BundleRow.workload)
    return dict(db.execute(waiting.order_by(BundleRow.workload)).tuples().all())
