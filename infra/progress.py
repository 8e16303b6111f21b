"""How far a stage is: in Postgres for the terminal's live bar, in Prefect as the run's one progress artifact."""

import time
from collections.abc import Callable

from prefect.context import get_run_context
from prefect.exceptions import MissingContextError

from infra import progress_artifact
from infra.db.session import retried
from infra.db.store import runs

LEDGER_EVERY_S = 0.5


class Progress:
    """Counts the steps of one stage of one run, and says so now and then; what it costs is read from the ledger."""

    def __init__(
        self,
        run_id: str,
        stage: str,
        total: int,
        *,
        done: int = 0,
        unit: str = "rows",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_id = run_id
        self._stage = stage
        self._total = total
        self._done = done
        self._unit = unit
        self._clock = clock
        self._said = float("-inf")
        self._shown = _in_prefect()
        self.say()

    def advance(self, steps: int = 1) -> None:
        """Count; it reaches Postgres and Prefect with the next `say`."""
        self._done += steps

    def reach(self, done: int) -> None:
        """Set the count, and say it when it is time."""
        self._done = done
        self.say()

    def finish(self, done: int | None = None) -> None:
        """Say the last count, now."""
        self._done = self._total if done is None else done
        self._total = max(self._total, self._done)
        self.say(force=True)

    def say(self, *, force: bool = False) -> None:
        """Write the count down, at most every half second; Prefect is told by another thread, so that no row waits."""
        now = self._clock()
        if not force and now - self._said < LEDGER_EVERY_S:
            return
        self._said = now
        done, total = self._done, self._total
        retried(lambda db: runs.save_progress(db, self._run_id, self._stage, done=done, total=total, unit=self._unit))
        if self._shown:
            percent = 100.0 * done / total if total else 100.0
            progress_artifact.show(self._run_id, percent, f"{self._stage}: {done:,} of {total:,} {self._unit}")


def _in_prefect() -> bool:
    """Outside a Prefect run (tests, scripts) there is nothing to show progress on."""
    try:
        get_run_context()
    except MissingContextError:
        return False
    return True
