"""What the ledger spares and what a large batch costs: rerun, memory, task runs, resume after a kill."""

import uuid

from benchmarks.figures import Bar, Figure, slope
from benchmarks.measures.bench import Bench, all_valid, rate
from benchmarks.processes import BenchmarkError, Ran, mock_model, run
from benchmarks.surroundings import empty_ledger

MB = 1024 * 1024
WARM_SHARE = 0.2
"""Of the rows, before memory must be flat: 200,000 of 1,000,000."""
KILL_SHARE = 0.99


def rerun(bench: Bench) -> list[Figure]:
    """A second run over finished rows: the server's own count says that nothing was sent."""
    rows = bench.sizes.rerun
    empty_ledger()
    with mock_model() as mock:
        workload = bench.workload(rows, mock.base_url)
        all_valid(bench.headrace(workload).figures, rows)
        before = mock.calls()
        figures = bench.headrace(workload).figures
        all_valid(figures, rows)
        sent = mock.calls() - before
    detail = f"{rows:,} rows in {figures['seconds']:.1f} s, after a snapshot of {figures['snapshot_seconds']:.1f} s"
    return [
        Figure("rerun from the ledger: model calls", Bar("at most", 0), sent, "calls", "counted by the server"),
        Figure("rerun from the ledger: rows/s", Bar("at least", 20_000), rate(figures), "rows/s", detail),
    ]


def large(bench: Bench) -> list[Figure]:
    """A large batch, killed with SIGKILL near its end and started again: memory, task runs, resume scan."""
    rows, run_id = bench.sizes.large, str(uuid.uuid4())
    empty_ledger()
    with mock_model() as mock:
        workload = bench.workload(rows, mock.base_url)
        first = bench.headrace(workload, run_id=run_id, mock=mock, kill_at=int(KILL_SHARE * rows))
        killed_at = mock.calls()
        if first.code == 0:
            raise BenchmarkError(f"it ended before {KILL_SHARE:.0%} of {rows:,} rows were seen to be done")
        again = bench.headrace(workload, run_id=run_id, mock=mock)
        all_valid(again.figures, rows)
        asked_twice = mock.calls() - rows
    return [*_memory(first, rows), _task_runs(rows), *_resume(again, killed_at, asked_twice, rows)]


def _memory(first: Ran, rows: int) -> list[Figure]:
    peak = max(sample.rss for sample in first.samples) / MB
    warm = [(s.done / 100_000, s.rss / MB) for s in first.samples if s.done >= WARM_SHARE * rows]
    detail = f"{rows:,} rows; sampled from outside, {len(first.samples)} times"
    growth = f"least squares over the samples after {WARM_SHARE * rows:,.0f} rows"
    return [
        Figure("large batch: peak RSS", Bar("below", 512), peak, "MB", detail),
        Figure("large batch: RSS slope per 100,000 rows", Bar("at most", 1), slope(warm), "MB", growth),
    ]


def _task_runs(rows: int) -> Figure:
    planned = run(["-m", "benchmarks.headrace_route", "plan", "--rows", str(rows)]).figures["task_runs"]
    detail = f"{planned:,} for {rows:,} rows, by the chunk plan of route_batch"
    return Figure("Prefect task runs per 1,000 rows", Bar("at most", 1), planned * 1000 / rows, "", detail)


def _resume(again: Ran, killed_at: int, asked_twice: int, rows: int) -> list[Figure]:
    new = [sample.at for sample in again.samples if sample.done > killed_at]
    measure = "resume after kill -9: seconds to the first new call"
    peak = max(sample.rss for sample in again.samples) / MB
    detail = f"{killed_at:,} of {rows:,} rows were through; start of the process, snapshot and scan; peak {peak:.0f} MB"
    seconds = new[0] - again.began if new else None
    return [
        Figure(measure, Bar("at most", 30), seconds, "s", detail if new else "no new call was seen"),
        Figure(
            "resume after kill -9: rows asked twice", None, asked_twice, "", "the window and what was not yet written"
        ),
    ]
