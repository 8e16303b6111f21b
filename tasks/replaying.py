"""Replay: a past run decided again in a process of its own, and what that says."""

from pathlib import Path

from prefect import get_run_logger, task

from infra import replay_process, reporting
from infra.db.session import transaction
from infra.db.store import runs
from infra.replay_process import ReplayDiverged
from infra.replaying import KINDS
from infra.settings import load_settings
from infra.workloads import find_workload, load_workload
from tasks.naming import name_run
from tasks.references import PastRunRef
from tasks.running import is_retryable

NEWEST = ("", "last")


@task(task_run_name="find-run", retry_condition_fn=is_retryable)
def find_run(workload: str, run_id: str) -> PastRunRef:
    """A run by its id or its beginning, or the workload's newest completed one.

    Raises NotFound, and WorkloadError when the code beside the run's workload is not found.
    """
    folders = load_settings().workloads
    asked = find_workload(workload, folders)
    name = load_workload(asked).workload.name
    with transaction() as db:
        newest = run_id.strip() in NEWEST
        run = runs.newest_completed(db, name, kinds=KINDS) if newest else runs.load_run(db, run_id.strip())
    folder = asked if run.workload == name else find_workload(run.workload, folders)
    name_run("replay", run.workload, run.id)
    return PastRunRef(run_id=run.id, workload=run.workload, folder=str(folder))


@task(task_run_name="replay-decisions", retry_condition_fn=is_retryable)
def replay_decisions(past: PastRunRef) -> PastRunRef:
    """Make every decision again from the ledger, the network off, and leave what came of it as an artifact.

    Raises ReplayDiverged at the first decision that comes out differently, NotReplayable when it cannot be told.
    """
    found = replay_process.replay_apart(past.run_id, Path(past.folder))
    reporting.replay(past.run_id, past.workload, found)
    get_run_logger().info("%s", replay_process.line(found))
    if not found["identical"]:
        raise ReplayDiverged(replay_process.line(found))
    return past
