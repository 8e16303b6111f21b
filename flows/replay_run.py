"""Every decision of a past run again: the same, or the first that comes out differently."""

from prefect import flow

from tasks.naming import named
from tasks.references import PastRunRef
from tasks.replaying import find_run, replay_decisions
from tasks.running import stoppable


@flow(name="replay-run", flow_run_name=named("replay"))
@stoppable
def replay_run(workload: str = "support-triage", run_id: str = "last") -> PastRunRef:
    """Replay a completed run from the ledger, with the network off; no model is called.

    Args:
        workload: Name of a folder below the workloads folder, or a path to one.
        run_id: A run's id or its beginning; empty or "last" means the workload's newest completed run.
    """
    return replay_decisions(find_run(workload, run_id))
