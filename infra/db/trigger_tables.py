"""The tables of triggers: what was said to have changed, what was started for it, and who is to be told what."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import Identity

from infra.db.audit_tables import Base
from infra.db.tables import Json, created


class DeliveryRow(Base):
    """A message that was received and believed; `key` is the sha256 of source and the sender's id, of any length."""

    __tablename__ = "deliveries"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    source: Mapped[str] = mapped_column(Text)
    delivery_id: Mapped[str] = mapped_column(Text)
    body_hash: Mapped[str] = mapped_column(String(64))
    event: Mapped[str] = mapped_column(Text)
    datasets: Mapped[list[str]] = mapped_column(JSONB)
    received_at: Mapped[datetime] = created()
    __table_args__ = (Index("deliveries_by_time", "received_at"),)


class ChangeRow(Base):
    """A dataset that a delivery says has changed, and what became of it: the queue of the dispatcher.

    `state` is waiting, unchanged, started, joined, announced or failed. A delivery that is replayed has another change.
    """

    __tablename__ = "changes"
    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    delivery_key: Mapped[str] = mapped_column(ForeignKey("deliveries.key"))
    dataset: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16), server_default="waiting")
    due_at: Mapped[datetime] = created()
    tries: Mapped[int] = mapped_column(Integer, server_default="0")
    dataset_version: Mapped[str | None] = mapped_column(String(64))
    run_id: Mapped[str | None] = mapped_column(String(36))
    detail: Mapped[str] = mapped_column(Text, server_default="")
    settled_at: Mapped[datetime | None]
    __table_args__ = (
        Index("changes_waiting", "state", "dataset", "due_at"),
        Index("changes_by_delivery", "delivery_key"),
    )


class StartRow(Base):
    """A run that was started under an idempotency key, and with what: the same key starts nothing else."""

    __tablename__ = "starts"
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    flow: Mapped[str] = mapped_column(Text)
    parameters: Mapped[Json]
    run_id: Mapped[str | None] = mapped_column(String(36))
    created_at: Mapped[datetime] = created()


class NoticeRow(Base):
    """A message to one endpoint; `state` is waiting, delivered or dead. `key` names what happened: it is told once."""

    __tablename__ = "notices"
    endpoint: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    event: Mapped[str] = mapped_column(Text)
    payload: Mapped[Json]
    state: Mapped[str] = mapped_column(String(16), server_default="waiting")
    due_at: Mapped[datetime] = created()
    tries: Mapped[int] = mapped_column(Integer, server_default="0")
    error: Mapped[str] = mapped_column(Text, server_default="")
    created_at: Mapped[datetime] = created()
    settled_at: Mapped[datetime | None]
    __table_args__ = (Index("notices_waiting", "state", "due_at"),)


class PollRow(Base):
    """How the files of a polled dataset looked the last time."""

    __tablename__ = "polls"
    dataset: Mapped[str] = mapped_column(Text, primary_key=True)
    seen: Mapped[str] = mapped_column(String(64))
    looked_at: Mapped[datetime] = created()
