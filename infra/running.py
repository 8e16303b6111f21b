"""The main job from the terminal: start by name, follow, and say what came of it."""

from typing import Any, NamedTuple, TypedDict
from uuid import UUID

from rich.console import Console
from rich.markup import escape

from domain.errors import NotFound
from domain.workloads import Scope
from infra import deployments, showing, stopping
from infra.db.session import transaction
from infra.db.store import bundles
from infra.following import follow
from infra.settings import Settings
from infra.workloads import LoadedWorkload, find_workload, load_workload


class Limits(TypedDict):
    """How much a run may take (rows, USD, tokens; None means no limit), and which engine answers its rows."""

    max_rows: int | None
    engine: str | None
    max_usd: float | None
    max_tokens: int | None


class Asked(NamedTuple):
    """How far an optimisation goes, and whether runs are there for changes alone."""

    scope: Scope = Scope.FULL
    only_changed: bool = False


def optimize_then_route(
    settings: Settings, workload: str, *, limits: Limits, asked: Asked, route: bool, console: Console
) -> None:
    """Run `optimize-workload`, then `route-batch` when there is a champion; print both summaries."""
    loaded = load_workload(find_workload(workload, settings.workloads))
    name = loaded.workload.name
    parameters = {"workload": asked_name(loaded, settings), **limits, "only_changed": asked.only_changed}
    optimized = _run("optimize-workload", {**parameters, "scope": asked.scope.value}, name, settings, console)
    showing.summary(console, str(optimized))
    if not route or loaded.workload.dataset.incoming is None:
        return
    try:
        with transaction() as db:
            bundles.champion(db, name)
    except NotFound as error:
        console.print(f"\nnothing to route with: {escape(error.message)}")
        return
    routed = _run("route-batch", parameters, name, settings, console)
    showing.summary(console, str(routed))
    showing.closing_words(console, name)


def audit(settings: Settings, workload: str, *, limits: dict[str, Any], console: Console) -> UUID:
    """Run `audit-bundle` and follow it; returns its id."""
    loaded = load_workload(find_workload(workload, settings.workloads))
    parameters = {"workload": asked_name(loaded, settings), **limits}
    return _run("audit-bundle", parameters, loaded.workload.name, settings, console)


def asked_name(loaded: LoadedWorkload, settings: Settings) -> str:
    """A workload's name where it leads there, because it reads better in Prefect than a path."""
    name, folder = loaded.workload.name, loaded.folder
    known = (settings.workloads / name.replace("-", "_"), settings.workloads / name)
    return name if folder in [path.resolve() for path in known] else str(folder)


def resume(settings: Settings, run_id: str, *, max_usd: float | None, max_tokens: int | None, console: Console) -> None:
    """Go on with a run that was cancelled, paused, failed or lost, and print its summary."""
    run = stopping.reopen(run_id, max_usd=max_usd, max_tokens=max_tokens)
    _follow(UUID(run.id), f"{run.kind} {run.workload}", settings, console)
    showing.summary(console, run.id)


def route_version(settings: Settings, workload: str, version: str, *, console: Console) -> UUID:
    """Run `route-batch` on a snapshot of the ledger, follow it and print its summary; returns its id."""
    loaded = load_workload(find_workload(workload, settings.workloads))
    parameters = {"workload": asked_name(loaded, settings), "version": version}
    routed = _run("route-batch", parameters, loaded.workload.name, settings, console)
    showing.summary(console, str(routed))
    return routed


def _run(flow: str, parameters: dict[str, Any], workload: str, settings: Settings, console: Console) -> UUID:
    run_id = deployments.start(flow, parameters=parameters, workload=workload)
    _follow(run_id, flow, settings, console)
    return run_id


def _follow(run_id: UUID, name: str, settings: Settings, console: Console) -> None:
    console.print(f"\n[bold]{escape(name)}[/]  {escape(deployments.page(run_id))}")
    try:
        follow(run_id, console)
    except KeyboardInterrupt:
        console.print()
        stopping.forget(run_id, console, settings)
        raise
