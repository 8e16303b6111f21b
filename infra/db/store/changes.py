"""Changes: the queue of datasets that are said to have changed, and what became of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from domain.errors import KeyReused
from infra.db.tables import RunRow
from infra.db.trigger_tables import ChangeRow, StartRow

Json = dict[str, Any]

PATIENCE_S = 60.0
"""News that never stop are dealt with after so long all the same."""
_NOW = func.clock_timestamp()


def due(db: Session) -> list[str]:
    """The datasets with waiting changes of which the newest has waited long enough for further news."""
    long_ago = _NOW - func.make_interval(0, 0, 0, 0, 0, 0, PATIENCE_S)
    query = select(ChangeRow.dataset).where(ChangeRow.state == "waiting").group_by(ChangeRow.dataset)
    ripe = or_(func.max(ChangeRow.due_at) <= _NOW, func.min(ChangeRow.due_at) <= long_ago)
    return list(db.scalars(query.having(ripe).order_by(func.min(ChangeRow.due_at))))


def waiting(db: Session, dataset: str) -> list[int]:
    """The numbers of a dataset's waiting changes."""
    query = select(ChangeRow.number).where(ChangeRow.state == "waiting", ChangeRow.dataset == dataset)
    return list(db.scalars(query.order_by(ChangeRow.number)))


def settle(
    db: Session,
    numbers: Sequence[int],
    *,
    state: str,
    version: str | None = None,
    run_id: str | None = None,
    detail: str = "",
) -> int:
    """End changes that are still waiting; returns how many were."""
    mine = update(ChangeRow).where(ChangeRow.number.in_(numbers), ChangeRow.state == "waiting")
    values = {"state": state, "dataset_version": version, "run_id": run_id, "detail": detail, "settled_at": _NOW}
    return len(db.scalars(mine.values(**values).returning(ChangeRow.number)).all())


def count_try(db: Session, numbers: Sequence[int], *, detail: str) -> dict[int, int]:
    """Write down that dealing with changes failed once more; how often by now, for each that is still waiting."""
    mine = update(ChangeRow).where(ChangeRow.number.in_(numbers), ChangeRow.state == "waiting")
    tried = mine.values(tries=ChangeRow.tries + 1, detail=detail).returning(ChangeRow.number, ChangeRow.tries)
    return {row[0]: row[1] for row in db.execute(tried)}


def put_off(db: Session, numbers: Sequence[int], *, wait_s: float) -> None:
    """Have changes wait so much longer, seconds."""
    later = _NOW + func.make_interval(0, 0, 0, 0, 0, 0, wait_s)
    mine = update(ChangeRow).where(ChangeRow.number.in_(numbers), ChangeRow.state == "waiting")
    db.execute(mine.values(due_at=later))


@dataclass(frozen=True, slots=True)
class LastStart:
    """The newest start for a dataset: the number of its change, the version, and the run as the ledger knows it.

    Without `run_id` nobody knows of a run; without `state` the run has not been opened, or is not kept any more.
    """

    number: int
    version: str
    run_id: str | None
    state: str | None


def last_started(db: Session, dataset: str, *, kind: str, workload: str) -> LastStart | None:
    """The newest start for a dataset; for one that was left to an automation, the run of this kind on this workload
    that has taken the version since."""
    query = (
        select(ChangeRow.number, ChangeRow.dataset_version, ChangeRow.run_id, RunRow.state, ChangeRow.settled_at)
        .outerjoin(RunRow, RunRow.id == ChangeRow.run_id)
        .where(ChangeRow.dataset == dataset, ChangeRow.state.in_(("started", "announced")))
        .order_by(ChangeRow.settled_at.desc(), ChangeRow.number.desc())
        .limit(1)
    )
    row = db.execute(query).one_or_none()
    if row is None:
        return None
    number, version, run_id, state, at = row
    if run_id is None:
        mine = (RunRow.kind == kind, RunRow.workload == workload, RunRow.dataset_version == version)
        since = select(RunRow.id, RunRow.state).where(*mine, RunRow.started_at >= at)
        run_id, state = db.execute(since.order_by(RunRow.started_at.desc()).limit(1)).one_or_none() or (None, None)
    return LastStart(number, version or "", run_id, state)


def differing_rows(db: Session, before: str, after: str) -> tuple[int, int]:
    """Rows of a dataset version that an earlier one does not have in this form, and the other way round."""
    query = text(
        """
        SELECT count(*) FROM records AS mine WHERE dataset_version = :mine AND NOT EXISTS (
            SELECT 1 FROM records AS other WHERE other.dataset_version = :other AND other.key = mine.key
        )
        """
    )
    found = [db.scalar(query, {"mine": a, "other": b}) or 0 for a, b in ((after, before), (before, after))]
    return found[0], found[1]


def reserve(db: Session, key: str, *, flow: str, parameters: Json) -> str | None:
    """Take an idempotency key for a start; returns the id of the run that it has started already.

    Raises KeyReused when the key stands for another flow or other parameters.
    """
    db.execute(insert(StartRow).values(key=key, flow=flow, parameters=parameters).on_conflict_do_nothing())
    row = db.scalars(select(StartRow).where(StartRow.key == key)).one()
    if (row.flow, row.parameters) != (flow, parameters):
        raise KeyReused(f"the idempotency key {key!r} has started {row.flow} with other parameters.")
    return row.run_id


def note_start(db: Session, key: str, run_id: str) -> None:
    """Write down which run a key has started."""
    db.execute(update(StartRow).where(StartRow.key == key).values(run_id=run_id))


def is_reserved(db: Session, key: str) -> bool:
    """Whether an idempotency key was taken for a start, that is by the dispatcher."""
    return db.get(StartRow, key) is not None
