"""The tables of bundles: what was deployed, by whom, and what each certificate spent."""

from datetime import datetime

from sqlalchemy import BigInteger, Float, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import Identity, UniqueConstraint

from infra.db.tables import Base, Json, created


class BundleRow(Base):
    """A bundle by its hash; one that was imported from a folder has no run here."""

    __tablename__ = "bundles"
    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    workload: Mapped[str] = mapped_column(Text, index=True)
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"))
    body: Mapped[Json]
    created_at: Mapped[datetime] = created()


class AliasRow(Base):
    """`champion` or `challenger` of a workload."""

    __tablename__ = "aliases"
    workload: Mapped[str] = mapped_column(Text, primary_key=True)
    alias: Mapped[str] = mapped_column(String(16), primary_key=True)
    bundle_hash: Mapped[str] = mapped_column(ForeignKey("bundles.hash"))


class PromotionRow(Base):
    """One decision of the gate in a run."""

    __tablename__ = "promotions"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    bundle_hash: Mapped[str] = mapped_column(ForeignKey("bundles.hash"), primary_key=True)
    workload: Mapped[str] = mapped_column(Text)
    passed: Mapped[bool]
    reasons: Mapped[Json]
    at: Mapped[datetime] = created()


class PromotionAuditRow(Base):
    """Who made which bundle champion, when and why, or was refused; rows are added and never changed (a trigger)."""

    __tablename__ = "promotion_audit"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = created()
    who: Mapped[str] = mapped_column(Text)
    act: Mapped[str] = mapped_column(String(16))
    workload: Mapped[str] = mapped_column(Text, index=True)
    from_hash: Mapped[str | None] = mapped_column(String(64))
    to_hash: Mapped[str] = mapped_column(String(64))
    reason: Mapped[str | None] = mapped_column(Text)
    gate: Mapped[Json | None]
    run_id: Mapped[str | None] = mapped_column(String(36))
    __table_args__ = (UniqueConstraint("run_id", "to_hash", "act", name="promotion_audit_once_a_run"),)


class TuningRow(Base):
    """One use of a workload's calibration rows for a certificate: each uses up a part of delta."""

    __tablename__ = "tunings"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    workload: Mapped[str] = mapped_column(Text)
    dataset_version: Mapped[str] = mapped_column(ForeignKey("dataset_versions.hash"))
    evidence: Mapped[str] = mapped_column(String(64))
    number: Mapped[int]
    delta: Mapped[float] = mapped_column(Float(53))
    at: Mapped[datetime] = created()
    __table_args__ = (Index("tunings_by_workload", "workload", "dataset_version"),)
