"""Leases: who may write for a piece of work, in the database's time."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from infra.db.tables import LeaseRow, RunRow

_NOW = func.clock_timestamp()


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease, and until when by the database's clock; `expired` says that this moment has passed."""

    run_id: str
    token: int
    holder: str
    expires_at: datetime
    expired: bool


def holds(db: Session, work: str, token: int) -> bool:
    """Whether the lease with this token is still the newest; if so it stays so until the transaction ends.

    The lock is the weakest that a takeover has to wait for. It does not stand in the way of the holder's own renewals.
    """
    query = select(LeaseRow.token).where(LeaseRow.work == work, LeaseRow.token == token)
    return db.scalar(query.with_for_update(read=True, key_share=True)) is not None


@dataclass(frozen=True, slots=True)
class Taken:
    """A lease that was taken, and the other run that its former holder left unfinished."""

    token: int
    left: str | None = None


def take(db: Session, work: str, run_id: str, *, holder: str, ttl_s: float, dead: str | None = None) -> Taken | None:
    """Take a lease that nobody holds, whose time is over, or whose holder is known to be `dead`; None if it is held.

    A write that the former holder has under way is waited for; afterwards it can commit nothing more. A run that it
    left unfinished is crashed.
    """
    mine = {"run_id": run_id, "holder": holder, "expires_at": _until(ttl_s)}
    first = insert(LeaseRow).values(work=work, token=1, **mine).on_conflict_do_nothing().returning(LeaseRow.token)
    if (token := db.scalar(first)) is not None:
        return Taken(token)
    former = _lock_unheld(db, LeaseRow.work == work, dead)
    if former is None:
        return None
    left = update(RunRow).where(RunRow.id == former.run_id, RunRow.id != run_id, RunRow.state == "running")
    crashed = db.scalar(left.values(state="crashed", ended_at=func.now()).returning(RunRow.id))
    taken = update(LeaseRow).where(LeaseRow.work == work).values(token=LeaseRow.token + 1, **mine)
    return Taken(db.scalars(taken.returning(LeaseRow.token)).one(), crashed)


def displace(db: Session, run_id: str, *, dead: str | None = None) -> bool:
    """Fence off the process that carried out a run, unless it may be alive; False when it may."""
    if _lock_unheld(db, LeaseRow.run_id == run_id, dead) is None:
        return holder_for(db, run_id) is None
    ended = update(LeaseRow).where(LeaseRow.run_id == run_id)
    db.execute(ended.values(token=LeaseRow.token + 1, expires_at=_NOW))
    return True


def _lock_unheld(db: Session, which: ColumnElement[bool], dead: str | None) -> LeaseRow | None:
    # FOR UPDATE is what conflicts with the lock of `holds`; an UPDATE alone would not.
    over = or_(LeaseRow.expires_at <= _NOW, LeaseRow.holder == dead)
    return db.scalar(select(LeaseRow).where(which, over).with_for_update().execution_options(populate_existing=True))


def running(db: Session, *, grace_s: float) -> list[tuple[str, str, bool]]:
    """Runs that say they are running: id, holder, and whether their lease has been over for so many seconds."""
    over = LeaseRow.expires_at <= _NOW - func.make_interval(0, 0, 0, 0, 0, 0, grace_s)
    query = select(RunRow.id, LeaseRow.holder, over).join(LeaseRow, LeaseRow.run_id == RunRow.id)
    return [(run_id, holder, past) for run_id, holder, past in db.execute(query.where(RunRow.state == "running"))]


def renew(db: Session, work: str, token: int, *, ttl_s: float) -> bool | None:
    """Put the end off to `ttl_s` seconds from now.

    Says whether the run is to be cancelled, and None when somebody else has the lease.
    """
    asked = select(RunRow.cancel_requested).where(RunRow.id == LeaseRow.run_id).scalar_subquery()
    renewed = update(LeaseRow).where(LeaseRow.work == work, LeaseRow.token == token).values(expires_at=_until(ttl_s))
    return db.scalar(renewed.returning(func.coalesce(asked, False)))


def release(db: Session, work: str, token: int) -> None:
    """End a lease now. Its row stays and its token is used up: a token must never come again."""
    ended = update(LeaseRow).where(LeaseRow.work == work, LeaseRow.token == token)
    db.execute(ended.values(token=LeaseRow.token + 1, expires_at=_NOW))


def holder_of(db: Session, work: str) -> Holder | None:
    """Who holds or last held a piece of work."""
    return _holder(db, LeaseRow.work == work)


def holder_for(db: Session, run_id: str) -> Holder | None:
    """Who carries out a run or last did."""
    return _holder(db, LeaseRow.run_id == run_id)


def _holder(db: Session, which: ColumnElement[bool]) -> Holder | None:
    query = select(LeaseRow, LeaseRow.expires_at <= _NOW).where(which).order_by(LeaseRow.expires_at.desc()).limit(1)
    found = db.execute(query).one_or_none()
    if found is None:
        return None
    row, expired = found
    return Holder(row.run_id, row.token, row.holder, row.expires_at, expired)


def _until(ttl_s: float) -> ColumnElement[datetime]:
    return _NOW + func.make_interval(0, 0, 0, 0, 0, 0, ttl_s)
