"""Deliveries: messages that were believed, each once, and the changes that they say."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from domain.canonical import digest
from domain.errors import NotFound
from infra.db.trigger_tables import ChangeRow, DeliveryRow

LONGEST_ID = 256
"""Characters of a sender's id that are shown; the whole of it is in the key."""


class Received(StrEnum):
    """What a message is to us: new; one that we have; or another one under an id that is taken."""

    NEW = "new"
    REPEATED = "repeated"
    CONFLICT = "conflict"


def delivery_key(source: str, delivery_id: str) -> str:
    """The key of a delivery, whatever length its sender's id has."""
    return digest([source, delivery_id])


def receive(
    db: Session, *, source: str, delivery_id: str, body_hash: str, event: str, datasets: Sequence[tuple[str, float]]
) -> Received:
    """Write a delivery down with a waiting change for each (dataset, seconds to wait for further news); once.

    Concurrent receivers of one message wait for one another; `body_hash` is the sha256 of the raw body.
    """
    key = delivery_key(source, delivery_id)
    row = {
        "key": key,
        "source": source,
        "delivery_id": delivery_id[:LONGEST_ID],
        "body_hash": body_hash,
        "event": event,
        "datasets": [name for name, _ in datasets],
    }
    new = db.scalar(insert(DeliveryRow).values(row).on_conflict_do_nothing().returning(DeliveryRow.key))
    if new is None:
        known = db.scalar(select(DeliveryRow.body_hash).where(DeliveryRow.key == key))
        return Received.REPEATED if known == body_hash else Received.CONFLICT
    for name, wait_s in datasets:
        due = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, wait_s)
        db.execute(insert(ChangeRow).values(delivery_key=key, dataset=name, due_at=due))
    return Received.NEW


@dataclass(frozen=True, slots=True)
class Change:
    """A dataset that a delivery says has changed, and what became of it."""

    number: int
    dataset: str
    state: str
    due_at: datetime
    tries: int
    dataset_version: str | None
    run_id: str | None
    detail: str
    settled_at: datetime | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that was believed, with its changes in their order."""

    key: str
    source: str
    delivery_id: str
    event: str
    datasets: tuple[str, ...]
    received_at: datetime
    changes: tuple[Change, ...]


def load_deliveries(db: Session, *, limit: int) -> list[Delivery]:
    """The newest deliveries, the newest first."""
    d = DeliveryRow
    return _with_changes(db, db.scalars(select(d).order_by(d.received_at.desc(), d.key).limit(limit)).all())


def find_delivery(db: Session, wanted: str) -> Delivery:
    """The delivery of this id, or whose key begins so; raises NotFound when there is none, or more than one."""
    d = DeliveryRow
    beginning = d.key.startswith(wanted, autoescape=True)
    found = db.scalars(select(d).where(d.delivery_id == wanted).limit(2)).all()
    found = found or db.scalars(select(d).where(beginning).order_by(d.key).limit(2)).all()
    if len(found) != 1:
        said = "Several deliveries are called" if found else "There is no delivery"
        raise NotFound(f"{said} {wanted!r}.", hint="List them with `headrace webhooks deliveries`.")
    return _with_changes(db, found)[0]


def replay(db: Session, key: str, datasets: Sequence[str]) -> None:
    """Give a delivery a further change for each of these datasets, due at once."""
    for name in datasets:
        db.execute(insert(ChangeRow).values(delivery_key=key, dataset=name, detail="replayed"))


def _with_changes(db: Session, rows: Sequence[DeliveryRow]) -> list[Delivery]:
    changes: dict[str, list[Change]] = {row.key: [] for row in rows}
    for c in db.scalars(select(ChangeRow).where(ChangeRow.delivery_key.in_(changes)).order_by(ChangeRow.number)):
        fate = (c.dataset_version, c.run_id, c.detail, c.settled_at)
        changes[c.delivery_key].append(Change(c.number, c.dataset, c.state, c.due_at, c.tries, *fate))
    return [
        Delivery(
            key=row.key,
            source=row.source,
            delivery_id=row.delivery_id,
            event=row.event,
            datasets=tuple(row.datasets),
            received_at=row.received_at,
            changes=tuple(changes[row.key]),
        )
        for row in rows
    ]
