"""The tables: one ledger in Postgres. Every table has a natural key, so that writing twice is harmless."""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, DateTime, Float, ForeignKey, Index, Integer, String, Text, Uuid, false, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = dict[str, Any]


class Base(DeclarativeBase):
    """Root of the tables."""

    type_annotation_map: ClassVar = {Json: JSONB(none_as_null=True), datetime: DateTime(timezone=True)}


def created() -> Mapped[datetime]:
    return mapped_column(server_default=func.now())


class DatasetVersionRow(Base):
    """An immutable, ordered snapshot."""

    __tablename__ = "dataset_versions"
    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    uri: Mapped[str] = mapped_column(Text)
    records: Mapped[int]
    bad_rows: Mapped[int]
    created_at: Mapped[datetime] = created()


class RecordRow(Base):
    """A row of a snapshot."""

    __tablename__ = "records"
    dataset_version: Mapped[str] = mapped_column(ForeignKey("dataset_versions.hash"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    ordinal: Mapped[int]
    record_id: Mapped[str] = mapped_column(Text)
    split: Mapped[str] = mapped_column(String(16))
    inputs: Mapped[Json]
    gold: Mapped[Json | None]
    file: Mapped[str] = mapped_column(Text)
    line: Mapped[int | None]
    __table_args__ = (Index("records_by_split", "dataset_version", "split", "ordinal"),)


class BadRowRow(Base):
    """A row of a snapshot that cannot be used."""

    __tablename__ = "bad_rows"
    dataset_version: Mapped[str] = mapped_column(ForeignKey("dataset_versions.hash"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    file: Mapped[str] = mapped_column(Text)
    line: Mapped[int | None]
    field: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    excerpt: Mapped[str] = mapped_column(Text)


class PromptVersionRow(Base):
    """A compiled prompt; `compile_key` is everything that led to it, so that unchanged work is not done again."""

    __tablename__ = "prompt_versions"
    compile_key: Mapped[str] = mapped_column(String(64), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), index=True)
    workload: Mapped[str] = mapped_column(Text)
    tier: Mapped[str] = mapped_column(String(16))
    body: Mapped[Json]
    report: Mapped[Json]
    created_at: Mapped[datetime] = created()


class RunRow(Base):
    """A run; its id is the Prefect flow run's. `started_by` is a domain.starts.Starter, where Prefect has said."""

    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    workload: Mapped[str] = mapped_column(Text, index=True)
    workload_hash: Mapped[str] = mapped_column(String(64))
    spec: Mapped[Json]
    state: Mapped[str] = mapped_column(String(16))
    dataset_version: Mapped[str | None] = mapped_column(ForeignKey("dataset_versions.hash"))
    bundle_hash: Mapped[str | None] = mapped_column(String(64))
    meters_before: Mapped[Json]
    meters_after: Mapped[Json | None]
    links: Mapped[Json] = mapped_column(server_default="{}")
    summary: Mapped[Json] = mapped_column(server_default="{}")
    max_usd: Mapped[float | None] = mapped_column(Float(53))
    max_tokens: Mapped[int | None] = mapped_column(BigInteger)
    cancel_requested: Mapped[bool] = mapped_column(server_default=false())
    started_by: Mapped[str | None] = mapped_column(String(16))
    started_at: Mapped[datetime] = created()
    ended_at: Mapped[datetime | None]


class LeaseRow(Base):
    """Who may write for a piece of work; the token grows with every new holder and fences off the former ones."""

    __tablename__ = "leases"
    work: Mapped[str] = mapped_column(String(64), primary_key=True)
    run_id: Mapped[str] = mapped_column(String(36))
    token: Mapped[int] = mapped_column(BigInteger)
    holder: Mapped[str] = mapped_column(Text)
    expires_at: Mapped[datetime]


class RunDeploymentRow(Base):
    """How a tier answered a run's rows: runs with the same deployment give the same answers to the same rows."""

    __tablename__ = "run_deployments"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    tier: Mapped[str] = mapped_column(String(16), primary_key=True)
    deployment: Mapped[str] = mapped_column(String(64), index=True)


class RunRowRow(Base):
    """A row that a run took upon itself; `position` counts from 0 without gaps, bad rows have -1."""

    __tablename__ = "run_rows"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    record_key: Mapped[str] = mapped_column(String(64), primary_key=True)
    position: Mapped[int]
    __table_args__ = (Index("run_rows_by_position", "run_id", "position"),)


class FrameRow(Base):
    """All of a request but its last message, once for the many rows that share it."""

    __tablename__ = "request_frames"
    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    body: Mapped[Json]
    revision: Mapped[str | None] = mapped_column(Text)


class CompletionRow(Base):
    """An answer, by the hash of its request: asked once, believed for ever."""

    __tablename__ = "completions"
    request_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    sample_index: Mapped[int] = mapped_column(Integer, primary_key=True, server_default="0")
    model: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)
    finish_reason: Mapped[str] = mapped_column(String(32))
    label_logprobs: Mapped[Json]
    readings: Mapped[Json | None]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    fingerprint: Mapped[str | None] = mapped_column(Text)
    frame_hash: Mapped[str] = mapped_column(String(64))
    last_message: Mapped[Json]
    created_at: Mapped[datetime] = created()


class AttemptRow(Base):
    """One call, or one look-up that spared a call."""

    __tablename__ = "attempts"
    attempt_id: Mapped[str] = mapped_column(Uuid(as_uuid=False), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    stage: Mapped[str] = mapped_column(String(16))
    tier: Mapped[str] = mapped_column(String(16))
    record_key: Mapped[str] = mapped_column(String(64))
    request_hash: Mapped[str] = mapped_column(String(64))
    number: Mapped[int]
    cached: Mapped[bool]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    seconds: Mapped[float] = mapped_column(Float(53))
    usd: Mapped[float] = mapped_column(Float(53))
    worker: Mapped[str] = mapped_column(Text)
    outcome: Mapped[str] = mapped_column(String(16))
    detail: Mapped[str | None] = mapped_column(Text)
    at: Mapped[datetime] = created()
    __table_args__ = (Index("attempts_by_run", "run_id", "stage", "tier", "record_key"),)


class AnswerRow(Base):
    """What one tier finally says to one row of one run."""

    __tablename__ = "answers"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    tier: Mapped[str] = mapped_column(String(16), primary_key=True)
    record_key: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    output: Mapped[Json | None]
    confidence: Mapped[float | None] = mapped_column(Float(53))
    signals: Mapped[Json | None]
    signal_usd: Mapped[Json | None]
    reasks: Mapped[int]
    tokens: Mapped[int]
    usd: Mapped[float] = mapped_column(Float(53))
    failed: Mapped[str | None] = mapped_column(Text)


class ImportedAnswerRow(Base):
    """An answer that came with a run from another ledger and that none of its calls names: an earlier run, which stayed
    there, had asked. The run is not replayed whole without it."""

    __tablename__ = "imported_answers"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64), primary_key=True)


class OutcomeRow(Base):
    """A row's final answer."""

    __tablename__ = "outcomes"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    record_key: Mapped[str] = mapped_column(String(64), primary_key=True)
    tier: Mapped[str] = mapped_column(String(16))
    output: Mapped[Json]
    confidence: Mapped[float | None] = mapped_column(Float(53))
    escalated: Mapped[bool]
    usd: Mapped[float] = mapped_column(Float(53))


class QuarantinedRow(Base):
    """A row that could not be answered, with the reason."""

    __tablename__ = "quarantined"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    record_key: Mapped[str] = mapped_column(String(64), primary_key=True)
    stage: Mapped[str] = mapped_column(String(16))
    file: Mapped[str] = mapped_column(Text)
    line: Mapped[int | None]
    field: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)


class ScoreRow(Base):
    """A metric's value for one tier's answer to one row."""

    __tablename__ = "scores"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    record_key: Mapped[str] = mapped_column(String(64), primary_key=True)
    tier: Mapped[str] = mapped_column(String(16), primary_key=True)
    metric: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[float] = mapped_column(Float(53))
    label: Mapped[str | None] = mapped_column(Text)
    explanation: Mapped[str | None] = mapped_column(Text)


class ProgressRow(Base):
    """How far a stage of a run is; read by the terminal's live bar."""

    __tablename__ = "progress"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    stage: Mapped[str] = mapped_column(String(48), primary_key=True)
    done: Mapped[int] = mapped_column(BigInteger)
    total: Mapped[int] = mapped_column(BigInteger)
    unit: Mapped[str] = mapped_column(String(16))
    started_at: Mapped[datetime] = created()
    updated_at: Mapped[datetime] = created()
