"""Snapshot: the dataset as it is now, immutable, by content hash."""

from collections.abc import Mapping
from pathlib import Path

from prefect import task

from domain.datasets import JUDGED, Split
from domain.errors import NothingChanged
from infra import snapshots, tracking
from infra.db.session import transaction
from infra.db.store import datasets
from infra.db.store.snapshots import require_version
from infra.snapshots import read_records, store_snapshot
from infra.unchanged import unchanged_since
from tasks.naming import name_run
from tasks.references import DatasetRef, RunRef
from tasks.running import is_retryable, load_for, step

SAMPLE_ROWS = 50


@task(task_run_name="snapshot-dataset", retry_condition_fn=is_retryable)
def snapshot_dataset(run: RunRef, *, max_rows: int | None = None, version: str | None = None) -> DatasetRef:
    """Store the labelled rows; calibration and test rows become the run's own, bad rows its quarantine.

    A run that is resumed keeps the snapshot it has: the files are not read again, whatever became of them. With a
    `version` of the ledger nothing is read either.
    """
    uri = load_for(run).workload.dataset.uri
    return _snapshot(run, uri, JUDGED, max_rows=max_rows, version=version)


@task(task_run_name="snapshot-incoming", retry_condition_fn=is_retryable)
def snapshot_incoming(
    run: RunRef, *, uri: str | None = None, max_rows: int | None = None, version: str | None = None
) -> DatasetRef:
    """Store the rows to route; all of them become the run's own, bad rows its quarantine. Else as above."""
    dataset = load_for(run).workload.dataset
    asked = uri or dataset.incoming or dataset.uri
    return _snapshot(run, asked, (Split.INCOMING,), max_rows=max_rows, version=version)


def changed(data: DatasetRef) -> DatasetRef:
    """The dataset, unless the run asked for changes and there are none: then NothingChanged ends it."""
    if data.same_as is not None:
        raise NothingChanged(data.same_as)
    return data


def _snapshot(
    run: RunRef, uri: str, splits: tuple[Split, ...], *, max_rows: int | None, version: str | None
) -> DatasetRef:
    taken = snapshots.taken_by(run.run_id)
    if taken is not None or version is not None:
        found, new = taken or version or "", False
        with transaction() as db:
            uri = require_version(db, found)
    else:
        labelled = splits == JUDGED
        rows = read_records(load_for(run).workload.dataset, uri, Path(run.folder), labelled=labelled)
        found, new = store_snapshot(rows, uri=uri, max_rows=max_rows)
    name_run("optimize" if splits == JUDGED else "route", run.workload, found)
    same_as = unchanged_since(run.run_id, found, scope=run.scope) if run.only_changed and taken is None else None
    with transaction() as db:
        sizes = datasets.split_sizes(db, found)
        bad = datasets.count_bad_rows(db, found)
    data = DatasetRef(
        version=found, uri=uri, bad_rows=bad, new=new, same_as=same_as, **{s.value: n for s, n in sizes.items()}
    )
    if same_as is None:
        snapshots.take_version(run.run_id, found, splits)
        _track(run, data, sizes, labelled=splits == JUDGED)
    return data


def _track(run: RunRef, data: DatasetRef, sizes: Mapping[Split, int], *, labelled: bool) -> None:
    with transaction() as db:
        # A split at a time: the index has their rows in order.
        some = [row for split in sizes for row in datasets.load_records(db, data.version, split, limit=SAMPLE_ROWS)]
        sample = [row.record for row in sorted(some, key=lambda row: row.ordinal)[:SAMPLE_ROWS]]
    with step(run, "snapshot") as step_id:
        for tracked in (run.tracking_id, step_id):
            tracking.log_dataset(
                tracked,
                name=run.workload,
                digest=data.version[:16],
                uri=data.uri,
                rows=[{**record.inputs, **(record.gold or {})} for record in sample],
                row_count=sum(sizes.values()),
                context="training" if labelled else "inference",
            )
        tracking.set_tags(run.tracking_id, {"headrace.dataset.revision": data.version})
        tracking.log(step_id, params={}, metrics={"records": sum(sizes.values()), "bad_rows": data.bad_rows})
