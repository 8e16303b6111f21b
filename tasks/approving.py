"""Approve: a run that was started by an alarm may have to wait until somebody says yes."""

from prefect.flow_runs import suspend_flow_run

KEY = "approval"
PATIENCE_S = 30 * 24 * 3600


def await_approval(wanted: bool) -> None:
    """Suspend the run until it is resumed (Prefect's Resume button, or `prefect flow-run resume`), at most 30 days.

    The process ends meanwhile. When the run begins again Prefect knows that this very pause is over, and it goes on.
    """
    if wanted:
        suspend_flow_run(key=KEY, timeout=PATIENCE_S)
