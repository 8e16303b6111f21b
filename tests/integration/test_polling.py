"""Polling with a real Postgres: a change of files is one delivery, whoever looks, and whatever it changes back to."""

import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from sqlalchemy import func, select, update

from domain.errors import WorkloadError
from domain.triggers import POLL
from infra import polling
from infra.db.session import transaction
from infra.db.trigger_tables import ChangeRow, DeliveryRow, PollRow
from infra.settings import Settings
from infra.triggers import load_triggers
from tests.faults.material import write_workload

pytestmark = pytest.mark.usefixtures("ledger")


class Watched:
    """A workload with a dataset that is polled, and what the ledger says of it."""

    def __init__(self, top: Path, *, uri: str = "rows.jsonl", permitted: dict[str, Any] | None = None) -> None:
        self.name = f"watched-{uuid.uuid4().hex[:12]}"
        self.folder = write_workload(top / self.name, strong=["http://127.0.0.1:9/v1"], rows=4)
        spec = json.loads((self.folder / "workload.yaml").read_text())
        spec["dataset"]["uri"] = uri
        (self.folder / "workload.yaml").write_text(json.dumps(spec))
        self.rows = self.folder / "rows.jsonl"
        self.settings = Settings(workloads=top)
        dataset = {"workload": self.name, "poll_s": 60, "debounce_s": 7}
        written = {"version": 1, "datasets": {self.name: dataset}, "permitted": permitted or {}}
        (top / "triggers.yaml").write_text(json.dumps(written))

    def turn(self, *, due: bool = True) -> int:
        """One turn of the poller, at its time; how many deliveries there are by now."""
        if due:
            with transaction() as db:
                past = func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, 61)
                db.execute(update(PollRow).where(PollRow.dataset == self.name).values(looked_at=past))
        assert polling.turn(self.settings) is False
        return len(self.deliveries())

    def deliveries(self) -> list[DeliveryRow]:
        with transaction() as db:
            wanted = DeliveryRow.datasets.contains([self.name])
            return list(db.scalars(select(DeliveryRow).where(wanted).order_by(DeliveryRow.received_at)))


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_the_first_look_remembers_and_a_change_is_one_delivery(watched: Watched) -> None:
    assert watched.turn() == 0
    assert watched.turn() == 0, "nothing has changed"
    watched.rows.write_text(watched.rows.read_text() + watched.rows.read_text())
    assert watched.turn(due=False) == 0, "it is not time yet"
    assert watched.turn() == 1
    assert watched.turn() == 1
    (delivery,) = watched.deliveries()
    assert (delivery.source, delivery.event, delivery.datasets) == (POLL, "headrace.dataset.updated", [watched.name])
    assert delivery.delivery_id.startswith(f"{watched.name}/{delivery.body_hash}/")
    with transaction() as db:
        (change,) = db.scalars(select(ChangeRow).where(ChangeRow.delivery_key == delivery.key))
    assert change.state == "waiting"
    assert 6 < (change.due_at - delivery.received_at).total_seconds() <= 8, "it waits for further news"


