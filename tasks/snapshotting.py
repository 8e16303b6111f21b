"""Snapshot: the dataset as it is now, immutable, by content hash."""

from pathlib import Path

from prefect import task

from domain.datasets import BadRow, Record, Split, read_record, separate_duplicates, version_hash
from domain.workloads import Dataset
from infra import tracking
from infra.db.session import transaction
from infra.db.store import answers, datasets, runs
from infra.db.store.answers import StoredQuarantine
from infra.reading import read_rows
from tasks.references import DatasetRef, RunRef
from tasks.running import is_retryable, load_for, step


@task(retry_condition_fn=is_retryable)
def snapshot_dataset(run: RunRef, *, max_rows: int | None = None) -> DatasetRef:
    """Store the labelled rows; calibration and test rows become the run's own, bad rows its quarantine."""
    dataset = load_for(run).workload.dataset
    return _snapshot(run, dataset, dataset.uri, labelled=True, max_rows=max_rows)


@task(retry_condition_fn=is_retryable)
def snapshot_incoming(run: RunRef, *, uri: str | None = None, max_rows: int | None = None) -> DatasetRef:
    """Store the rows to route; all of them become the run's own, bad rows its quarantine."""
    dataset = load_for(run).workload.dataset
    return _snapshot(run, dataset, uri or dataset.incoming or dataset.uri, labelled=False, max_rows=max_rows)


def _snapshot(run: RunRef, dataset: Dataset, uri: str, *, labelled: bool, max_rows: int | None) -> DatasetRef:
    records, bad = read_dataset(dataset, uri, Path(run.folder), labelled=labelled, max_rows=max_rows)
    version = version_hash(records, bad)
    own = [(key, n) for n, key in enumerate(r.key for r in records if r.split is not Split.TRAIN)]
    with transaction() as db:
        new = datasets.save_version(db, version, uri=uri, records=records, bad=bad)
        runs.change_run(db, run.run_id, dataset_version=version)
        runs.take_rows(db, run.run_id, [*own, *((row.key, -1) for row in bad)])
        refused = (StoredQuarantine(row.key, "snapshot", row.place, row.reason) for row in bad)
        answers.save_quarantine(db, run.run_id, refused)
        sizes = datasets.split_sizes(db, version)
    with step(run, "snapshot") as step_id:
        sample = [{**r.inputs, **(r.gold or {})} for r in records[:50]]
        context = "training" if labelled else "inference"
        for tracked in (run.tracking_id, step_id):
            tracking.log_dataset(
                tracked,
                name=run.workload,
                digest=version[:16],
                uri=uri,
                rows=sample,
                row_count=len(records),
                context=context,
            )
        tracking.set_tags(run.tracking_id, {"headrace.dataset.revision": version})
        tracking.log(step_id, params={}, metrics={"records": len(records), "bad_rows": len(bad)})
    return DatasetRef(
        version=version, uri=uri, bad_rows=len(bad), new=new, **{split.value: n for split, n in sizes.items()}
    )


def read_dataset(
    dataset: Dataset, uri: str, folder: Path, *, labelled: bool, max_rows: int | None
) -> tuple[list[Record], list[BadRow]]:
    """All rows of a uri as records, and those that cannot be used; `max_rows` keeps the first good ones."""
    records: list[Record] = []
    bad: list[BadRow] = []
    for row in read_rows(uri, folder):
        read = row if isinstance(row, BadRow) else read_record(row.raw, row.place, dataset=dataset, labelled=labelled)
        (bad if isinstance(read, BadRow) else records).append(read)  # pyright: ignore[reportArgumentType]
    unique, duplicates = separate_duplicates(records)
    return unique[:max_rows], [*bad, *duplicates]
