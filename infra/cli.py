"""`headrace`: what people type. Exit codes: 0 fine, 1 a check or a run failed, 2 wrong use, 3 something is down."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from domain.errors import HeadraceError, InputError, NotFound
from domain.workloads import EngineName, Scope
from infra import (
    cli_bundles,
    cli_certify,
    cli_dashboard,
    cli_notices,
    cli_operations,
    cli_replay,
    cli_watch,
    cli_webhooks,
    services,
    stack,
    startup,
    terminal,
)
from infra.settings import Settings, load_settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)

WorkloadName = Annotated[str, typer.Argument(help="A name below the workloads folder, or a path.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]
MaxRows = Annotated[int | None, typer.Option(min=1, help="Use the first rows only.")]
Engine = Annotated[EngineName | None, typer.Option(help="What answers the rows; default: as the workload says.")]
MaxUsd = Annotated[float | None, typer.Option(min=0, help="Pause each run before it has spent more, USD.")]
MaxTokens = Annotated[int | None, typer.Option(min=0, help="Pause each run before it has used more tokens.")]
RunId = Annotated[str, typer.Argument(help="A run's id or its beginning.")]


def main() -> None:
    """Run a command; errors of ours become one clear message and an exit code."""
    try:
        app()
    except HeadraceError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(terminal.failure(error))
        sys.exit(_exit_code(error))


def _exit_code(error: HeadraceError) -> int:
    if isinstance(error, InputError | NotFound):
        return 2
    return 3 if error.retryable or isinstance(error, startup.StackError) else 1


@app.command()
def up() -> None:
    """Start the embedded stack, prepare databases and deployments."""
    settings = load_settings()
    with _stage("stack"):
        _up(settings)
    console.print("\n[bold]next[/]   headrace run support-triage   ·   headrace status   ·   headrace down")


def _idle_engines(settings: Settings, workload: str) -> frozenset[str]:
    """Embedded engines that no tier of the workload uses, because it has base_urls of its own."""
    from infra.workloads import find_workload, load_workload

    tiers = load_workload(find_workload(workload, settings.workloads)).workload.tiers
    used = {tier.model for tier in (tiers.cheap, tiers.strong) if not tier.base_urls}
    return frozenset(service for service, model in services.MODELS.items() if model not in used)


def _up(settings: Settings, *, leave_out: frozenset[str] = frozenset()) -> None:
    with terminal.service_board(console) as report:
        wanted = stack.embedded(settings) - leave_out
        stack.up(settings, only=wanted - services.OURS.keys(), report=report)
        stack.connect()
        from infra.db.session import migrate
        from infra.deploying import deploy

        migrate()
        fresh = deploy(home=settings.home)
        stack.up(settings, only=wanted, report=report)
    worker = "up" if "worker" in wanted else "elsewhere"
    console.print(f"  deployments     {'applied' if fresh else 'up to date'}   work pool: local   worker: {worker}")


@app.command()
def down() -> None:
    """Stop everything that `up` started."""
    stack.down(load_settings())
    console.print("everything of ours is stopped")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Say how each service is."""
    settings = load_settings()
    states = stack.status(settings)
    console.print(terminal.status_json(states) if as_json else terminal.status_table(states))
    if not as_json:
        console.print(f"\n{terminal.logins(settings)}")
    if any(state.phase != "healthy" for state in states):
        raise typer.Exit(3)


@app.command()
def logs(service: str, lines: Annotated[int, typer.Option(min=1)] = 50) -> None:
    """Print the end of a service's log."""
    path = stack.log_path(load_settings(), service)
    if not path.is_file():
        raise NotFound(f"{service!r} has no log at {path}.", hint="See the names with `headrace status`.")
    for line in path.read_text(errors="replace").splitlines()[-lines:]:
        console.print(line, markup=False)


@app.command()
def deploy(
    workload: Annotated[
        str,
        typer.Argument(help="Deploy the flows for this workload too: its name, or a path."),
    ] = "",
) -> None:
    """Apply prefect.yaml to the Prefect server; with a workload, also the same four flows for it."""
    settings = load_settings()
    stack.connect()
    from infra import deploying

    applied = deploying.deploy(home=settings.home, workload=workload or None)
    console.print("applied" if applied else "up to date")


