"""Snapshots in the ledger: stored once, in order, whole or not at all, and kept by the run that took them."""

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from sqlalchemy import QueuePool, func, select, text

from domain.datasets import JUDGED, BadRow, Record, Split, version_hash
from domain.errors import Place, StoreError
from domain.triggers import Permitted
from domain.workloads import Dataset
from infra.db.session import database_url, engine_for, transaction
from infra.db.store import answers, datasets, runs, snapshots
from infra.db.store.snapshots import ROWS_A_COPY, ROWS_A_STATEMENT
from infra.db.tables import DatasetVersionRow, QuarantinedRow, RecordRow, RunRowRow
from infra.snapshots import read_records, store_snapshot, take_snapshot
from tests.integration.begun_runs import open_run

SPLITS = (Split.TRAIN, Split.CALIBRATION, Split.TEST)


def some(count: int, *, name: str = "") -> Iterator[Record]:
    """Rows of all splits in turn, of a version of their own."""
    name = name or uuid.uuid4().hex
    for n in range(count):
        yield Record(f"{name}-{n}", {"n": n}, None, SPLITS[n % 3], Place("f", n + 1))


def take(
    rows: Iterator[Record | BadRow] | Sequence[Record | BadRow], *, run_id: str = "", max_rows: int | None = None
) -> tuple[str, str, bool]:
    run_id = run_id or open_run()
    version, new = take_snapshot(run_id, rows, uri="f", splits=JUDGED, max_rows=max_rows)
    return run_id, version, new


def own_rows(run_id: str) -> list[Record]:
    with transaction() as db:
        return [row.record for row in datasets.load_run_rows(db, run_id, 0, 1_000_000)]


def test_a_run_takes_its_rows_without_gaps_in_the_snapshots_order_and_the_bad_ones_as_quarantine(ledger: str) -> None:
    rows = list(some(9))
    bad = BadRow(Place("f", 99, field="text"), "is empty", "{}")
    run_id, version, new = take([rows[0], bad, *rows[1:]])
    with transaction() as db:
        positions = db.execute(
            select(RunRowRow.position, RunRowRow.record_key)
            .where(RunRowRow.run_id == run_id)
            .order_by(RunRowRow.position)
        ).all()
        stored = datasets.load_records(db, version, *SPLITS)
        page = datasets.load_run_rows(db, run_id, 2, 4)
        (refused,) = answers.load_quarantine(db, run_id)
        assert runs.load_run(db, run_id).dataset_version == version
        assert datasets.split_sizes(db, version) == dict.fromkeys(SPLITS, 3)
        assert datasets.count_bad_rows(db, version) == 1
    judged = [row for row in rows if row.split in JUDGED]
    assert new
    assert [tuple(row) for row in positions] == [(-1, bad.key), *((n, row.key) for n, row in enumerate(judged))]
    assert [row.record for row in stored] == rows
    assert [row.record for row in page] == judged[2:4]
    assert (refused.record_key, refused.place, refused.reason) == (bad.key, bad.place, bad.reason)
    assert version == version_hash((row.key + row.split for row in rows), [bad.key])


def test_the_same_rows_in_other_splits_are_another_version(ledger: str) -> None:
    rows = list(some(8))
    _, version, _ = take(rows)
    moved = [replace(row, split=Split.TEST) for row in rows]
    run_id, other, new = take(moved)
    assert (other != version, new) == (True, True)
    with transaction() as db:
        assert datasets.split_sizes(db, other) == {Split.TEST: 8}
    assert take(moved, run_id=run_id)[1] == other


def test_the_same_rows_are_one_version_and_stored_once_and_each_run_has_its_own(ledger: str) -> None:
    rows = list(some(20))
    first, version, new = take(rows)
    second, again, new_again = take(rows)
    assert (again, new, new_again) == (version, True, False)
    with transaction() as db:
        assert db.scalar(select(func.count()).where(RecordRow.dataset_version == version)) == 20
    assert own_rows(first) == own_rows(second) == [row for row in rows if row.split in JUDGED]


