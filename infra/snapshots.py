"""Taking a snapshot: rows flow from their files into the ledger, and become a run's."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from domain.datasets import BadRow, Reader, Record, Split
from domain.workloads import Dataset
from infra.db.session import transaction
from infra.db.store import runs, snapshots
from infra.reading import read_rows


def read_records(dataset: Dataset, uri: str, folder: Path, *, labelled: bool) -> Iterator[Record | BadRow]:
    """Every row of a uri as a record, or what is wrong with it, while it is read; raises DatasetError."""
    reader = Reader(dataset, labelled=labelled)
    for row in read_rows(uri, folder):
        yield row if isinstance(row, BadRow) else reader.read(row.raw, row.place)


def take_snapshot(
    run_id: str, rows: Iterable[Record | BadRow], *, uri: str, splits: Sequence[Split], max_rows: int | None
) -> tuple[str, bool]:
    """Store rows as a dataset version and make them a run's; returns the version and whether it is new.

    A run keeps the version that it has taken once: then no row is read, whatever became of the files.
    Of several rows with one id the first is kept; `max_rows` keeps the first good ones. All of it is one transaction:
    what fails in the middle leaves nothing, and the same rows again are the same version, which is stored once. Memory
    does not grow with the number of rows. Raises DatasetError and StoreError.
    """
    with transaction() as db:
        if (taken := runs.load_run(db, run_id).dataset_version) is not None:
            return taken, False
        snapshots.stage(db, rows)
        snapshots.refuse_duplicates(db)
        if max_rows is not None:
            snapshots.keep_first(db, max_rows)
        version = snapshots.staged_hash(db)
        new = snapshots.save_staged(db, version, uri=uri)
        snapshots.take_version(db, run_id, version, splits)
    return version, new