@app.command()
def run(  # noqa: PLR0913, PLR0917 - its options are what people type
    workload: WorkloadName = "support-triage",
    with_up: Annotated[bool, typer.Option("--up", help="Start the stack first.")] = False,
    route: Annotated[bool, typer.Option(help="Answer the workload's incoming rows afterwards.")] = True,
    max_rows: MaxRows = None,
    engine: Annotated[
        EngineName | None, typer.Option(help="What answers the rows; default: as the workload says.")
    ] = None,
    max_usd: MaxUsd = None,
    max_tokens: MaxTokens = None,
    scope: Annotated[
        Scope, typer.Option(help="full; retune: the champion's prompts; recheck: its certificate first.")
    ] = Scope.FULL,
    only_changed: Annotated[bool, typer.Option("--only-changed", help="End at once when nothing has changed.")] = False,
) -> None:
    """Optimise a workload, then route its incoming rows with the bundle that was promoted."""
    settings = load_settings()
    console.print(terminal.banner(settings), markup=True)
    with _ctrl_c(settings, stop_stack=with_up):
        if with_up:
            with _stage("stack"):
                _up(settings, leave_out=_idle_engines(settings, workload))
        stack.connect()
        from infra import running

        limits = running.Limits(max_rows=max_rows, engine=engine, max_usd=max_usd, max_tokens=max_tokens)
        asked = running.Asked(scope=scope, only_changed=only_changed)
        running.optimize_then_route(load_settings(), workload, limits=limits, asked=asked, route=route, console=console)


@contextmanager
def _stage(name: str) -> Generator[None]:
    console.print(f"[bold]{name}[/]")
    yield


@contextmanager
def _ctrl_c(settings: Settings, *, stop_stack: bool) -> Generator[None]:
    """Ctrl-C ends what we began: the run is cancelled by who started it, the stack is stopped by who started it."""
    try:
        yield
    except KeyboardInterrupt:
        if stop_stack:
            console.print("\nstopping the stack …")
            stack.down(settings)
        raise typer.Exit(130) from None


@app.command()
def cancel(run_id: RunId, wait: Annotated[bool, typer.Option(help="Wait until the run has ended.")] = True) -> None:
    """Stop a run; what is finished is kept, `headrace resume` does the rest."""
    stack.connect()
    from infra import stopping

    if not stopping.cancel(run_id, console, load_settings(), wait=wait) and wait:
        raise typer.Exit(1)


@app.command()
def resume(run_id: RunId, max_usd: MaxUsd = None, max_tokens: MaxTokens = None) -> None:
    """Go on with a run that was cancelled, paused, failed or lost; exactly the rest is done."""
    settings = load_settings()
    stack.connect()
    from infra import running

    with _ctrl_c(settings, stop_stack=False):
        running.resume(load_settings(), run_id, max_usd=max_usd, max_tokens=max_tokens, console=console)


@app.command()
def runs(as_json: AsJson = False, limit: Annotated[int, typer.Option(min=1)] = 20) -> None:
    """List the newest runs."""
    stack.connect()
    from infra import showing

    showing.list_runs(console, limit=limit, as_json=as_json)


@app.command()
def show(
    run_id: Annotated[str, typer.Argument(help="A run's id or its beginning; `last` for the newest.")] = "last",
    quarantined: Annotated[bool, typer.Option("--quarantined", help="List the quarantine instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one run: its figures, or its quarantine."""
    stack.connect()
    from infra import showing

    showing.show_run(console, run_id, quarantined=quarantined, as_json=as_json)


@app.command()
def doctor(
    run_id: Annotated[str, typer.Argument(help="A run's id or its beginning; empty checks the newest ones.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check the services and the ledger's equations: rows are conserved, tokens reconcile."""
    settings = load_settings()
    stack.connect()
    from infra import showing

    well = showing.check(console, settings, run_id or None, as_json=as_json)
    if not well:
        raise typer.Exit(1)


app.add_typer(cli_certify.verbs)
app.add_typer(cli_replay.verbs)
app.add_typer(cli_bundles.verbs)
app.add_typer(cli_watch.verbs)
app.add_typer(cli_webhooks.verbs)
app.add_typer(cli_notices.verbs)
app.add_typer(cli_operations.verbs)
app.add_typer(cli_dashboard.verbs)


if __name__ == "__main__":
    main()
