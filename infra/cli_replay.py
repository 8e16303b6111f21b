"""The verbs on past runs: replay, reproduce, export, import."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infra.settings import Settings, load_settings

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id or its beginning.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]
Where = Annotated[
    str, typer.Option("--workload", help="The workload's folder, where it is not found by the run's workload's name.")
]


def add_to(app: typer.Typer, *, connect: Callable[[Settings], None], console: Console) -> None:
    """Add the verbs to the command line; `connect` leads this process to the stack."""

    @app.command()
    def replay(run_id: RunId, workload: Where = "", as_json: AsJson = False) -> None:  # pyright: ignore[reportUnusedFunction]
        """Make every decision of a run again from the ledger, the network off: 0 identical, 1 divergent, 2 cannot."""
        connect(load_settings())
        if not _replay(load_settings(), run_id, workload, console, as_json=as_json):
            raise typer.Exit(1)

    @app.command()
    def reproduce(  # pyright: ignore[reportUnusedFunction]
        run_id: RunId,
        sample: Annotated[int, typer.Option(min=1, help="Rows to ask again.")] = 100,
        seed: Annotated[int, typer.Option(help="Another seed samples other rows.")] = 0,
        workload: Where = "",
        as_json: AsJson = False,
    ) -> None:
        """Ask the live models some of a run's requests again, and say how many answers still agree."""
        connect(load_settings())
        from infra import reproducing, showing_reproductions

        settings = load_settings()  # with what the stack knows of its model servers
        run, folder = _find(settings, run_id, workload)
        found = reproducing.reproduce(run, folder, sample=sample, seed=seed, settings=settings)
        showing_reproductions.show(console, found, as_json=as_json)

    @app.command(name="export")
    def export_(run_id: RunId, file: Path) -> None:  # pyright: ignore[reportUnusedFunction]
        """Write a run with all that its replay needs into a zip file: rows, prompts and answers in plain text."""
        connect(load_settings())
        from infra.exchange import export_run

        console.print(f"{sum(export_run(run_id, file).values()):,} rows written to {file}", markup=False)

    @app.command(name="import")
    def import_(file: Path) -> None:  # pyright: ignore[reportUnusedFunction]
        """Add an exported run to this ledger."""
        connect(load_settings())
        from infra.db.session import migrate
        from infra.exchange import import_runs

        migrate()
        console.print(f"{sum(import_runs(file).values()):,} rows read from {file}", markup=False)


def _find(settings: Settings, run_id: str, workload: str) -> tuple[str, Path]:
    """A run's whole id and its workload's folder; raises NotFound and WorkloadError."""
    from infra.db.session import transaction
    from infra.db.store import runs
    from infra.workloads import find_workload

    with transaction() as db:
        run = runs.load_run(db, run_id)
    return run.id, find_workload(workload or run.workload, settings.workloads)


def _replay(settings: Settings, run_id: str, workload: str, console: Console, *, as_json: bool) -> bool:
    from infra import showing_replays
    from infra.replaying import replay
    from infra.sealing import seal

    run, folder = _find(settings, run_id, workload)  # on the connection that stays open
    sealed = seal()
    found = replay(run, folder)
    showing_replays.show_replay(console, found, sealed, as_json=as_json)
    return found.seen.identical