def test_a_resumed_run_keeps_its_snapshot_and_reads_nothing(ledger: str) -> None:
    def unreadable() -> Iterator[Record]:
        raise AssertionError("a file was opened")
        yield

    run_id, version, _ = take(some(5))
    assert take(unreadable(), run_id=run_id) == (run_id, version, False)


def test_of_rows_with_one_id_the_first_stays_wherever_the_others_stand(ledger: str) -> None:
    name, count = uuid.uuid4().hex, 2 * ROWS_A_COPY + 5
    rows = list(some(count, name=name))
    for later, earlier in ((7, 1), (ROWS_A_COPY + 1, 1), (count - 1, 2), (count - 2, ROWS_A_COPY - 1)):
        rows[later] = Record(rows[earlier].record_id, {"n": later}, None, Split.TEST, Place("g", later))
    run_id, version, _ = take(rows)
    with transaction() as db:
        refused = {row.place.line: (row.place.field, row.reason) for row in answers.load_quarantine(db, run_id)}
        assert sum(datasets.split_sizes(db, version).values()) == count - 4
    assert refused == {
        7: ("id", f"'{name}-1' was already used at f:2"),
        ROWS_A_COPY + 1: ("id", f"'{name}-1' was already used at f:2"),
        count - 1: ("id", f"'{name}-2' was already used at f:3"),
        count - 2: ("id", f"'{name}-{ROWS_A_COPY - 1}' was already used at f:{ROWS_A_COPY}"),
    }
    kept = [row for n, row in enumerate(rows) if n not in refused]
    assert own_rows(run_id) == [row for row in kept if row.split in JUDGED]


@pytest.mark.parametrize(("most", "kept"), [(0, 0), (4, 4), (6, 6), (99, 6)])
def test_max_rows_keeps_the_first_good_ones_and_all_bad_ones(ledger: str, most: int, kept: int) -> None:
    rows = list(some(6))
    bad = BadRow(Place("f", 50), "is empty", "")
    twin = Record(rows[0].record_id, {"n": 0}, None, Split.TEST, Place("f", 51))
    run_id, version, _ = take([rows[0], bad, twin, *rows[1:]], max_rows=most)
    with transaction() as db:
        assert [row.record for row in datasets.load_records(db, version, *SPLITS)] == rows[:kept]
        assert [row.place.line for row in answers.load_quarantine(db, run_id)] == [50, 51]


def test_positions_have_no_gaps_when_rows_take_several_statements(ledger: str) -> None:
    rows = 2 * ROWS_A_STATEMENT + 2_000
    own = [n for n in range(rows) if SPLITS[n % 3] in JUDGED]
    run_id, _, _ = take(some(rows))
    with transaction() as db:
        position = RunRowRow.position
        counted = select(func.count(), func.min(position), func.max(position), func.count(position.distinct()))
        count, first, last, different = db.execute(counted.where(RunRowRow.run_id == run_id)).one()
        (row,) = datasets.load_run_rows(db, run_id, last, last + 1)
    assert (count, first, last, different) == (len(own), 0, len(own) - 1, len(own))
    assert row.record.place.line == own[-1] + 1


def nothing_of(run_id: str) -> bool:
    with transaction() as db:
        taken = [db.scalar(select(func.count()).where(t.run_id == run_id)) for t in (RunRowRow, QuarantinedRow)]
        return taken == [0, 0] and runs.load_run(db, run_id).dataset_version is None


