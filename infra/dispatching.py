"""The dispatcher: news of a dataset become a dataset version, and one run when its content is new."""

import logging
from collections.abc import Callable
from functools import partial
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect.events import Event, RelatedResource, Resource
from pydantic import JsonValue

from domain.canonical import digest
from domain.dispatches import Act, Started, decide, idempotency_key
from domain.errors import HeadraceError, LeaseLost, NotFound, Place, StoreError, WorkloadError
from domain.triggers import Triggers, WatchedDataset
from infra import deployments, leases
from infra.background import Loop, going_on
from infra.db.session import heartbeat, transaction
from infra.db.store import changes, runs
from infra.db.store import leases as lease_store
from infra.db.store.changes import LastStart
from infra.deployments import PrefectError
from infra.running import asked_name
from infra.settings import Settings
from infra.snapshots import read_records, store_snapshot
from infra.starting import start_once
from infra.triggers import load_triggers
from infra.workloads import FILE, LoadedWorkload, find_workload, load_workload

EVENT = "headrace.dataset.changed"
CLAIM = "dispatch"
"""One dispatcher deals with a dataset at a time; it renews its lease, however long the files take."""
TRIES, OUTAGE_TRIES, LONGEST_WAIT_S = 10, 60, 600.0
"""With waits of 2, 4, 8 … 600 s: a quarter of an hour for errors that nobody foresaw, nine hours for outages."""
UNDER_WAY = ("running", "paused")

log = logging.getLogger("headrace")


def turn(settings: Settings) -> bool:
    """Deal with every dataset whose news have waited long enough; what goes wrong with one stops no other.

    Raises StoreError, and WorkloadError when triggers.yaml is wrong.
    """
    with transaction() as db:
        names = changes.due(db)
    triggers = load_triggers(settings) if names else Triggers()
    for name in names:
        dispatch(name, triggers, settings)
    return False


def dispatch(name: str, triggers: Triggers, settings: Settings) -> None:
    """Deal with one dataset unless another process does. What may help later is tried again: an outage for hours.

    A process that dies in between leaves its changes waiting: the next turn, here or elsewhere, comes to the same
    dataset version, the same idempotency key and the same run. Raises StoreError.
    """
    work = digest([CLAIM, name])
    if (token := _claim(work, settings.lease_s)) is None:
        return
    renewal = Loop("lease", settings.lease_s / 6, partial(_renew, work, token, settings.lease_s))
    try:
        # First the numbers, then the files: what is said after this is dealt with after this.
        with transaction() as db:
            numbers = changes.waiting(db, name)
        if numbers:
            with going_on([renewal]):
                _settle(name, numbers, triggers, settings, partial(_still_ours, work, token))
    finally:
        with transaction() as db:
            lease_store.release(db, work, token)


def _claim(work: str, ttl_s: float) -> int | None:
    with transaction() as db:
        now = lease_store.holder_of(db, work)
        dead = now.holder if now and leases.is_dead(now.holder) else None
        taken = lease_store.take(db, work, CLAIM, holder=leases.this_process(), ttl_s=ttl_s, dead=dead)
    return taken.token if taken else None


def _renew(work: str, token: int, ttl_s: float) -> bool:
    with heartbeat() as db:
        lease_store.renew(db, work, token, ttl_s=ttl_s)
    return False


def _still_ours(work: str, token: int) -> None:
    with transaction() as db:
        if not lease_store.holds(db, work, token):
            raise LeaseLost("another dispatcher deals with it by now.")


def _settle(
    name: str, numbers: list[int], triggers: Triggers, settings: Settings, still_ours: Callable[[], None]
) -> None:
    try:
        act, version, run_id, detail = _deal_with(name, triggers, settings, still_ours)
    except StoreError:
        raise
    except LeaseLost as error:
        log.info("%s: %s", name, error)
        return
    except Exception as error:  # noqa: BLE001 - the library of a store may raise anything, and other datasets wait
        _give_up_or_wait(name, numbers, error)
        return
    with transaction() as db:
        changes.settle(db, numbers, state=act, version=version, run_id=run_id, detail=detail)
    log.info("%s: %s %s", name, act, detail)


def _give_up_or_wait(name: str, numbers: list[int], error: Exception) -> None:
    """Count the try: each of the changes has its own number of them, and the newest hope decides how long they wait."""
    known = isinstance(error, HeadraceError)
    said = str(error) if known else f"{type(error).__name__}: {error}"[:300]
    most = TRIES if not known else OUTAGE_TRIES if error.retryable else 1
    with transaction() as db:
        tries = changes.count_try(db, numbers, detail=said)
        changes.settle(db, [n for n, tried in tries.items() if tried >= most], state="failed", detail=said)
        left = {n: tried for n, tried in tries.items() if tried < most}
        if left:
            changes.put_off(db, list(left), wait_s=min(2.0 ** min(left.values()), LONGEST_WAIT_S))
    log.warning("%s: %s%s", name, said, "; it is tried again" if left else "", exc_info=None if known else error)


