"""Polling: looking at datasets' files now and then, so that a change starts what a message of it would start."""

import logging
from collections.abc import Callable
from datetime import datetime

from domain.canonical import digest
from domain.errors import HeadraceError, Place, StoreError, WorkloadError
from domain.triggers import POLL, Permitted, WatchedDataset
from infra.db.session import transaction
from infra.db.store import deliveries, polls
from infra.permits import permitted_files
from infra.settings import Settings
from infra.triggers import load_triggers
from infra.workloads import FILE, find_workload, load_workload

log = logging.getLogger("headrace")
EVENT = "headrace.dataset.updated"
MISSING = "-"
_told: dict[str, str] = {}
"""What was last said of a dataset that cannot be looked at: the same is not said at every look."""


def turn(settings: Settings) -> bool:
    """Look at every dataset whose time has come, and write a delivery for each that has changed; never more to do.

    A dataset that cannot be looked at is said once and stops no other. Raises StoreError, and WorkloadError when
    triggers.yaml cannot be read.
    """
    triggers = load_triggers(settings)
    for name, dataset in triggers.datasets.items():
        if dataset.poll_s is None:
            continue
        try:
            look(name, dataset, dataset.poll_s, triggers.permitted, settings)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - the library of a store may raise anything, and other datasets wait
            _say_once(name, str(error) if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}")
    return False


def look(
    name: str,
    dataset: WatchedDataset,
    every_s: float,
    permitted: Permitted,
    settings: Settings,
    *,
    state: Callable[[WatchedDataset, Permitted, Settings], str] | None = None,
) -> bool:
    """Look at one dataset unless somebody has within `every_s` seconds; whether it had changed.

    `state` says how the files look now: `fingerprint`, unless it is given. The first look only remembers. A dataset
    whose files are missing keeps what was seen of them. Raises StoreError, and what reading a workload and its files
    raises.
    """
    with transaction() as db:
        claimed = polls.claim(db, name, every_s)
    if claimed is None:
        return False
    before, at = claimed
    now = (state or fingerprint)(dataset, permitted, settings)
    if now == MISSING:
        _say_once(name, "no such file; it is looked for again and again")
        if before != polls.NEVER:
            return False
    else:
        _told.pop(name, None)
    if now == before:
        return False
    return _write_down(name, dataset, before=before, now=now, at=at)


def _write_down(name: str, dataset: WatchedDataset, *, before: str, now: str, at: datetime) -> bool:
    with transaction() as db:
        if not polls.remember(db, name, before=before, now=now) or before == polls.NEVER:
            return False
        deliveries.receive(
            db,
            source=POLL,
            # The time belongs to it: files that look again as they once did have changed again.
            delivery_id=f"{name}/{now}/{at.isoformat()}",
            body_hash=now,
            event=EVENT,
            datasets=[(name, dataset.debounce_s)],
        )
    log.info("%s has changed", name)
    return True


def fingerprint(dataset: WatchedDataset, permitted: Permitted, settings: Settings) -> str:
    """A digest of how a dataset's files look from outside, or MISSING: their names, and of each what its store says.

    Local files: size, time of the last change and inode; the web: ETag, Last-Modified and length; object stores: their
    checksum and size. Everything goes through the guard. Raises DatasetError, NotPermitted and WorkloadError.
    """
    loaded = load_workload(find_workload(dataset.workload, settings.workloads))
    written = loaded.workload.dataset
    uri = written.uri if dataset.rows == "labelled" else written.incoming
    if uri is None:
        place = Place(str(loaded.folder / FILE), field="dataset.incoming")
        raise WorkloadError(place, "a trigger watches the incoming rows, and none are named")
    files = permitted_files(uri, loaded.folder, permitted)
    return digest([[file.name, *file.state()] for file in files]) if files else MISSING


def _say_once(name: str, what: str) -> None:
    if _told.get(name) != what:
        _told[name] = what
        log.warning("%s cannot be looked at: %s", name, what)
