"""What the ledger can forget of triggers: messages of both directions that were dealt with long ago.

The newest start for each dataset stays, and the delivery that led to it: what the next news ask for is held against it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, exists, false, func, inspect, select, tuple_
from sqlalchemy.orm import Session

from infra.db.store.pruning import Size, measured, newest_starts
from infra.db.tables import Base
from infra.db.trigger_tables import ChangeRow, DeliveryRow, NoticeRow, StartRow


def sizes(db: Session, before: datetime) -> list[Size]:
    """What would go: what was settled before a moment and nothing goes by."""
    return [measured(db, table, which) for table, which in _forgettable(before)]


def remove_some(db: Session, before: datetime, *, most: int) -> int:
    """Delete up to so many rows of it; how many went."""
    for table, which in _forgettable(before):
        key = inspect(table).primary_key
        gone: Any = db.execute(delete(table).where(tuple_(*key).in_(select(*key).where(which).limit(most))))
        if gone.rowcount:
            return int(gone.rowcount)
    return 0


def _forgettable(before: datetime) -> Sequence[tuple[type[Base], ColumnElement[bool]]]:
    c, d, s, n = ChangeRow, DeliveryRow, StartRow, NoticeRow
    over = func.coalesce(c.settled_at < before, false()) & c.number.not_in(newest_starts(c.number))
    return (
        (s, (s.created_at < before) & ~exists().where(c.run_id == s.run_id, ~over)),
        (c, over),
        (d, (d.received_at < before) & ~exists().where(c.delivery_key == d.key, ~over)),
        (n, (n.state != "waiting") & (n.settled_at < before)),
    )
