"""Runs out of one ledger and into another: a zip of JSON lines, a file a table, nothing in it that could run."""

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, cast

from sqlalchemy import ColumnElement, DateTime, Select, Table, select
from sqlalchemy.orm import Session, aliased

from domain.bundles import Bundle
from domain.canonical import digest
from domain.datasets import Split, cut_train
from domain.errors import InputError, Place
from domain.prompts import PromptVersion
from domain.requests import Frame, Request, request_hash
from domain.workloads import TierName, Workload
from infra.db.bundle_tables import BundleRow, PromotionRow, TuningRow
from infra.db.session import transaction
from infra.db.store import datasets, imports, runs
from infra.db.store.writing import add
from infra.db.tables import (
    AnswerRow,
    AttemptRow,
    BadRowRow,
    Base,
    CompletionRow,
    DatasetVersionRow,
    FrameRow,
    ImportedAnswerRow,
    OutcomeRow,
    PromptVersionRow,
    QuarantinedRow,
    RecordRow,
    RunDeploymentRow,
    RunRow,
    RunRowRow,
    ScoreRow,
)

FORMAT = 1
MANIFEST = "manifest.json"
BATCH = 500
LONGEST_LINE = 64 * 1024 * 1024
"""Characters of one row; a file from a stranger shall not fill the memory."""
RUNS_OWN = (
    RunRowRow,
    RunDeploymentRow,
    AttemptRow,
    AnswerRow,
    OutcomeRow,
    QuarantinedRow,
    ScoreRow,
    PromotionRow,
    TuningRow,
)
TABLES: dict[str, type[Base]] = {
    table.__tablename__: table
    for table in (
        *(DatasetVersionRow, RecordRow, BadRowRow, PromptVersionRow, RunRow, FrameRow, CompletionRow, BundleRow),
        *RUNS_OWN,
    )
}
"""What a run is made of. Aliases are not: importing a run moves no champion."""


def export_run(run_id: str, file: Path) -> dict[str, int]:
    """Write a run with everything that its replay needs; for a batch also the run that made its bundle.

    The file holds the rows, the prompts and the answers in plain text. Returns the rows of each table; raises NotFound.
    """
    with transaction() as db:
        run = runs.load_run(db, run_id)
        maker = db.scalar(select(BundleRow.run_id).where(BundleRow.hash == run.bundle_hash))
        chosen = _selections(db, sorted({run.id, *([maker] if maker else [])}))
        counts: dict[str, int] = {}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            archive.writestr(MANIFEST, json.dumps({"format": FORMAT, "run": run.id, "tables": list(chosen)}))
            for name, query in chosen.items():
                with archive.open(f"{name}.jsonl", "w", force_zip64=True) as entry:
                    counts[name] = 0
                    for row in db.execute(query.execution_options(yield_per=BATCH)).mappings():
                        entry.write(json.dumps(_plain(name, {**row}), ensure_ascii=False).encode() + b"\n")
                        counts[name] += 1
    return counts


def import_runs(file: Path) -> dict[str, int]:
    """Add an exported run to this ledger; what is there already stays. Returns the rows of each table.

    Raises InputError, and then nothing was written, when the file is none of ours, when a row is not what its hash
    says, or when this ledger holds other answers to the same requests: there the run would not follow from its answers
    any more. What models answered, scores and states have no hash: they are believed as they are.
    """
    try:
        with zipfile.ZipFile(file) as archive, transaction() as db:
            manifest = json.loads(archive.read(MANIFEST))
            if manifest.get("format") != FORMAT:
                raise InputError(Place(str(file)), f"its format is {manifest.get('format')!r}, not {FORMAT}")
            order = [table.name for table in Base.metadata.sorted_tables if table.name in manifest["tables"]]
            written = {name: _read(db, archive, name, file) for name in order if name in TABLES}
            _note_answers(db, archive, str(manifest["run"]))
            return written
    except (zipfile.BadZipFile, KeyError, ValueError, AttributeError, OSError) as error:
        raise InputError(Place(str(file)), f"this is no exported run: {error}"[:300]) from error


