"""How far a stage is: in Postgres for the terminal's live bar, in Prefect as a progress artifact."""

import time
from collections.abc import Callable
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import get_run_context
from prefect.exceptions import MissingContextError

from infra.db.session import retried
from infra.db.store import calls, runs

LEDGER_EVERY_S = 0.5
ARTIFACT_EVERY_S = 2.0


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
        self._artifact: UUID | None = None
        self._said = self._shown = float("-inf")
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
        """Write the count down, at most every half second (Prefect: two seconds)."""
        now = self._clock()
        if force or now - self._said >= LEDGER_EVERY_S:
            self._said = now
            done, total = self._done, self._total
            retried(
                lambda db: runs.save_progress(db, self._run_id, self._stage, done=done, total=total, unit=self._unit)
            )
        if force or now - self._shown >= ARTIFACT_EVERY_S:
            self._shown = now
            self._show()

    def _show(self) -> None:
        try:
            get_run_context()
        except MissingContextError:
            return  # outside a Prefect run (tests, scripts) there is nothing to show it on
        usd = retried(lambda db: sum(spent.usd for spent in calls.spending(db, self._run_id)))
        percent = 100.0 * self._done / self._total if self._total else 100.0
        text = f"{self._stage}: {self._done}/{self._total} {self._unit}, ${usd:.4f} so far"
        if self._artifact is None:
            key = "progress-" + "".join(c if c.isalnum() else "-" for c in self._stage.lower())
            created = create_progress_artifact(progress=percent, key=key, description=text)
            self._artifact = created if isinstance(created, UUID) else None
        else:
            update_progress_artifact(artifact_id=self._artifact, progress=percent, description=text)
