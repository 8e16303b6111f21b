"""The dispatcher with a real Postgres and no Prefect: what it tries again, how long, and what it leaves to others."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from prefect.settings import PREFECT_API_URL, temporary_settings
from sqlalchemy import func, select, update

from domain.canonical import digest
from domain.datasets import Record, Split
from domain.errors import Place
from infra import dispatching
from infra.db.session import transaction
from infra.db.store import changes, deliveries, runs
from infra.db.store import leases as lease_store
from infra.db.tables import LeaseRow, RunRow
from infra.db.trigger_tables import ChangeRow, StartRow
from infra.dispatching import LONGEST_WAIT_S, OUTAGE_TRIES, TRIES
from infra.settings import Settings
from infra.snapshots import store_snapshot
from infra.triggers import load_triggers
from tests.faults.material import write_workload


@pytest.fixture(autouse=True)
def no_prefect(ledger: str) -> Iterator[None]:
    """Prefect is away, also where another test has brought one up."""
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield


class Watched:
    """A workload of its own with a dataset that is said to have changed."""

    def __init__(self, top: Path, *, uri: str = "rows.jsonl", lease_s: float = 30, **written: Any) -> None:
        self.name = f"told-{uuid.uuid4().hex[:12]}"
        self.folder = write_workload(top / self.name, strong=["http://127.0.0.1:9/v1"], rows=4)
        spec = json.loads((self.folder / "workload.yaml").read_text())
        spec["dataset"]["uri"] = uri
        (self.folder / "workload.yaml").write_text(json.dumps(spec))
        self.settings = Settings(workloads=top, lease_s=lease_s)
        permitted = written.pop("permitted", {})
        datasets = {self.name: {"workload": self.name, **written}}
        (top / "triggers.yaml").write_text(json.dumps({"version": 1, "datasets": datasets, "permitted": permitted}))

    def hear(self) -> int:
        """Somebody says that the dataset has changed; the number of the change."""
        id_ = uuid.uuid4().hex
        with transaction() as db:
            deliveries.receive(
                db, source="own", delivery_id=id_, body_hash=id_, event="updated", datasets=[(self.name, 0.0)]
            )
            return db.scalars(select(func.max(ChangeRow.number)).where(ChangeRow.dataset == self.name)).one() or 0

    def dispatch(self) -> None:
        """The dispatcher deals with the dataset."""
        dispatching.dispatch(self.name, load_triggers(self.settings), self.settings)

    def found(self, number: int) -> ChangeRow:
        with transaction() as db:
            return db.scalars(select(ChangeRow).where(ChangeRow.number == number)).one()


def tried(number: int, tries: int) -> None:
    with transaction() as db:
        db.execute(update(ChangeRow).where(ChangeRow.number == number).values(tries=tries))


def waits_s(row: ChangeRow) -> float:
    """How long a change was put off when it was put off, at least; seconds."""
    with transaction() as db:
        now = db.scalar(select(func.clock_timestamp()))
    assert now is not None
    return (row.due_at - now).total_seconds()


@pytest.mark.parametrize("starter", ["headrace", "automation"])
def test_while_prefect_is_away_a_change_waits_and_each_failure_is_one_try(tmp_path: Path, starter: str) -> None:
    watched = Watched(tmp_path, starter=starter)
    number = watched.hear()
    for tries in (1, 2, 3):
        watched.dispatch()
        found = watched.found(number)
        assert (found.state, found.tries) == ("waiting", tries)
        assert "no Prefect server" in found.detail


def test_an_outage_is_waited_out_for_hours_and_each_change_has_its_own_tries(tmp_path: Path) -> None:
    waits = [min(2.0**n, LONGEST_WAIT_S) for n in range(1, OUTAGE_TRIES)]
    assert sum(waits) > 8 * 3600
    watched = Watched(tmp_path)
    old = watched.hear()
    tried(old, 12)
    watched.dispatch()
    assert LONGEST_WAIT_S - 120 < waits_s(watched.found(old)) <= LONGEST_WAIT_S
    tried(old, OUTAGE_TRIES - 1)
    fresh = watched.hear()
    watched.dispatch()
    assert (watched.found(old).state, watched.found(old).tries) == ("failed", OUTAGE_TRIES)
    assert (watched.found(fresh).state, watched.found(fresh).tries) == ("waiting", 1)
    assert waits_s(watched.found(fresh)) <= 2


class Nonsense(MemoryFileSystem):
    """An object store whose files hold what no file holds."""

    protocol = "az"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("az://").strip("/")

    def info(self, path: str, **_: Any) -> Any:
        return {"name": path, "type": "file", "size": 3}

    def open(self, *_: Any, **__: Any) -> Any:
        return self

    def read(self, _size: int) -> None:
        return None

    def close(self) -> None:
        pass


def test_what_nobody_foresaw_stops_no_other_dataset_and_is_tried_again(tmp_path: Path) -> None:
    fsspec.register_implementation("az", Nonsense, clobber=True)
    watched = Watched(tmp_path, uri="az://bucket/a.jsonl", permitted={"schemes": ["az"]})
    number = watched.hear()
    watched.dispatch()
    found = watched.found(number)
    assert (found.state, found.tries) == ("waiting", 1)
    assert found.detail.startswith("TypeError: ")
    tried(number, TRIES - 1)
    watched.dispatch()
    assert watched.found(number).state == "failed"


class Served(BaseHTTPRequestHandler):
    """A file of the web; something happens while it is asked for."""

    meanwhile: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def do_GET(self) -> None:
        type(self).meanwhile()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f'{{"id": "{uuid.uuid4()}", "text": "hello", "topic": "card"}}\n'.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def of_web(top: Path, host: str, **more: Any) -> Watched:
    return Watched(top, uri=f"http://{host}/rows.jsonl", permitted={"schemes": ["http"], "hosts": [host]}, **more)


def test_a_dispatcher_whose_lease_was_taken_meanwhile_starts_nothing(tmp_path: Path, served: str) -> None:
    watched = of_web(tmp_path, served)
    work = digest([dispatching.CLAIM, watched.name])

    def overtake() -> None:
        with transaction() as db:
            dead = lease_store.holder_of(db, work)
            assert dead is not None
            assert lease_store.take(db, work, "dispatch", holder="another", ttl_s=60, dead=dead.holder)

    Served.meanwhile = overtake
    number = watched.hear()
    watched.dispatch()
    found = watched.found(number)
    assert (found.state, found.tries, found.detail) == ("waiting", 0, ""), "it is the other's to deal with"
    with transaction() as db:
        assert lease_store.holder_of(db, work).holder == "another"  # type: ignore[union-attr]
        started = StartRow.parameters["workload"].astext.contains(watched.name)
        assert db.scalar(select(func.count()).select_from(StartRow).where(started)) == 0


def test_the_lease_is_renewed_for_as_long_as_the_files_take(tmp_path: Path, served: str) -> None:
    watched = of_web(tmp_path, served, lease_s=0.6)
    mine = LeaseRow.work == digest([dispatching.CLAIM, watched.name])
    renewed = list[bool]()

    def wait_for_renewals() -> None:
        """However late it is, another renewal comes."""
        for _ in range(2):
            with transaction() as db:
                long_ago = func.clock_timestamp() - func.make_interval(1)
                db.execute(update(LeaseRow).where(mine).values(expires_at=long_ago))
            deadline = time.monotonic() + 60
            while not renewed_by_now() and time.monotonic() < deadline:
                time.sleep(0.05)
            renewed.append(renewed_by_now())

    def renewed_by_now() -> bool:
        with transaction() as db:
            day_ago = func.clock_timestamp() - func.make_interval(0, 0, 0, 1)
            return bool(db.scalar(select(LeaseRow.expires_at > day_ago).where(mine)))

    Served.meanwhile = wait_for_renewals
    watched.hear()
    watched.dispatch()
    assert renewed == [True, True]


def test_a_start_that_was_left_to_an_automation_is_the_run_that_took_its_version_since(ledger: str) -> None:
    name = f"announced-{uuid.uuid4().hex}"
    version, _ = store_snapshot([Record(name, {"n": 1}, None, Split.INCOMING, Place("f", 1))], uri="f")
    with transaction() as db:
        said = [(name, 0.0)]
        deliveries.receive(db, source="own", delivery_id=name, body_hash="0", event="updated", datasets=said)
        changes.settle(db, changes.waiting(db, name), state="announced", version=version)
        last = changes.last_started(db, name, kind="route", workload=name)
        assert last is not None
        assert (last.version, last.run_id, last.state) == (version, None, None), "nobody has begun anything"
    run_id = str(uuid.uuid4())
    with transaction() as db:
        runs.open_run(db, run_id, kind="route", workload=name, workload_hash="0", spec={}, meters={})
        db.execute(update(RunRow).where(RunRow.id == run_id).values(dataset_version=version))
    with transaction() as db:
        last = changes.last_started(db, name, kind="route", workload=name)
        assert last is not None
        assert (last.run_id, last.state) == (run_id, "running")
        assert changes.last_started(db, name, kind="optimize", workload=name) is not None
        runs.change_run(db, run_id, state="cancelled")
