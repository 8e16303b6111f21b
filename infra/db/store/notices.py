"""Notices: who is to be told what, and what became of it. A notice that is being sent is claimed, not locked."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import CursorResult, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from domain.errors import NotFound
from infra.db.trigger_tables import NoticeRow

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Notice:
    """A message to one endpoint; `tries` counts those that have begun."""

    endpoint: str
    key: str
    event: str
    payload: Json
    state: str
    tries: int
    error: str
    due_at: datetime
    created_at: datetime
    settled_at: datetime | None


def add(db: Session, endpoints: Iterable[str], *, key: str, event: str, payload: Json) -> None:
    """A notice for each endpoint; one that has a notice with this key is not told again."""
    for endpoint in endpoints:
        row = {"endpoint": endpoint, "key": key, "event": event, "payload": payload}
        db.execute(insert(NoticeRow).values(row).on_conflict_do_nothing())


def claim(db: Session, *, most: int, lease_s: float) -> list[Notice]:
    """Take up to so many due notices upon oneself for so long; nobody else gets them meanwhile.

    The claim is a later `due_at`, so that no lock is held while something is sent, and a sender that dies has only
    lost this time.
    """
    now = func.clock_timestamp()
    due = (
        select(NoticeRow.endpoint, NoticeRow.key)
        .where(NoticeRow.state == "waiting", NoticeRow.due_at <= now)
        .order_by(NoticeRow.due_at)
        .limit(most)
        .with_for_update(skip_locked=True)
    )
    claimed = (
        update(NoticeRow)
        .where(tuple_(NoticeRow.endpoint, NoticeRow.key).in_(due))
        .values(due_at=_later(lease_s), tries=NoticeRow.tries + 1)
        .returning(NoticeRow)
    )
    return [_read(row) for row in db.scalars(claimed)]


def settle(db: Session, notice: Notice, *, state: str, error: str = "") -> None:
    """A notice is delivered or dead; nothing if it has been claimed anew since."""
    values = {"state": state, "error": error, "settled_at": func.clock_timestamp()}
    db.execute(_still_ours(notice).values(**values))


def put_off(db: Session, notice: Notice, *, wait_s: float, error: str) -> None:
    """A notice is sent again after so long; nothing if it has been claimed anew since."""
    db.execute(_still_ours(notice).values(due_at=_later(wait_s), error=error))


def _still_ours(notice: Notice) -> Any:
    return update(NoticeRow).where(
        NoticeRow.endpoint == notice.endpoint,
        NoticeRow.key == notice.key,
        NoticeRow.tries == notice.tries,
        NoticeRow.state == "waiting",
    )


def revive(db: Session, key: str) -> int:
    """Send dead notices again, from the first try on: those whose key begins so; how many. Raises NotFound."""
    again = {"state": "waiting", "due_at": func.clock_timestamp(), "tries": 0, "error": "", "settled_at": None}
    dead = NoticeRow.key.startswith(key, autoescape=True), NoticeRow.state == "dead"
    found = cast(CursorResult[Any], db.execute(update(NoticeRow).where(*dead).values(**again))).rowcount
    if not found:
        raise NotFound(f"no dead notice begins with {key!r}.", hint="List them with `headrace notices --dead`.")
    return found


def load(db: Session, *, state: str | None = None, limit: int = 50) -> list[Notice]:
    """The newest notices first, all or those in a state."""
    wanted = select(NoticeRow).order_by(NoticeRow.created_at.desc(), NoticeRow.endpoint).limit(limit)
    return [_read(row) for row in db.scalars(wanted if state is None else wanted.where(NoticeRow.state == state))]


def _later(seconds: float) -> Any:
    return func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def _read(row: NoticeRow) -> Notice:
    return Notice(
        endpoint=row.endpoint,
        key=row.key,
        event=row.event,
        payload=row.payload,
        state=row.state,
        tries=row.tries,
        error=row.error,
        due_at=row.due_at,
        created_at=row.created_at,
        settled_at=row.settled_at,
    )
