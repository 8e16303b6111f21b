"""A run as a process of its own, without Prefect around it: what the faults are done to.

`python -m tests.faults.driver --workload FOLDER --run-id ID` carries a run out, or goes on with it when the ledger
knows its id. Settings come by environment. The last line on stdout is JSON. Exit codes: 0 done, 73 somebody else
carries it out, 69 no model server answers, 74 no Postgres, 75 its work was taken over, 1 anything else.

`python -m tests.faults.driver --serve` imports everything once and then forks a run for every line of JSON on stdin: a
process a run, in milliseconds instead of seconds. See `nemesis.Foreman` for the other end.
"""

import argparse
import asyncio
import importlib
import json
import os
import selectors
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy.orm import Session

from domain.confidences import LabelPrior
from domain.datasets import Split
from domain.errors import HeadraceError, ModelUnavailable, RunUnderWay, StoreError
from domain.outcomes import settle_row
from domain.prompts import baseline
from domain.workloads import Scope, TierName
from infra import leases
from infra.db.session import retried
from infra.db.store import answers, datasets, paging, runs
from infra.llm import gateway_client
from infra.progress import Progress
from infra.rows import Rows, generate, validate
from infra.settings import Settings, load_settings
from infra.snapshots import read_records, store_snapshot, take_snapshot, take_version
from infra.tiers import Deployment
from infra.unchanged import unchanged_since
from infra.workloads import LoadedWorkload, load_workload
from tasks.chunking import plan_chunks
from tests.faults import hooks

CODES: dict[type[HeadraceError], int] = {RunUnderWay: 73, ModelUnavailable: 69, StoreError: 74}
PAGE_ROWS = 2_000


class Counted(Progress):
    """Progress that remembers what was acknowledged: rows whose transaction said that it was committed."""

    acknowledged = 0

    def advance(self, steps: int = 1) -> None:
        """Count rows that are stored."""
        Counted.acknowledged += steps
        super().advance(steps)


def work_of(folder: Path) -> str:
    """What only one run may do at a time: this dataset through this workload."""
    return leases.work_of("route", folder.name, str(folder))


def carry_out(
    folder: Path, run_id: str, threshold: float | None, *, only_changed: bool = False, version: str | None = None
) -> dict[str, Any]:
    """Answer every row of a workload, settle it and close the run.

    Without a threshold the strong tier alone answers; with one both do, as in `route_batch`. A run that is there for
    changes waits for another one, and ends when there are none. With a version, as the dispatcher gives it, that is
    worked on and no file is read.
    """
    settings = load_settings()
    loaded = load_workload(folder)
    leases.acquire(work_of(folder), run_id, settings, wait=only_changed and _go_on_waiting)
    opening = {"workload": loaded.workload.name, "workload_hash": loaded.hash, "spec": {}, "meters": {}}
    retried(lambda db: runs.open_run(db, run_id, kind="route", **opening))
    if only_changed and (done := _unchanged(folder, loaded, run_id, version)):
        retried(lambda db: runs.close_run(db, run_id, state="unchanged", meters={}))
        leases.release()
        return {"unchanged": done}
    version, total = _snapshot(folder, loaded, run_id, version)
    family = (os.getpid(), gateway_client.start())
    before = sum(psutil.Process(one).memory_info().rss for one in family)
    figures = asyncio.run(_answer(loaded, run_id, version, total, threshold, settings))
    peak = sum(map(_peak, family))
    _settle(run_id, version, total, threshold)
    retried(lambda db: runs.close_run(db, run_id, state="completed", meters={}))
    leases.release()
    return {**figures, "rows": total, "rss_before": before, "rss_peak": peak, "acknowledged": Counted.acknowledged}


def _go_on_waiting() -> None:
    pass


def _unchanged(folder: Path, loaded: LoadedWorkload, run_id: str, version: str | None) -> str | None:
    dataset = loaded.workload.dataset
    if version is None:
        version, _ = store_snapshot(read_records(dataset, dataset.uri, folder, labelled=False), uri=dataset.uri)
    return unchanged_since(run_id, version, scope=Scope.FULL)


def _snapshot(folder: Path, loaded: LoadedWorkload, run_id: str, given: str | None) -> tuple[str, int]:
    dataset = loaded.workload.dataset

    def take() -> str:
        if given is not None:
            take_version(run_id, given, (Split.INCOMING,))
            return given
        rows = read_records(dataset, dataset.uri, folder, labelled=False)
        return take_snapshot(run_id, rows, uri=dataset.uri, splits=(Split.INCOMING,), max_rows=None)[0]

    version = _repeated(take)
    return version, retried(lambda db: datasets.split_sizes(db, version))[Split.INCOMING]


