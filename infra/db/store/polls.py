"""Polls: when a dataset's files were looked at the last time, and how they looked."""

from datetime import datetime
from typing import Any, cast

from sqlalchemy import CursorResult, func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from infra.db.trigger_tables import PollRow

NEVER = ""
"""What `seen` is before the first look has come to its end."""


def claim(db: Session, dataset: str, every_s: float) -> tuple[str, datetime] | None:
    """Take the next look upon oneself: what was seen before, and the database's time; None when it is not time yet.

    Of several processes that ask at once one gets the look; one that dies looking has only left this look out.
    """
    now = func.clock_timestamp()
    due = PollRow.looked_at <= now - func.make_interval(0, 0, 0, 0, 0, 0, every_s)
    row = db.execute(
        insert(PollRow)
        .values(dataset=dataset, seen=NEVER, looked_at=now)
        .on_conflict_do_update(index_elements=["dataset"], set_={"looked_at": now}, where=due)
        .returning(PollRow.seen, PollRow.looked_at)
    ).one_or_none()
    return None if row is None else (row[0], row[1])


def remember(db: Session, dataset: str, *, before: str, now: str) -> bool:
    """Write down how the files look now; False when somebody else has written since `before` was read."""
    changed = update(PollRow).where(PollRow.dataset == dataset, PollRow.seen == before).values(seen=now)
    return cast(CursorResult[Any], db.execute(changed)).rowcount == 1
