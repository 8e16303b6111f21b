"""The verbs that watch a bundle in use: audit, the list of audits, and labels that arrive late."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infra import stack

verbs = typer.Typer()
late = typer.Typer(invoke_without_command=True, help="Labels that arrive after rows were routed: count, import.")
verbs.add_typer(late, name="labels")
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)

WorkloadName = Annotated[str, typer.Argument(help="A name below the workloads folder, or a path.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]


@verbs.command()
def audit(
    workload: WorkloadName = "support-triage",
    share: Annotated[float, typer.Option(min=0, max=1, help="Share of all routed rows that is looked at.")] = 0.2,
    max_rows: Annotated[int, typer.Option(min=0, help="Ask the strong tier about so many rows at most.")] = 500,
    max_usd: Annotated[float | None, typer.Option(min=0, help="Choose no more rows than this pays for, USD.")] = None,
    alpha: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="Chance of a false alarm of the e-process, ever.")
    ] = 0.05,
    as_json: AsJson = False,
) -> None:
    """Audit the champion on what it has routed since the last audit: 0 nothing is held against it, 1 alarm or void,
    3 the audit did not end."""
    settings = stack.connect()
    from infra import following, running, showing_audits, terminal

    limits = {"share": share, "max_rows": max_rows, "max_usd": max_usd, "alpha": alpha}
    silent = Console(stderr=True, highlight=False, soft_wrap=True) if as_json else console
    try:
        run_id = running.audit(settings, workload, limits=limits, console=silent)
    except following.RunFailed as error:  # nothing is known of the promise: not the exit code of an alarm
        Console(stderr=True, highlight=False, soft_wrap=True).print(terminal.failure(error))
        raise typer.Exit(3) from error
    if not showing_audits.show_audit(console, str(run_id), as_json=as_json):
        raise typer.Exit(1)


@verbs.command()
def audits(workload: WorkloadName = "support-triage", as_json: AsJson = False) -> None:
    """List the audits of a workload."""
    settings = stack.connect()
    from infra import showing_audits
    from infra.workloads import find_workload, load_workload

    name = load_workload(find_workload(workload, settings.workloads)).workload.name
    showing_audits.list_audits(console, name, as_json=as_json)


@late.callback()
def labels(context: typer.Context, as_json: AsJson = False) -> None:
    """Count the labels that arrived late, and the audited rows that wait for one."""
    if context.invoked_subcommand is not None:
        return
    stack.connect()
    from infra import showing_audits

    showing_audits.list_labels(console, as_json=as_json)


@late.command(name="import")
def import_(
    workload: WorkloadName,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="csv, jsonl or parquet.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Where an earlier label differs take the new one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Import right answers by row id, in the columns that the workload's dataset names: 0 all, 1 with faults."""
    settings = stack.connect()
    from infra import showing_audits
    from infra.labels import import_labels
    from infra.workloads import find_workload, load_workload

    found = import_labels(load_workload(find_workload(workload, settings.workloads)), file, replacing=replace)
    showing_audits.show_imported(console, found, as_json=as_json)
    if found.faults:
        raise typer.Exit(1)
