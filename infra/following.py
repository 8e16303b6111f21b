"""Following a run in the terminal: live bars with rate, cost and time left, or a line now and then."""

import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from domain.errors import HeadraceError
from infra.db.session import transaction
from infra.db.store import calls, runs
from infra.db.store.runs import StageProgress
from infra.deployments import state_of

LOOK_EVERY_S = 0.7
SAY_EVERY_S = 10.0
WELL = ("Completed", "Unchanged")
RESUMABLE = ("Cancelled", "Crashed")
"""States whose message does not say what to do."""


class RunFailed(HeadraceError):
    """A run ended, but not well."""

    hint = "Read `headrace logs worker`; `headrace run` again resumes from the ledger."


def follow(run_id: UUID, console: Console) -> None:
    """Show a run's stages until it ends or pauses; raises RunFailed with Prefect's reason when it did not complete."""
    live = sys.stdout.isatty() and os.environ.get("CI") != "true"
    with _board(console, live=live) as board:
        while True:
            name, message, final = state_of(run_id)
            board.show(_stages(str(run_id)), state=name, final=final)
            if final:
                break
            time.sleep(LOOK_EVERY_S)
    if name not in WELL:
        hint = f"Go on with `headrace resume {str(run_id)[:8]}`." if name in RESUMABLE else None
        raise RunFailed(f"run {str(run_id)[:8]} ended as {name}: {message}", hint=hint)


def _stages(run_id: str) -> tuple[list[StageProgress], float]:
    with transaction() as db:
        return runs.load_progress(db, run_id), sum(spent.usd for spent in calls.spending(db, run_id))


class _Board:
    """Rich's bars, or one line every ten seconds when nobody watches."""

    def __init__(self, console: Console, bars: Progress | None) -> None:
        self._console = console
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._said = time.monotonic()

    def show(self, look: tuple[list[StageProgress], float], *, state: str, final: bool) -> None:
        """Take a new look."""
        stages, usd = look
        if self._bars is not None:
            self._move(self._bars, stages, usd)
            return
        now = time.monotonic()
        if final or now - self._said >= SAY_EVERY_S:
            self._said = now
            last = stages[-1] if stages else None
            doing = f"{last.stage} {last.done}/{last.total} {last.unit}  {facts(last)}" if last else "starting"
            self._console.print(f"  {state.lower()}: {doing}  ${usd:.4f}", highlight=False)

    def _move(self, bars: Progress, stages: list[StageProgress], usd: float) -> None:
        for stage in stages:
            if stage.stage not in self._tasks:
                self._tasks[stage.stage] = bars.add_task(stage.stage, total=stage.total, facts="")
            bars.update(
                self._tasks[stage.stage],
                completed=stage.done,
                total=stage.total,
                facts=f"{stage.done}/{stage.total} {stage.unit}  {facts(stage)}"
                + (f"  ${usd:.4f}" if stage is stages[-1] else ""),
            )


def facts(stage: StageProgress) -> str:
    """Rate and time left of a stage."""
    if stage.seconds <= 0 or stage.done <= 0:
        return ""
    rate = stage.done / stage.seconds
    left = (stage.total - stage.done) / rate
    return f"{rate:.1f} {stage.unit}/s" + (f"  eta {left:.0f} s" if left >= 1 else "")


@contextmanager
def _board(console: Console, *, live: bool) -> Generator[_Board]:
    if not live:
        yield _Board(console, None)
        return
    columns = TextColumn("  {task.description:<16}"), BarColumn(bar_width=24), TextColumn("{task.fields[facts]}")
    with Progress(*columns, console=console, refresh_per_second=4) as bars:
        yield _Board(console, bars)
