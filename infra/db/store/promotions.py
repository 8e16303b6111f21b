"""The audit table of promotions, and the champion's alias, which moves together with it. Rows are only ever added."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from domain.promotions import Act, Move
from infra.db.bundle_tables import AliasRow, PromotionAuditRow
from infra.db.store.bundles import set_alias

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the audit table: who did what with which bundle, when by the database's clock, and why."""

    at: datetime
    who: str
    move: Move
    reason: str | None
    gate: Json | None
    run_id: str | None


def record(
    db: Session,
    act: Act,
    *,
    workload: str,
    to_hash: str,
    who: str,
    reason: str | None = None,
    gate: Json | None = None,
    run_id: str | None = None,
) -> bool:
    """Add a row, and make the bundle champion if the act does; what a run did already it does not do again.

    Returns whether this is new. One such transaction of a workload waits for the other.
    """
    db.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"champion of {workload}"))))
    row = {
        "who": who,
        "act": act,
        "workload": workload,
        "from_hash": champion_hash(db, workload),
        "to_hash": to_hash,
        "reason": reason,
        "gate": gate,
        "run_id": run_id,
    }
    added = insert(PromotionAuditRow).values(row).on_conflict_do_nothing().returning(PromotionAuditRow.id)
    if db.scalar(added) is None:
        return False
    if act.moves_champion:
        set_alias(db, workload, "champion", to_hash)
    return True


def champion_hash(db: Session, workload: str) -> str | None:
    """The hash of the champion, None without one."""
    return db.scalar(select(AliasRow.bundle_hash).where(AliasRow.workload == workload, AliasRow.alias == "champion"))


def load_entries(db: Session, workload: str) -> list[Entry]:
    """A workload's audit rows in the order in which they were written."""
    rows = db.scalars(
        select(PromotionAuditRow).where(PromotionAuditRow.workload == workload).order_by(PromotionAuditRow.id)
    )
    return [
        Entry(row.at, row.who, Move(Act(row.act), row.from_hash, row.to_hash), row.reason, row.gate, row.run_id)
        for row in rows
    ]
