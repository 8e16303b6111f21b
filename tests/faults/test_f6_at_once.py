"""F6: a person, a clock and a webhook start the same dataset in the same tenth of a second, fifty-one times over."""

import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.llm.scripted import Script, ScriptedServer
from infra.snapshots import read_records, store_snapshot
from infra.workloads import load_workload
from tests.faults.invariants import check, one
from tests.faults.material import RULES, text, write_workload
from tests.faults.nemesis import Flow, Foreman, wait_for

pytestmark = pytest.mark.timeout(600)
DATASETS, ROUNDS, ROWS = 3, 17, 40
REFUSED = 73
CHANGES = "--only-changed"


@dataclass(frozen=True, slots=True)
class Round:
    """The three starts of one round and how each ended: done, refused, or nothing changed."""

    ids: tuple[str, str, str]
    ends: tuple[str, str, str]


@pytest.fixture
def overlaps(ledger: str) -> Iterator[Callable[[], int]]:
    """How often two runs of a workload were seen running at the same moment."""
    over, seen = threading.Event(), Counter[str]()
    question = """
    SELECT coalesce(max(n), 0) FROM (
        SELECT count(*) AS n FROM runs WHERE state = 'running' AND workload LIKE 'at-once-%' GROUP BY workload
    ) AS running
    """

    def look() -> None:
        while not over.is_set():
            seen["looks"] += 1
            seen["overlaps"] += one(question) > 1
            over.wait(0.05)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield lambda: seen["overlaps"]
    over.set()
    thread.join()
    assert seen["looks"] > 50


def test_three_starts_at_once_are_one_active_run_and_each_changed_row_is_asked_about_once(
    foreman: Foreman, tmp_path: Path, overlaps: Callable[[], int]
) -> None:
    with (
        ScriptedServer(Script(rules=RULES, latency_s=0.25)) as server,
        ThreadPoolExecutor(DATASETS) as pool,
    ):
        folders = [write_workload(tmp_path / f"at-once-{n}", strong=[server.base_url], rows=1) for n in range(DATASETS)]
        rounds = [found for some in pool.map(lambda folder: _rounds(foreman, folder), folders) for found in some]
        calls = server.calls.requests
    ends = Counter(end for found in rounds for end in found.ends)
    verdicts = [
        check(run_id) for found in rounds for run_id, end in zip(found.ids, found.ends, strict=True) if end == "done"
    ]
    print(
        f"\nF6: {len(rounds)} times three starts at once: {dict(ends)}; at most one active run at a time "
        f"({overlaps()} overlaps seen); {calls} calls for {DATASETS * ROUNDS * ROWS} new rows"
    )
    assert overlaps() == 0
    assert calls == DATASETS * ROUNDS * ROWS
    assert all(verdict.holds() and verdict.pending == 0 for verdict in verdicts)
    for found in rounds:
        assert set(found.ends) <= {"done", "refused", "unchanged"}
        assert "done" in found.ends
        assert found.ends.count("done") == 1 or found.ends[0] == "done", "only a person has it done once more"


def _rounds(foreman: Foreman, folder: Path) -> list[Round]:
    return [_round(foreman, folder, n) for n in range(ROUNDS)]


def _round(foreman: Foreman, folder: Path, n: int) -> Round:
    """New rows, and three starts: from the UI, by a schedule, and by the dispatcher, which gives the version."""
    first = ROWS * n + 1_000 * int(folder.name.rpartition("-")[2])
    rows = [{"id": f"r{k}", "text": text(k), "topic": "card"} for k in range(first, first + ROWS)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    dataset = load_workload(folder).workload.dataset
    version, _ = store_snapshot(read_records(dataset, dataset.uri, folder, labelled=False), uri=dataset.uri)
    given = ((), (CHANGES,), (CHANGES, "--version", version))
    ids = tuple(str(uuid.uuid4()) for _ in range(3))
    flows = [foreman.start(folder, run_id, *words) for run_id, words in zip(ids, given, strict=True)]
    wait_for(lambda: all(flow.ended.is_set() for flow in flows), "three starts to end")
    return Round(ids, tuple(map(_end, flows)))


def _end(flow: Flow) -> str:
    if flow.wait() == REFUSED:
        return "refused"
    return "unchanged" if "unchanged" in flow.finish() else "done"
