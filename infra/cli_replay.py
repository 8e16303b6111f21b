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
        """Make every decision of a run again from the ledger, the network off. Exit codes: 0 identical, 1 not, 2 cannot."""
        settings = load_settings()
        connect(settings)
        raise typer.Exit(_replay(settings, run_id, workload, console, as_json=as_json))

    @app.command()
    def reproduce(  # pyright: ignore[reportUnusedFunction]
        run_id: RunId,
        sample: Annotated[int, typer.Option(min=1, help="Rows to ask again.")] = 100,
        seed: Annotated[int, typer.Option(help="Another seed samples other rows.")] = 0,
        as_json: AsJson = False,
    ) -> None:
        """Ask the live models some of a run's requests again, and say how many answers still agree."""
        settings = load_settings()
        connect(settings)
        from infra import showing_reproductions
        from infra.reproducing import reproduce as ask_again

        found = ask_again(run_id, sample=sample, seed=seed, settings=load_settings())
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


def _replay(settings: Settings, run_id: str, workload: str, console: Console, *, as_json: bool) -> int:
    from infra import showing_replays, terminal
    from infra.db.session import transaction
    from infra.db.store import runs
    from infra.replaying import NotReplayable, replay
    from infra.sealing import seal
    from infra.workloads import find_workload

    with transaction() as db:  # the connection that stays open
        run = runs.load_run(db, run_id)
    folder = find_workload(workload or run.workload, settings.workloads)
    sealed = seal()
    try:
        found = replay(run.id, folder)
    except NotReplayable as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(terminal.failure(error))
        return 2
    showing_replays.show_replay(console, found, sealed, as_json=as_json)
    return 0 if found.seen.identical else 1
