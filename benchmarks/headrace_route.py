"""Headrace as the benchmarks run it: the one place that calls its row path.

A process of its own (`python -m benchmarks.headrace_route COMMAND …`), so that its memory is nobody else's. Settings
come by environment, the ledger's address among them. Each command prints one line of JSON at its end:

- `route`: snapshot a workload's incoming rows, then ask, record, validate and store; a run id known already is resumed.
- `bodies`: write the bodies that `route` would send, one a line, for the bare client.
- `plan`: how many Prefect task runs `route_batch` makes of so many rows.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import uvloop
from sqlalchemy import func, select

from domain.confidences import LabelPrior
from domain.datasets import Record, Split
from domain.prompts import baseline
from domain.workloads import TierName
from infra import leases
from infra.db.session import transaction
from infra.db.store import datasets, runs
from infra.db.tables import AnswerRow
from infra.llm import gateway_client
from infra.progress import Progress
from infra.rows import Rows, generate, validate
from infra.settings import Settings, load_settings
from infra.snapshots import read_records, take_snapshot
from infra.tiers import Deployment
from infra.workloads import LoadedWorkload, load_workload
from tasks.chunking import plan_chunks

TASKS_A_CHUNK = 5
"""generate and validate at two tiers, and settle: see flows/route_batch.py."""
OTHER_TASKS = 5
"""open_run, load_champion, snapshot_incoming, summarise_batch, close_run."""

TIER = TierName.CHEAP


@dataclass(slots=True)
class Routed:
    """What a batch came to; times in seconds."""

    rows: int = 0
    calls: int = 0
    cached: int = 0
    failed: int = 0
    snapshot_seconds: float = 0.0
    generate_seconds: float = 0.0
    validate_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """From the stored snapshot to the last stored answer."""
        return self.generate_seconds + self.validate_seconds


def deployment(loaded: LoadedWorkload) -> Deployment:
    """The cheap tier with the prompt as the workload's author wrote it."""
    workload, schema = loaded.workload, loaded.schema
    return Deployment(
        name=TIER,
        tier=workload.tiers[TIER],
        prompt=baseline(workload.instructions, input_fields=workload.dataset.inputs, schema=schema),
        prior=LabelPrior.of([], schema.labels),
        schema=schema,
        max_reasks=workload.max_reasks,
        code=loaded.code,
    )


def route(folder: Path, run_id: str) -> Routed:
    """Answer a workload's incoming rows as a batch does, without Prefect around it."""
    settings = load_settings()
    loaded = load_workload(folder).with_revisions(settings.engine_revisions)
    routed = Routed()
    gateway_client.start()
    leases.acquire(leases.work_of("route", loaded.workload.name, None), run_id, settings)
    with transaction() as db:
        runs.open_run(db, run_id, kind="route", workload="bench", workload_hash=loaded.hash, spec={}, meters={})
    began = time.perf_counter()
    version = _snapshot(run_id, loaded)
    with transaction() as db:
        routed.rows = sum(datasets.split_sizes(db, version).values())
    routed.snapshot_seconds = time.perf_counter() - began
    how = deployment(loaded)
    for chunk in plan_chunks(routed.rows, TIER, size=settings.chunk_rows):
        _answer(how, Rows(run_id, version, chunk.first, chunk.first + chunk.rows), routed, settings)
    leases.release()
    return routed


def _snapshot(run_id: str, loaded: LoadedWorkload) -> str:
    dataset = loaded.workload.dataset
    rows = read_records(dataset, dataset.incoming or "", loaded.folder, labelled=False)
    version, _ = take_snapshot(run_id, rows, uri="bench", splits=[Split.INCOMING], max_rows=None)
    return version


def _answer(how: Deployment, rows: Rows, routed: Routed, settings: Settings) -> None:
    """A chunk, as its two tasks work on it."""
    began = time.perf_counter()
    progress = Progress(rows.run_id, f"generate {TIER}", routed.rows, done=rows.first)
    tally = uvloop.run(generate(how, rows, settings=settings, progress=progress))
    progress.finish(rows.last)
    routed.calls += tally.calls
    routed.cached += tally.cached + tally.reused
    routed.failed += tally.failed
    half = time.perf_counter()
    progress = Progress(rows.run_id, f"validate {TIER}", routed.rows, done=rows.first)
    tally = uvloop.run(validate(how, rows, settings=settings, progress=progress))
    progress.finish(rows.last)
    routed.failed += tally.failed
    routed.generate_seconds += half - began
    routed.validate_seconds += time.perf_counter() - half


def write_bodies(folder: Path, to: Path) -> int:
    """Write what would be sent for every incoming row; returns the number of rows."""
    loaded = load_workload(folder).with_revisions(load_settings().engine_revisions)
    how, dataset = deployment(loaded), loaded.workload.dataset
    count = 0
    with to.open("wb") as out:
        for record in read_records(dataset, dataset.incoming or "", loaded.folder, labelled=False):
            if isinstance(record, Record):
                request = how.request(datasets.StoredRecord(record.key, count, record))
                out.write(orjson.dumps(request.body) + b"\n")
                count += 1
    return count


def task_runs(rows: int) -> int:
    """Prefect task runs that `route_batch` makes of so many rows."""
    return OTHER_TASKS + TASKS_A_CHUNK * len(plan_chunks(rows, TIER, size=load_settings().chunk_rows))


def stored_answers(run_id: str) -> int:
    """Valid answers that the ledger holds for a run."""
    mine = (AnswerRow.run_id == run_id, AnswerRow.tier == TIER, AnswerRow.output.is_not(None))
    with transaction() as db:
        return db.scalar(select(func.count()).select_from(AnswerRow).where(*mine)) or 0


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and print its figures as the last line."""
    parser = argparse.ArgumentParser(description="Headrace's row path, by itself.")
    commands = parser.add_subparsers(dest="command", required=True)
    routing = commands.add_parser("route")
    routing.add_argument("--workload", type=Path, required=True)
    routing.add_argument("--run-id", required=True)
    bodies = commands.add_parser("bodies")
    bodies.add_argument("--workload", type=Path, required=True)
    bodies.add_argument("--to", type=Path, required=True)
    commands.add_parser("plan").add_argument("--rows", type=int, required=True)
    options = parser.parse_args(argv)
    figures: dict[str, float] = {}
    if options.command == "plan":
        figures = {"task_runs": task_runs(options.rows)}
    elif options.command == "bodies":
        figures = {"rows": write_bodies(options.workload, options.to)}
    else:
        cpu = time.process_time()
        routed = route(options.workload, options.run_id)
        figures = {
            "rows": routed.rows,
            "calls": routed.calls,
            "cached": routed.cached,
            "failed": routed.failed,
            "seconds": routed.seconds,
            "snapshot_seconds": routed.snapshot_seconds,
            "generate_seconds": routed.generate_seconds,
            "validate_seconds": routed.validate_seconds,
            "cpu_seconds": time.process_time() - cpu,
            "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "valid": stored_answers(options.run_id),
        }
    sys.stdout.flush()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