def _repeated(task: Callable[[], str]) -> str:
    """As Prefect repeats a task: twice, when its error says that it may help."""
    for _ in range(2):
        try:
            return task()
        except HeadraceError as error:
            if not error.retryable:
                raise
    return task()


def _deployment(loaded: LoadedWorkload, tier: TierName) -> Deployment:
    workload, schema = loaded.workload, loaded.schema
    return Deployment(
        name=tier,
        tier=workload.tiers[tier],
        prompt=baseline(workload.instructions, input_fields=workload.dataset.inputs, schema=schema),
        prior=LabelPrior.of([], schema.labels),
        schema=schema,
        max_reasks=workload.max_reasks,
        code=loaded.code,
    )


async def _answer(
    loaded: LoadedWorkload, run_id: str, version: str, total: int, threshold: float | None, settings: Settings
) -> dict[str, Any]:
    figures = {"calls": 0, "cached": 0, "reasks": 0, "failed": 0}
    for tier in TierName if threshold is not None else (TierName.STRONG,):
        how = _deployment(loaded, tier)
        for chunk in plan_chunks(total, tier, size=settings.chunk_rows):
            rows = Rows(run_id, version, chunk.first, chunk.first + chunk.rows, cascade=True, threshold=threshold)
            for step in (generate, validate):
                kind = Counted if step is generate else Progress
                progress = await asyncio.to_thread(kind, run_id, f"{step.__name__} {tier}", total, done=chunk.first)
                tally = await step(how, rows, settings=settings, progress=progress)
                for name in figures:
                    figures[name] += getattr(tally, name)
    return figures


def _settle(run_id: str, version: str, total: int, threshold: float | None) -> None:
    """As `tasks.routing.settle_chunk`, for all chunks."""
    after = -1

    def work(db: Session) -> int | None:
        rows = paging.load_given(db, run_id, after=after, last=total, limit=PAGE_ROWS)
        settled = [settle_row(row.key, row.cheap, row.strong, threshold) for row in rows]
        answers.save_settled(db, run_id, version, settled)
        return rows[-1].position if rows else None

    while (last := retried(work)) is not None:
        after = last


def _peak(process: int) -> int:
    """The most memory that a process ever had resident, bytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main(argv: Sequence[str] | None = None) -> int:
    """Carry one run out, or serve; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.driver")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--workload", type=Path)
    parser.add_argument("--run-id")
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--only-changed", action="store_true")
    parser.add_argument("--version", help="of the dataset, already in the ledger")
    parser.add_argument("--name", help="what Postgres is to call its connections")
    parser.add_argument("--guards", type=Path, help="where to list the time limits of its connections")
    options = parser.parse_args(argv)
    if options.serve:
        return serve()
    if options.die_at:
        hooks.die_at(options.die_at)
    if options.name:
        hooks.sign(options.name)
    if options.guards:
        hooks.list_guards(options.guards)
    try:
        folder, only_changed = options.workload.resolve(), options.only_changed
        said = carry_out(folder, options.run_id, options.threshold, only_changed=only_changed, version=options.version)
    except HeadraceError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
        return CODES.get(type(error), 1)
    print(json.dumps(said), flush=True)
    return 0


def serve() -> int:
    """Fork a run for each line of stdin; say its process id, and later how it ended. Ends with its stdin."""
    # The forked ones need not wait for what takes long to import.
    for name in ("infra.llm.reask", "instructor.core.patch", "openai.resources.chat.completions"):
        importlib.import_module(name)

    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        print(json.dumps({"ready": os.getpid()}), flush=True)
        unread = b""
        while True:
            for key, _ in selector.select():
                if key.data is None:
                    if not (piece := os.read(key.fd, 65536)):
                        return 0
                    *lines, unread = (unread + piece).split(b"\n")
                    for line in lines:
                        pid = _fork(json.loads(line))
                        selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
                        print(json.dumps({"pid": pid}), flush=True)
                    continue
                _, status = os.waitpid(key.data, 0)
                selector.unregister(key.fd)
                os.close(key.fd)
                print(json.dumps({"pid": key.data, "code": os.waitstatus_to_exitcode(status)}), flush=True)


def _fork(order: dict[str, Any]) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        os.environ.clear()
        os.environ.update(order["environment"])
        code = main(order["arguments"])
    except BaseException:  # noqa: BLE001 - a fork must never get back into the loop above
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
