"""The tables of audits: what was looked at, what it came to, and the labels that arrive late."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Float, ForeignKey, Index, String, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import Identity

from infra.db.bundle_tables import Base  # whose tables these point to
from infra.db.tables import Json, created


class AuditRow(Base):
    """One concluded audit, with the state that the next one goes on from; rows are added and never changed (a trigger).

    An audit whose verdict is `alarm` voids its bundle's certificate.
    """

    __tablename__ = "audits"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)
    at: Mapped[datetime] = created()
    workload: Mapped[str] = mapped_column(Text)
    bundle_hash: Mapped[str] = mapped_column(ForeignKey("bundles.hash"))
    verdict: Mapped[str] = mapped_column(String(16))
    state: Mapped[Json]
    report: Mapped[Json]
    routes: Mapped[list[str]] = mapped_column(JSONB)
    usd: Mapped[float] = mapped_column(Float(53))
    __table_args__ = (Index("audits_by_bundle", "bundle_hash", "number"),)


class AuditedRow(Base):
    """A routed row that an audit chose, once a bundle; `place` orders them, `counted_by` is the audit whose gold stream
    took it."""

    __tablename__ = "audited_rows"
    bundle_hash: Mapped[str] = mapped_column(ForeignKey("bundles.hash"), primary_key=True)
    record_key: Mapped[str] = mapped_column(String(64), primary_key=True)
    place: Mapped[int] = mapped_column(BigInteger)
    audit_run: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    route_run: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    record_id: Mapped[str] = mapped_column(Text)
    kept: Mapped[bool]
    differs: Mapped[float | None] = mapped_column(Float(53))
    loss: Mapped[float | None] = mapped_column(Float(53))
    counted_by: Mapped[str | None] = mapped_column(String(36))
    __table_args__ = (Index("audited_rows_by_place", "bundle_hash", "place"),)


class LabelRow(Base):
    """What the right answer to a row is in one field, as somebody said after it had been routed."""

    __tablename__ = "labels"
    workload: Mapped[str] = mapped_column(Text, primary_key=True)
    record_id: Mapped[str] = mapped_column(Text, primary_key=True)
    field: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[Any] = mapped_column(JSONB)
    source: Mapped[str] = mapped_column(Text)
    imported_at: Mapped[datetime] = created()
