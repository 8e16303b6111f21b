"""Names of runs as people read them in Prefect: what is done, to which workload, with which version of its rows."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from prefect.runtime import flow_run as current_flow_run

from infra import deployments

SHORT = 8
"""Characters of a hash or an id that people need to tell it from others."""


def named(verb: str) -> Callable[[], str]:
    """The name of a flow's run when it begins: the verb, and the workload without the path to it."""

    def name() -> str:
        asked = str(current_flow_run.parameters.get("workload", ""))
        folder = Path(asked).parent if asked.endswith(".yaml") else Path(asked)
        return f"{verb}-{folder.name.replace('_', '-')}"

    return name


def name_run(verb: str, workload: str, what: str) -> None:
    """Call the current run by what it turned out to work on; a Prefect that is away is no reason to fail."""
    with suppress(deployments.PrefectError):
        deployments.describe(
            UUID(str(current_flow_run.id)), name=f"{verb}-{workload}-{what[:SHORT]}", workload=workload
        )
