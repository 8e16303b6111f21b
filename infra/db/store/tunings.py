"""Tunings: how often calibration rows were used for a certificate."""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from domain.datasets import Split
from infra.db.bundle_tables import TuningRow
from infra.db.store.writing import put
from infra.db.tables import RecordRow

Json = dict[str, Any]


def tuning_number(db: Session, run_id: str, *, workload: str, version: str, evidence: str) -> int:
    """The number of this tuning, from 1: one more than any of its calibration rows has seen with other evidence.

    `evidence` is the digest of all that is looked at. Looking at the very same again is no further chance to break the
    promise, so that it keeps its number.
    """
    t = TuningRow
    same = select(t.number).where(t.workload == workload, t.dataset_version == version, t.evidence == evidence)
    if (again := db.scalar(same.order_by(t.at).limit(1))) is not None:
        return again
    used, now = aliased(RecordRow), aliased(RecordRow)
    uses = (
        select(func.count(t.evidence.distinct()).label("uses"))
        .join(used, (used.dataset_version == t.dataset_version) & (used.split == Split.CALIBRATION))
        .join(now, (now.key == used.key) & (now.dataset_version == version) & (now.split == Split.CALIBRATION))
        .where(t.workload == workload, t.run_id != run_id)
        .group_by(now.key)
        .subquery()
    )
    return 1 + (db.scalar(select(func.max(uses.c.uses))) or 0)


def save_tuning(
    db: Session, run_id: str, *, workload: str, version: str, evidence: str, number: int, delta: float
) -> None:
    """Write down what a run's tuning spends of delta."""
    values: Json = {"run_id": run_id, "workload": workload, "dataset_version": version}
    put(db, TuningRow, [{**values, "evidence": evidence, "number": number, "delta": delta}])


def load_tuning(db: Session, run_id: str) -> int | None:
    """The number of a run's tuning; None when it has none on record."""
    return db.scalar(select(TuningRow.number).where(TuningRow.run_id == run_id))
