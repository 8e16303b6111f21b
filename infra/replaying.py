"""Replay: every decision of a finished run made again from the ledger, by the code that decided, and compared."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from pydantic import JsonValue, ValidationError

from domain.bundles import Bundle
from domain.canonical import digest
from domain.datasets import Split, split_of
from domain.errors import NotFound
from domain.replays import Cause, Comparison, Kind
from domain.workloads import Workload, identity_of
from infra import versions
from infra.db.session import transaction
from infra.db.store import replays as store
from infra.db.store import runs
from infra.db.store.datasets import StoredRecord
from infra.db.store.runs import RunRecord
from infra.replayed_prompts import bundled_tiers, compiled_tiers
from infra.replayed_rows import Recording, Setting
from infra.replayed_steps import OptimizeSteps, RouteSteps, Steps, load_page
from infra.workloads import LoadedWorkload

KINDS = ("optimize", "route")
"""Runs that decide something."""
PAGE = 1000
"""Rows in memory at once."""


class NotReplayable(NotFound):
    """The run has not ended, or what it was made of is gone."""


@dataclass(slots=True)
class Replay:
    """What came of a replay: `unproven` answers had to be taken as recorded, `notes` say what was not compared."""

    run: RunRecord
    seen: Comparison
    recorded_code: str | None
    code: str
    rows: int = 0
    unproven: int = 0
    notes: list[str] = field(default_factory=list[str])


def replay(run_id: str, folder: Path) -> Replay:
    """Replay a run with the schema and metric of the workload in `folder`; raises NotFound and NotReplayable."""
    with transaction() as db:
        run = runs.load_run(db, run_id)
    return asyncio.run(_replay(run, _loaded(run, folder)))


def _loaded(run: RunRecord, folder: Path) -> LoadedWorkload:
    """The workload as the run recorded it, with the code beside it as it is now."""
    if run.kind not in KINDS:
        raise NotReplayable(f"the run {run.id[:8]} is of kind {run.kind!r}, which decides nothing.")
    if run.state != "completed" or run.dataset_version is None or run.bundle_hash is None:
        raise NotReplayable(f"the run {run.id[:8]} is {run.state!r}; only a completed one can be replayed.")
    try:
        return LoadedWorkload(Workload.model_validate(run.spec), folder)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field_ = ".".join(map(str, problem["loc"]))
        raise NotReplayable(f"its workload is none by this code's rules: {field_}: {problem['msg']}") from error


async def _replay(run: RunRecord, loaded: LoadedWorkload) -> Replay:
    recorded_code = cast(str | None, run.summary.get("code"))
    setting = Setting(run, loaded, Comparison(), Recording(run.ended_at), Cause.LEDGER)
    if not _compare_workload(setting):
        setting.cause = Cause.SCHEMA
    elif recorded_code not in (None, versions.code_version()):
        setting.cause = Cause.CODE
    replayed = Replay(run, setting.seen, recorded_code, versions.code_version())
    _compare_snapshot(setting)
    steps = _steps(setting)
    for page in _pages(run.dataset_version or ""):
        broken = {row.key for row in page if not _compare_record(setting, row)}
        rows = [row for row in page if row.record.split is not Split.TRAIN]
        await steps.take(load_page(setting, rows, broken))
        replayed.rows += len(rows)
    await steps.finish()
    replayed.unproven, replayed.notes = setting.unproven, setting.notes
    return replayed


def _steps(setting: Setting) -> Steps:
    bundle = _bundle(setting)
    if setting.run.kind == "optimize":
        return OptimizeSteps(setting, compiled_tiers(setting, bundle), bundle)
    void = bool(setting.run.summary.get("void"))
    return RouteSteps(setting, bundled_tiers(setting, bundle, void=void), None if void else bundle.threshold)


def _bundle(setting: Setting) -> Bundle:
    """The bundle that a run made or went by, as it stands in the ledger."""
    bundle_hash = setting.run.bundle_hash or ""
    with transaction() as db:
        body = store.load_bundle_body(db, bundle_hash)
    if body is None:
        raise NotReplayable(f"the bundle {bundle_hash[:12]} is not in the ledger.")
    setting.seen.same(
        Kind.STORED_BUNDLE, f"bundle {bundle_hash[:12]}", bundle_hash, digest(cast(JsonValue, body)), cause=Cause.LEDGER
    )
    try:
        return Bundle.model_validate(body)
    except ValidationError as error:
        raise NotReplayable(f"the bundle {bundle_hash[:12]} is none by this code's rules.") from error


def _compare_workload(setting: Setting) -> bool:
    """Whether the workload on record and the code beside it today give the hash that the run had."""
    now = identity_of(cast(dict[str, JsonValue], setting.run.spec), code=setting.loaded.code)
    what = f"the workload with the code in {setting.loaded.folder.name}"
    return setting.seen.same(Kind.WORKLOAD, what, setting.run.workload_hash, now, cause=Cause.SCHEMA)


def _compare_snapshot(setting: Setting) -> None:
    """The number of records and bad rows, and the bad rows one by one."""
    version = setting.run.dataset_version or ""
    with transaction() as db:
        said, there = store.load_sizes(db, version)
        bad = store.load_bad_rows(db, version)
    setting.seen.same(Kind.RECORDS, "records and bad rows", list(said), list(there), cause=Cause.DATA)
    for key, row in bad:
        setting.seen.same(Kind.RECORDS, f"bad row {row.place}", key, row.key, cause=Cause.DATA)


def _compare_record(setting: Setting, row: StoredRecord) -> bool:
    """Whether a record is what its key says and stands in the split that its id decides."""
    record, splits = row.record, setting.loaded.workload.dataset.splits
    split = Split.INCOMING if setting.run.kind == "route" else split_of(record.record_id, splits)
    return setting.seen.same(
        Kind.RECORDS,
        f"{record.record_id} ({record.place})",
        {"key": row.key, "split": record.split},
        {"key": replace(record, key="").key, "split": split},
        cause=Cause.DATA,
    )


def _pages(version: str) -> Iterator[list[StoredRecord]]:
    after = -1
    while True:
        with transaction() as db:
            page = store.load_page(db, version, after=after, limit=PAGE)
        if not page:
            return
        yield page
        after = page[-1].ordinal