def test_files_that_look_again_as_they_once_did_have_changed_again(watched: Watched) -> None:
    before = watched.rows.stat()
    content = watched.rows.read_bytes()
    assert watched.turn() == 0
    for n in range(1, 4):
        watched.rows.write_bytes(content * 2)
        assert watched.turn() == 2 * n - 1
        watched.rows.write_bytes(content)
        os.utime(watched.rows, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert watched.turn() == 2 * n
    hashes = [delivery.body_hash for delivery in watched.deliveries()]
    assert len(set(hashes[1::2])) == 1, "it does look the same"


@pytest.mark.parametrize("how", ["replaced", "touched", "added", "removed"])
def test_what_counts_as_a_change(tmp_path: Path, how: str) -> None:
    watched = Watched(tmp_path, uri="*.jsonl")
    (watched.folder / "other.jsonl").write_bytes(watched.rows.read_bytes())
    assert watched.turn() == 0
    if how == "replaced":  # same size and time, another file
        new, old = watched.folder / "new", watched.rows.stat()
        new.write_bytes(watched.rows.read_bytes())
        os.utime(new, ns=(old.st_atime_ns, old.st_mtime_ns))
        new.replace(watched.rows)
    elif how == "touched":
        os.utime(watched.rows, ns=(0, 1))
    elif how == "added":
        (watched.folder / "third.jsonl").write_bytes(b"{}\n")
    else:
        (watched.folder / "other.jsonl").unlink()
    assert watched.turn() == 1


def test_a_missing_file_is_said_once_and_is_no_change(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    assert watched.turn() == 0
    content = watched.rows.read_bytes()
    watched.rows.unlink()
    with caplog.at_level(logging.WARNING, "headrace"):
        for _ in range(3):
            assert watched.turn() == 0
    assert [record.getMessage().count(watched.name) for record in caplog.records] == [1]
    watched.rows.write_bytes(content)
    assert watched.turn() == 1, "another file by its inode or its time"


def test_a_file_that_appears_after_the_first_look_is_a_change(watched: Watched) -> None:
    content = watched.rows.read_bytes()
    watched.rows.unlink()
    assert watched.turn() == 0
    watched.rows.write_bytes(content)
    assert watched.turn() == 1


def test_of_many_pollers_at_once_one_looks(watched: Watched) -> None:
    assert watched.turn() == 0
    watched.rows.write_bytes(watched.rows.read_bytes() * 2)
    with transaction() as db:
        past = func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, 61)
        db.execute(update(PollRow).where(PollRow.dataset == watched.name).values(looked_at=past))
    start = threading.Barrier(8)

    def look() -> None:
        start.wait()
        polling.turn(watched.settings)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(watched.deliveries()) == 1


def test_a_look_that_was_overtaken_writes_nothing(watched: Watched) -> None:
    assert watched.turn() == 0
    watched.rows.write_bytes(watched.rows.read_bytes() * 2)
    nested = list[int]()

    def slow(*given: Any) -> str:
        found = polling.fingerprint(*given)
        nested.append(watched.turn())  # another process comes, looks and writes meanwhile
        return found

    triggers = load_triggers(watched.settings)
    given = (watched.name, triggers.datasets[watched.name], 0.0, triggers.permitted, watched.settings)
    assert polling.look(*given, state=slow) is False
    assert nested == [1]
    assert len(watched.deliveries()) == 1


def test_a_dataset_that_may_not_be_opened_stops_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside = tmp_path / "outside.jsonl"
    outside.write_text("{}\n")
    refused = Watched(tmp_path, uri=str(outside))
    good = Watched(tmp_path)
    datasets = {each.name: {"workload": each.name, "poll_s": 60} for each in (refused, good)}
    (tmp_path / "triggers.yaml").write_text(json.dumps({"version": 1, "datasets": datasets}))
    with caplog.at_level(logging.WARNING, "headrace"):
        assert (good.turn(), good.turn()) == (0, 0)
    good.rows.write_bytes(good.rows.read_bytes() * 2)
    assert good.turn() == 1
    assert refused.turn() == 0
    (record,) = [record for record in caplog.records if refused.name in record.getMessage()]
    assert "outside the permitted folders" in record.getMessage()


def test_a_broken_configuration_is_an_error_of_the_turn(watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "triggers.yaml").write_text("version: 2\n")
    with pytest.raises(WorkloadError):
        polling.turn(watched.settings)


class Tagged(BaseHTTPRequestHandler):
    """Answers HEAD with a tag that tests change."""

    tag = "one"
    methods: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.methods.append(self.command)
        self.send_response(200)
        self.send_header("ETag", f'"{type(self).tag}"')
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def tagged() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Tagged) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_web_file_is_looked_at_by_its_head(tmp_path: Path, tagged: str) -> None:
    watched = Watched(tmp_path, uri=f"http://{tagged}/rows.jsonl", permitted={"schemes": ["http"], "hosts": [tagged]})
    assert (watched.turn(), watched.turn()) == (0, 0)
    Tagged.tag = "two"
    assert (watched.turn(), watched.turn()) == (1, 1)
    assert Tagged.methods == ["HEAD"] * 4


class Bucket(MemoryFileSystem):
    """An object store of this process."""

    protocol = "s3"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("s3://").strip("/")


def test_an_object_store_is_looked_at_by_its_checksums(tmp_path: Path) -> None:
    fsspec.register_implementation("s3", Bucket, clobber=True)
    bucket = Bucket()
    bucket.pipe_file("/bucket/a.jsonl", b"{}\n")
    watched = Watched(tmp_path, uri="s3://bucket/*.jsonl", permitted={"schemes": ["s3"]})
    assert (watched.turn(), watched.turn()) == (0, 0)
    bucket.pipe_file("/bucket/b.jsonl", b"{}\n")
    assert (watched.turn(), watched.turn()) == (1, 1)