def test_what_fails_in_the_middle_leaves_nothing_and_can_be_repeated(ledger: str) -> None:
    name, run_id = uuid.uuid4().hex, open_run()

    def breaking() -> Iterator[Record]:
        yield from some(ROWS_A_COPY + 100, name=name)
        raise StoreError("the disk is gone")

    with transaction() as db:
        before = db.scalar(select(func.count()).select_from(DatasetVersionRow))
    with pytest.raises(StoreError, match="the disk is gone"):
        take(breaking(), run_id=run_id)
    with transaction() as db:
        assert db.scalar(select(func.count()).select_from(DatasetVersionRow)) == before
    assert nothing_of(run_id)
    assert take(some(ROWS_A_COPY + 100, name=name), run_id=run_id)[2]


class Served(BaseHTTPRequestHandler):
    """A file of the web, and how many connections to Postgres this process holds while it is asked for."""

    held: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        self.held.append(cast(QueuePool, engine_for(database_url()).pool).checkedout())
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f'{{"id": "{uuid.uuid4()}", "text": "hello"}}\n'.encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_a_file_of_the_web_is_fetched_before_a_transaction_is_opened(ledger: str, tmp_path: Path) -> None:
    """Postgres ends one that is idle for seven seconds, and a file may take ten minutes."""
    dataset = Dataset(uri="-", inputs=("text",), gold={"topic": "topic"})
    with ThreadingHTTPServer(("127.0.0.1", 0), Served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_address[1]}"
        permitted = Permitted(schemes=("http",), hosts=(host,))
        uri = f"http://{host}/rows.jsonl"
        version, new = store_snapshot(
            read_records(dataset, uri, tmp_path, labelled=False, permitted=permitted), uri=uri
        )
        server.shutdown()
    assert new
    with transaction() as db:
        assert datasets.split_sizes(db, version) == {Split.INCOMING: 1}
    assert Served.held == [0]


def test_the_next_rows_may_be_waited_for_while_they_are_staged_and_not_afterwards(ledger: str) -> None:
    limit = text("SHOW idle_in_transaction_session_timeout")
    with transaction() as db:
        before, seen = db.scalar(limit), list[object]()

        def looking() -> Iterator[Record]:
            seen.append(db.scalar(limit))
            yield from some(3)

        snapshots.stage(db, looking())
        assert (seen, db.scalar(limit)) == (["10min"], before)


KILLED = """
import os, signal, sys
from domain.datasets import Split
from domain.workloads import Dataset
from infra.db.session import transaction
from infra.db.store import snapshots
from infra.snapshots import read_records, take_snapshot
from pathlib import Path
run_id, folder, step = sys.argv[1:]
done = getattr(snapshots, step)
def and_die(*args, **named):
    done(*args, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(snapshots, step, and_die)
dataset = Dataset(uri="f.csv", inputs=("text",), gold={"topic": "topic"})
rows = read_records(dataset, "f.csv", Path(folder), labelled=False)
take_snapshot(run_id, rows, uri="f.csv", splits=[Split.INCOMING], max_rows=None)
"""


@pytest.mark.parametrize("step", ["stage", "refuse_duplicates", "save_staged", "take_version"])
def test_a_snapshot_killed_after_any_step_leaves_nothing_and_the_next_try_takes_all(
    ledger: str, tmp_path: Path, step: str
) -> None:
    (tmp_path / "f.csv").write_text("id,text\n" + "".join(f"{step}-{n},hello\n" for n in range(500)))
    run_id = open_run()
    words = [sys.executable, "-c", KILLED, run_id, str(tmp_path), step]
    killed = subprocess.run(words, env=dict(os.environ), capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert nothing_of(run_id)
    dataset = Dataset(uri="f.csv", inputs=("text",), gold={"topic": "topic"})
    rows = read_records(dataset, "f.csv", tmp_path, labelled=False)
    _, new = take_snapshot(run_id, rows, uri="f.csv", splits=[Split.INCOMING], max_rows=None)
    # The version is stored whole before a run takes it: then it is there, nobody's, and is not stored again.
    assert new == (step != "take_version")
    assert [row.record_id for row in own_rows(run_id)] == [f"{step}-{n}" for n in range(500)]
