"""The verbs on past runs: replay, reproduce, export, import."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infra import stack
from infra.settings import Settings

verbs = typer.Typer()
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id or its beginning.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]
Where = Annotated[
    str, typer.Option("--workload", help="The workload's folder, where it is not found by the run's workload's name.")
]


def _find(settings: Settings, run_id: str, workload: str) -> tuple[str, Path]:
    """A run's whole id and its workload's folder; raises NotFound and WorkloadError."""
    from infra.db.session import transaction
    from infra.db.store import runs
    from infra.workloads import find_workload

    with transaction() as db:
        run = runs.load_run(db, run_id)
    return run.id, find_workload(workload or run.workload, settings.workloads)


@verbs.command()
def replay(run_id: RunId, workload: Where = "", as_json: AsJson = False) -> None:
    """Make every decision of a run again from the ledger, the network off: 0 identical, 1 divergent, 2 cannot."""
    settings = stack.connect()
    from infra import replaying, showing_replays
    from infra.sealing import seal

    run, folder = _find(settings, run_id, workload)  # on the connection that stays open
    sealed = seal()
    found = replaying.replay(run, folder)
    showing_replays.show_replay(console, found, sealed, as_json=as_json)
    if not found.seen.identical:
        raise typer.Exit(1)


@verbs.command()
def reproduce(
    run_id: RunId,
    sample: Annotated[int, typer.Option(min=1, help="Rows to ask again.")] = 100,
    seed: Annotated[int, typer.Option(help="Another seed samples other rows.")] = 0,
    workload: Where = "",
    as_json: AsJson = False,
) -> None:
    """Ask the live models some of a run's requests again, and say how many answers still agree."""
    settings = stack.connect()
    from infra import reproducing, showing_reproductions

    run, folder = _find(settings, run_id, workload)
    found = reproducing.reproduce(run, folder, sample=sample, seed=seed, settings=settings)
    showing_reproductions.show(console, found, as_json=as_json)


@verbs.command(name="export")
def export_(
    reference: Annotated[
        str, typer.Argument(metavar="RUN|BUNDLE", help="A run's id, a bundle's hash, or their beginning; champion@W.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE|FOLDER", help="What is written.")],
) -> None:
    """Write a run with all that its replay needs into a zip file, or a bundle into a folder of plain files."""
    stack.connect()
    from infra.bundle_folders import export_bundle, is_bundle
    from infra.exchange import export_run

    if is_bundle(reference):
        bundle, names = export_bundle(reference, file)
        console.print(f"bundle {bundle.hash} written to {file}: {', '.join(names)}", markup=False)
        return
    console.print(f"{sum(export_run(reference, file).values()):,} rows written to {file}", markup=False)


@verbs.command(name="import")
def import_(file: Annotated[Path, typer.Argument(metavar="FILE|FOLDER", help="What `export` wrote.")]) -> None:
    """Add an exported run or bundle to this ledger; no alias moves, and a bundle's every byte is checked."""
    stack.connect()
    from infra.bundle_folders import import_bundle
    from infra.db.session import migrate
    from infra.exchange import import_runs

    migrate()
    if file.is_dir():
        bundle, new = import_bundle(file)
        said = "added" if new else "was here already"
        console.print(f"bundle {bundle.hash} {said}: every byte is as it was exported", markup=False)
        return
    console.print(f"{sum(import_runs(file).values()):,} rows read from {file}", markup=False)