def _deal_with(
    name: str, triggers: Triggers, settings: Settings, still_ours: Callable[[], None]
) -> tuple[str, str, str | None, str]:
    """What was done, the dataset version, the run, and a few words."""
    watched = triggers.datasets.get(name)
    if watched is None:
        raise NotFound(f"triggers.yaml has no dataset {name!r} any more.")
    loaded = load_workload(find_workload(watched.workload, settings.workloads))
    labelled = watched.rows == "labelled"
    kind, flow = ("optimize", "optimize-workload") if labelled else ("route", "route-batch")
    version = _snapshot(loaded, triggers, labelled=labelled)
    with transaction() as db:
        complete = runs.last_completed(db, kind, loaded.workload.name)
        found = changes.last_started(db, name, kind=kind, workload=loaded.workload.name)
    before, last = complete.dataset_version if complete else None, _started(found)
    act = decide(version, complete=before, last=last)
    if act is not Act.START:
        return act, version, last.run_id if last and act is Act.JOINED else None, f"still {version[:12]}"
    detail = _what_changed(before, version)
    parameters = _parameters(loaded, watched, version, settings, labelled=labelled)
    event = partial(_event, name, loaded, parameters, last)
    still_ours()
    if watched.starter == "automation":
        deployments.tell(event(None))
        return "announced", version, None, detail
    key = idempotency_key(flow, parameters, after=last.number if last else 0)
    run_id = str(start_once(flow, key, parameters=parameters, workload=loaded.workload.name))
    try:
        deployments.tell(event(run_id))
    except PrefectError as error:  # the run is what counts, and it is there
        log.warning("%s: Prefect was not told of the change: %s", name, error)
    return act, version, run_id, detail


def _started(last: LastStart | None) -> Started | None:
    """A run that the ledger does not know may wait in Prefect for its turn, or have ended before it was opened."""
    if last is None:
        return None
    if last.state is None and last.run_id is not None:
        under_way = not deployments.is_over(UUID(last.run_id))
    else:
        under_way = last.state in UNDER_WAY
    return Started(last.number, last.version, last.run_id, under_way)


def _snapshot(loaded: LoadedWorkload, triggers: Triggers, *, labelled: bool) -> str:
    dataset = loaded.workload.dataset
    uri = dataset.uri if labelled else dataset.incoming
    if uri is None:
        place = Place(str(loaded.folder / FILE), field="dataset.incoming")
        raise WorkloadError(place, "a trigger watches the incoming rows, and none are named")
    rows = read_records(dataset, uri, loaded.folder, labelled=labelled, permitted=triggers.permitted)
    return store_snapshot(rows, uri=uri)[0]


def _what_changed(before: str | None, version: str) -> str:
    if before is None:
        return f"{version[:12]}, the first version"
    with transaction() as db:
        new, gone = changes.differing_rows(db, before, version)
    return f"{version[:12]}: {new} rows are new or changed, {gone} are gone"


def _parameters(
    loaded: LoadedWorkload, watched: WatchedDataset, version: str, settings: Settings, *, labelled: bool
) -> dict[str, JsonValue]:
    given: dict[str, JsonValue] = {
        "workload": asked_name(loaded, settings),
        "version": version,
        "only_changed": True,
        "max_usd": watched.max_usd,
    }
    return {**given, "scope": watched.scope.value} if labelled else given


def _event(
    name: str, loaded: LoadedWorkload, parameters: dict[str, JsonValue], last: Started | None, run_id: str | None
) -> Event:
    """What Prefect is told; the same news have the same id, however often they are told."""
    related = [{"prefect.resource.id": f"prefect.flow-run.{run_id}", "prefect.resource.role": "flow-run"}]
    resource = {
        "prefect.resource.id": f"headrace.dataset.{name}",
        "prefect.resource.name": name,
        "headrace.workload": loaded.workload.name,
    }
    return Event(
        event=EVENT,
        resource=Resource.model_validate(resource),
        related=[RelatedResource.model_validate(each) for each in related if run_id],
        payload={"dataset": name, "previous": last.version if last else None, "run": run_id, **parameters},
        id=uuid5(NAMESPACE_URL, digest([EVENT, name, parameters, last.number if last else 0])),
    )