def _selections(db: Session, run_ids: list[str]) -> dict[str, Select[Any]]:
    """The rows of each table that these runs are made of."""
    found = db.execute(select(RunRow.dataset_version, RunRow.bundle_hash).where(RunRow.id.in_(run_ids))).tuples().all()
    versions = {version for version, _ in found if version}
    bodies = {bundle.hash: bundle.body for bundle in db.scalars(select(BundleRow).where(BundleRow.run_id.in_(run_ids)))}
    bundles = [Bundle.model_validate(body) for body in bodies.values()]
    prompts = {bundle[tier].prompt.hash for bundle in bundles for tier in TierName}
    asked = select(AttemptRow.request_hash).where(AttemptRow.run_id.in_(run_ids))
    answered = select(AnswerRow.request_hash).where(AnswerRow.run_id.in_(run_ids))
    brought = select(ImportedAnswerRow.request_hash).where(ImportedAnswerRow.run_id.in_(run_ids))
    known = asked.union(answered, brought, _behind_reused(run_ids))
    answers = CompletionRow.request_hash.in_(known) | CompletionRow.request_hash.in_(
        _behind_priors(db, run_ids, bundles)
    )
    conditions: dict[type[Base], ColumnElement[bool]] = {
        DatasetVersionRow: DatasetVersionRow.hash.in_(versions),
        RecordRow: RecordRow.dataset_version.in_(versions),
        BadRowRow: BadRowRow.dataset_version.in_(versions),
        PromptVersionRow: PromptVersionRow.hash.in_(prompts)
        # Another workload may have come to the very same prompt.
        & PromptVersionRow.workload.in_({bundle.workload for bundle in bundles}),
        RunRow: RunRow.id.in_(run_ids),
        FrameRow: FrameRow.hash.in_(select(CompletionRow.frame_hash).where(answers)),
        CompletionRow: answers,
        BundleRow: BundleRow.hash.in_(bodies),
        **{table: _table(table).c.run_id.in_(run_ids) for table in RUNS_OWN},
    }
    return {
        name: select(_table(table)).where(conditions[table]).order_by(*_table(table).primary_key)
        for name, table in TABLES.items()
    }


def _behind_reused(run_ids: list[str]) -> Select[str]:
    """What was asked again, or for a signal, about rows of these runs wherever the same deployment answered them: an
    answer that was taken over brings the last request that led to it and no other."""
    ours, theirs = aliased(RunDeploymentRow), aliased(RunDeploymentRow)
    a = AttemptRow
    return (
        select(a.request_hash)
        .join(theirs, (theirs.run_id == a.run_id) & (theirs.tier == a.tier))
        .join(ours, (ours.deployment == theirs.deployment) & (ours.tier == theirs.tier))
        .join(AnswerRow, (AnswerRow.run_id == ours.run_id) & (AnswerRow.tier == ours.tier))
        .where(ours.run_id.in_(run_ids), AnswerRow.record_key == a.record_key)
    )


def _behind_priors(db: Session, run_ids: list[str], bundles: list[Bundle]) -> set[str]:
    """Requests whose answers the label priors were fitted on: an earlier run may have asked them."""
    hashes: set[str] = set()
    for run in (runs.load_run(db, run_id) for run_id in run_ids):
        for bundle in (b for b in bundles if run.kind == "optimize" and b.hash == run.bundle_hash):
            train = datasets.load_records(db, run.dataset_version or "", Split.TRAIN)
            limit = Workload.model_validate(run.spec).optimizer.validation_rows
            validation, held_out, _ = cut_train(train, limit)
            for tier in TierName:
                frame = _frame(db, run.id, tier)
                prompt = bundle[tier].prompt
                rows = [*validation, *held_out] if frame else []
                hashes |= {Request(cast(Frame, frame), prompt.question(row.record.inputs)).hash for row in rows}
    return hashes


