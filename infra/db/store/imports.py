"""What an imported run needs and does not name: answers that an earlier run of another ledger had asked for."""

from collections.abc import Collection

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from infra.db.bundle_tables import BundleRow
from infra.db.store.writing import add
from infra.db.tables import AnswerRow, AttemptRow, ImportedAnswerRow, RunRow


def run_and_maker(db: Session, run_id: str) -> list[str]:
    """A run of this ledger and the run that made its bundle, as far as they are there."""
    bundle = select(RunRow.bundle_hash).where(RunRow.id == run_id).scalar_subquery()
    maker = select(BundleRow.run_id).where(BundleRow.hash == bundle)
    return list(db.scalars(select(RunRow.id).where((RunRow.id == run_id) | RunRow.id.in_(maker))))


def note_answers(db: Session, run_ids: Collection[str], hashes: Collection[str]) -> None:
    """Write down that answers came with runs."""
    add(db, ImportedAnswerRow, ({"run_id": run_id, "request_hash": each} for run_id in run_ids for each in hashes))


def forget_named(db: Session, run_ids: Collection[str]) -> None:
    """Forget of these runs' notes those that their calls or answers name."""
    note = ImportedAnswerRow
    for table in (AttemptRow, AnswerRow):
        named = select(table.request_hash).where(table.run_id.in_(run_ids))
        db.execute(delete(note).where(note.run_id.in_(run_ids), note.request_hash.in_(named)))
