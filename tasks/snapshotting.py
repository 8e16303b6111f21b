"""Snapshot: the dataset as it is now, immutable, by content hash."""

from pathlib import Path

from prefect import task

from domain.datasets import JUDGED, Split
from domain.workloads import Dataset
from infra import tracking
from infra.db.session import transaction
from infra.db.store import datasets
from infra.snapshots import read_records, take_snapshot
from tasks.references import DatasetRef, RunRef
from tasks.running import is_retryable, load_for, step

SAMPLE_ROWS = 50


@task(retry_condition_fn=is_retryable)
def snapshot_dataset(run: RunRef, *, max_rows: int | None = None) -> DatasetRef:
    """Store the labelled rows; calibration and test rows become the run's own, bad rows its quarantine.

    A run that is resumed keeps the snapshot it has: the files are not read again, whatever became of them.
    """
    dataset = load_for(run).workload.dataset
    return _snapshot(run, dataset, dataset.uri, labelled=True, max_rows=max_rows)


@task(retry_condition_fn=is_retryable)
def snapshot_incoming(run: RunRef, *, uri: str | None = None, max_rows: int | None = None) -> DatasetRef:
    """Store the rows to route; all of them become the run's own, bad rows its quarantine.

    A run that is resumed keeps the snapshot it has: the files are not read again, whatever became of them.
    """
    dataset = load_for(run).workload.dataset
    return _snapshot(run, dataset, uri or dataset.incoming or dataset.uri, labelled=False, max_rows=max_rows)


def _snapshot(run: RunRef, dataset: Dataset, uri: str, *, labelled: bool, max_rows: int | None) -> DatasetRef:
    rows = read_records(dataset, uri, Path(run.folder), labelled=labelled)
    splits = JUDGED if labelled else (Split.INCOMING,)
    version, new = take_snapshot(run.run_id, rows, uri=uri, splits=splits, max_rows=max_rows)
    with transaction() as db:
        sizes = datasets.split_sizes(db, version)
        bad = datasets.count_bad_rows(db, version)
        # A split at a time: the index has their rows in order.
        found = [row for split in sizes for row in datasets.load_records(db, version, split, limit=SAMPLE_ROWS)]
        sample = [row.record for row in sorted(found, key=lambda row: row.ordinal)[:SAMPLE_ROWS]]
    with step(run, "snapshot") as step_id:
        for tracked in (run.tracking_id, step_id):
            tracking.log_dataset(
                tracked,
                name=run.workload,
                digest=version[:16],
                uri=uri,
                rows=[{**record.inputs, **(record.gold or {})} for record in sample],
                row_count=sum(sizes.values()),
                context="training" if labelled else "inference",
            )
        tracking.set_tags(run.tracking_id, {"headrace.dataset.revision": version})
        tracking.log(step_id, params={}, metrics={"records": sum(sizes.values()), "bad_rows": bad})
    return DatasetRef(version=version, uri=uri, bad_rows=bad, new=new, **{s.value: n for s, n in sizes.items()})