def _frame(db: Session, run_id: str, tier: TierName) -> Frame | None:
    """What the requests of a tier's rows have in common."""
    row = db.scalar(
        select(FrameRow)
        .join(CompletionRow, CompletionRow.frame_hash == FrameRow.hash)
        .join(AnswerRow, AnswerRow.request_hash == CompletionRow.request_hash)
        .where(AnswerRow.run_id == run_id, AnswerRow.tier == tier, AnswerRow.reasks == 0)
        .limit(1)
    )
    return Frame(row.body, row.revision) if row else None


def _plain(name: str, row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row in JSON's types; links lead to servers that the reader does not have, nor has he this one's schedules."""
    values: dict[str, Any] = {
        key: value.isoformat() if isinstance(value, datetime) else value for key, value in row.items()
    }
    if name == RunRow.__tablename__:
        del values["started_by"]
        values["links"] = {}
    return values


def _read(db: Session, archive: zipfile.ZipFile, name: str, file: Path) -> int:
    table = TABLES[name]
    moments = {column.name for column in _table(table).columns if isinstance(column.type, DateTime)}
    written = 0
    with archive.open(f"{name}.jsonl") as entry:
        lines = _lines(io.TextIOWrapper(entry, encoding="utf-8"))
        while some := [_typed(json.loads(line), moments) for line in islice(lines, BATCH)]:
            _refuse_other_hashes(table, some, file)
            if table is CompletionRow:
                _refuse_other_answers(db, some, file)
            add(db, table, some)
            written += len(some)
    return written


def _note_answers(db: Session, archive: zipfile.ZipFile, run_id: str) -> None:
    """Say which answers the runs need that none of their calls names: retention would take them for nobody's."""
    run_ids = imports.run_and_maker(db, run_id)
    with archive.open(f"{CompletionRow.__tablename__}.jsonl") as entry:
        lines = _lines(io.TextIOWrapper(entry, encoding="utf-8"))
        while hashes := [json.loads(line)["request_hash"] for line in islice(lines, BATCH)]:
            imports.note_answers(db, run_ids, hashes)
    imports.forget_named(db, run_ids)


def _lines(stream: io.TextIOWrapper) -> Iterator[str]:
    while line := stream.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise ValueError("a line is too long")
        yield line


def _typed(row: dict[str, Any], moments: set[str]) -> dict[str, Any]:
    return {
        key: datetime.fromisoformat(value) if key in moments and value is not None else value
        for key, value in row.items()
    }


def _refuse_other_hashes(table: type[Base], rows: list[dict[str, Any]], file: Path) -> None:
    """What is named by what it says must say that: a row that was changed on the way is not taken."""
    hashed = _HASHED.get(table)
    if hashed is None:
        return
    name, of = hashed
    for row in rows:
        if of(row) != row[name]:
            raise InputError(
                Place(str(file), field=f"{table.__tablename__}.{name}"),
                f"{row[name][:12]} is not the hash of what it stands for: the row was changed after the export",
                hint="Export the run again with `headrace export RUN run.zip`.",
            )


_HASHED: dict[type[Base], tuple[str, Callable[[dict[str, Any]], str]]] = {
    RecordRow: ("key", lambda row: digest({"id": row["record_id"], "inputs": row["inputs"], "gold": row["gold"]})),
    PromptVersionRow: ("hash", lambda row: PromptVersion.model_validate(row["body"]).hash),
    FrameRow: ("hash", lambda row: Frame(row["body"], row["revision"]).hash),
    CompletionRow: ("request_hash", lambda row: request_hash(row["frame_hash"], row["last_message"])),
    BundleRow: ("hash", lambda row: Bundle.model_validate(row["body"]).hash),
}


def _refuse_other_answers(db: Session, rows: list[dict[str, Any]], file: Path) -> None:
    given = {row["request_hash"]: row["text"] for row in rows}
    query = select(CompletionRow.request_hash, CompletionRow.text).where(CompletionRow.request_hash.in_(given))
    others = sum(text != given[key] for key, text in db.execute(query).tuples())
    if others:
        raise InputError(
            Place(str(file)),
            f"this ledger holds other answers to {others} of its requests",
            hint="Import it into an empty database of its own: set DATABASE_URL.",
        )


def _table(table: type[Base]) -> Table:
    return cast(Table, table.__table__)
