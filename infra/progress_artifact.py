"""The one progress artifact of a run in Prefect: made once, kept current across stages, tasks and processes."""

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterType

from domain.errors import StoreError
from infra.db.session import retried
from infra.db.store import runs
from infra.deployments import PrefectError, client_for

EVERY_S = 2.0
TYPE = "progress"


@dataclass(slots=True)
class _Board:
    """What is to be shown of one run; a thread writes the newest of it every two seconds, if there is anything new."""

    run_id: str
    percent: float = 0.0
    text: str = ""
    artifact: UUID | None = None
    news: threading.Event = field(default_factory=threading.Event)
    writing: threading.Lock = field(default_factory=threading.Lock)

    def go_on(self) -> None:
        while self.news.wait():
            self.write()
            time.sleep(EVERY_S)

    def write(self) -> None:
        """Show the newest; a Prefect that is away shows it the next time."""
        with self.writing, suppress(PrefectError, StoreError):
            self.news.clear()
            usd, _ = retried(lambda db: runs.spent(db, self.run_id))
            said = f"{self.text}, ${usd:.4f} so far"
            with client_for("show progress") as client:
                if self.artifact is None:
                    self.artifact = self._find(client)
                client.update_artifact(self.artifact, ArtifactUpdate(data=self.percent, description=said))

    def _find(self, client: SyncPrefectClient) -> UUID:
        """The run's artifact, which an earlier process of the same run may have made."""
        mine = ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(self.run_id)]), type=ArtifactFilterType(any_=[TYPE])
        )
        for found in client.read_artifacts(artifact_filter=mine):
            return found.id
        workload = retried(lambda db: runs.load_run(db, self.run_id)).workload
        new = ArtifactCreate(key=f"progress-{workload}", type=TYPE, data=0.0, flow_run_id=UUID(self.run_id))
        return client.create_artifact(new).id


_boards: dict[str, _Board] = {}  # one: a process carries out one run


def show(run_id: str, percent: float, text: str) -> None:
    """Have this shown soon; returns at once."""
    board = _boards.get(run_id)
    if board is None:
        board = _boards[run_id] = _Board(run_id)
        threading.Thread(target=board.go_on, name="progress", daemon=True).start()
    board.percent, board.text = percent, text
    board.news.set()


def conclude(run_id: str, text: str) -> None:
    """Show the run's end, now."""
    board = _boards.pop(run_id, None) or _Board(run_id)
    board.percent, board.text = 100.0, text
    board.write()
