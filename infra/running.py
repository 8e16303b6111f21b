"""The main job from the terminal: start by name, follow, and say what came of it."""

from uuid import UUID

from rich.console import Console
from rich.markup import escape

from domain.errors import NotFound
from infra import deployments, showing
from infra.db.session import transaction
from infra.db.store import bundles
from infra.following import follow
from infra.settings import Settings
from infra.workloads import find_workload, load_workload


def optimize_then_route(
    settings: Settings, workload: str, *, max_rows: int | None, route: bool, console: Console
) -> None:
    """Run `optimize-workload`, then `route-batch` when there is a champion; print both summaries."""
    folder = find_workload(workload, settings.workloads)
    loaded = load_workload(folder)
    name = loaded.workload.name
    # The name where it leads there: it reads better in Prefect than a path.
    known = (settings.workloads / name.replace("-", "_"), settings.workloads / name)
    asked = name if folder in [path.resolve() for path in known] else str(folder)
    optimized = _run("optimize-workload", {"workload": asked, "max_rows": max_rows}, name, console)
    showing.summary(console, str(optimized))
    if not route or loaded.workload.dataset.incoming is None:
        return
    try:
        with transaction() as db:
            bundles.champion(db, name)
    except NotFound as error:
        console.print(f"\nnothing to route with: {escape(error.message)}")
        return
    routed = _run("route-batch", {"workload": asked, "max_rows": max_rows}, name, console)
    showing.summary(console, str(routed))
    showing.closing_words(console, name)


def _run(flow: str, parameters: dict[str, str | int | None], workload: str, console: Console) -> UUID:
    run_id = deployments.start(flow, parameters=parameters, workload=workload)
    console.print(f"\n[bold]{flow}[/]  {escape(deployments.page(run_id))}")
    try:
        follow(run_id, console)
    except KeyboardInterrupt:
        console.print("\ncancelling the run …")
        deployments.cancel(run_id)
        raise
    return run_id
