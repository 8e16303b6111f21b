"""Rows of a batch's quarantine asked again: a snapshot of them alone, for a batch of its own.

The snapshot's uri says where it is from, so that nobody takes these few rows for the workload's last batch.

Only rows that were read well can be asked; a bad row has to be mended in its file. What a model has answered is
believed for ever: a row whose answer failed its schema gets that answer again from the ledger, until prompt or model
change. Rows that no answer came for (time, a dead worker, a garbled answer) are really asked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from domain.datasets import Record
from domain.errors import InputError, Place
from domain.retentions import PRUNED
from infra.db.session import transaction
from infra.db.store import answers, paging, runs
from infra.snapshots import store_snapshot

_OPEN = ("running", "paused")
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Requeued:
    """The snapshot to route, how many rows it has, and how many of the quarantine were left out and why."""

    workload: str
    version: str
    rows: int
    unreadable: int
    other_reasons: int


def requeue(run_id: str, *, reason: str | None = None) -> Requeued:
    """Make a snapshot of a batch's quarantined rows, those whose reason holds a text; the same rows, the same snapshot.

    Raises NotFound, also for a run that is being forgotten, and InputError for a run that is no batch, has not ended,
    or has no such row.
    """
    with transaction() as db:
        run = runs.load_run(db, run_id)
        refused = answers.load_quarantine(db, run.id)
    if run.state == PRUNED:
        raise runs.forgotten(run.id)
    place = Place(run.id[:8])
    if run.kind != "route" or run.dataset_version is None:
        hint = "Rows of an optimisation are asked again with `headrace run WORKLOAD`."
        raise InputError(place, f"the run is of kind {run.kind!r}, not a batch", hint=hint)
    if run.state in _OPEN:
        raise InputError(place, f"the run is {run.state}", hint=f"Go on with it: headrace resume {run.id[:8]}")
    good = [row for row in refused if row.stage != "snapshot"]
    chosen = [row.record_key for row in good if reason is None or reason in row.reason]
    if not chosen:
        said = f"none of its {len(refused)} quarantined rows can be asked again" + (
            f" for {reason!r}" if reason else ""
        )
        raise InputError(place, said, hint=f"See why: headrace show {run.id[:8]} --quarantined")
    # Where all rows are in quarantine this is the batch's own snapshot, which keeps the name it has.
    version, _ = store_snapshot(_records(run.dataset_version, chosen), uri=f"{runs.REQUEUED}{run.id}")
    return Requeued(run.workload, version, len(chosen), len(refused) - len(good), len(good) - len(chosen))


def _records(version: str, keys: list[str]) -> Iterator[Record]:
    left = iter(keys)
    while page := list(islice(left, _PAGE)):
        with transaction() as db:
            found = paging.load_records(db, version, page)
        yield from (row.record for row in found)
