"""Taking a snapshot: rows flow from their files into the ledger, and become a run's."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from domain.datasets import BadRow, Reader, Record, Split
from domain.triggers import Permitted
from domain.workloads import Dataset
from infra.db.session import transaction
from infra.db.store import runs, snapshots
from infra.reading import read_rows


def read_records(
    dataset: Dataset, uri: str, folder: Path, *, labelled: bool, permitted: Permitted | None = None
) -> Iterator[Record | BadRow]:
    """Every row of a uri as a record, or what is wrong with it, while it is read.

    With `permitted` only what it allows is opened. Raises DatasetError, and NotPermitted with `permitted`.
    """
    reader = Reader(dataset, labelled=labelled)
    for row in read_rows(uri, folder, permitted):
        yield row if isinstance(row, BadRow) else reader.read(row.raw, row.place)


def store_snapshot(rows: Iterable[Record | BadRow], *, uri: str, max_rows: int | None = None) -> tuple[str, bool]:
    """Store rows as a dataset version; returns the version and whether it is new.

    Of several rows with one id the first is kept; `max_rows` keeps the first good ones. All of it is one transaction:
    what fails in the middle leaves nothing, and the same rows again are the same version, which is stored once. Memory
    does not grow with the number of rows. Raises DatasetError and StoreError.
    """
    rows = iter(rows)
    first = list(islice(rows, 1))  # a file of the web is fetched by now: no transaction is left open for that
    with transaction() as db:
        snapshots.stage(db, chain(first, rows))
        snapshots.refuse_duplicates(db)
        if max_rows is not None:
            snapshots.keep_first(db, max_rows)
        version = snapshots.staged_hash(db)
        return version, snapshots.save_staged(db, version, uri=uri)


def taken_by(run_id: str) -> str | None:
    """The dataset version that a run has taken upon itself, None before it has."""
    with transaction() as db:
        return runs.load_run(db, run_id).dataset_version


def take_version(run_id: str, version: str, splits: Sequence[Split]) -> None:
    """Make the rows of these splits a run's own, and bad rows its quarantine; a run keeps what it has taken once.

    Raises NotFound when the ledger has no such version, and StoreError.
    """
    with transaction() as db:
        if runs.load_run(db, run_id).dataset_version is None:
            snapshots.require_version(db, version)
            snapshots.take_version(db, run_id, version, splits)


def take_snapshot(
    run_id: str, rows: Iterable[Record | BadRow], *, uri: str, splits: Sequence[Split], max_rows: int | None
) -> tuple[str, bool]:
    """Store rows as a dataset version and make them a run's; returns the version and whether it is new.

    A run keeps the version that it has taken once: then no row is read, whatever became of the files.
    """
    if (taken := taken_by(run_id)) is not None:
        return taken, False
    version, new = store_snapshot(rows, uri=uri, max_rows=max_rows)
    take_version(run_id, version, splits)
    return version, new
