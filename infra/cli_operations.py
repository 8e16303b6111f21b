"""The verbs of whoever runs the stack: migrate, backup, restore, prune, quarantine requeue."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from domain.retentions import age
from infra import stack
from infra.settings import load_settings
from infra.terminal import print_json

verbs = typer.Typer()
quarantine = typer.Typer(no_args_is_help=True, help="Rows that were not answered.")
verbs.add_typer(quarantine, name="quarantine")
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]


def _say(what: str) -> None:
    Console(stderr=True, highlight=False).print(f"  {what}", markup=False)


@verbs.command()
def migrate(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail unless it is so already.")] = False,
) -> None:
    """Bring the ledger's schema and the dashboard's views to this release, as `headrace up` does too."""
    settings = stack.connect()
    from infra.db import reader, session

    if not check:
        session.migrate()
    # A dashboard that runs alone knows the reader's address and no other.
    if settings.database_url or not settings.reader_url:
        session.check_schema()
    if settings.reader_url:
        reader.check()
    console.print("the schema is that of this code")


@verbs.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")], as_json: AsJson = False
) -> None:
    """Write the embedded databases and the servers' files into a folder, while everything runs; no secrets."""
    from infra import backups

    made = backups.back_up(load_settings(), folder.absolute(), _say)
    if as_json:
        print_json(console, json.dumps(asdict(made)))
        return
    console.print(f"{len(made.parts)} files, {made.bytes:,} bytes in {folder}", markup=False)
    console.print("It holds rows, prompts and answers in plain text, and not the secrets: keep `secrets/` apart.")
    console.print(f"\n[bold]next[/]   headrace restore {folder}", soft_wrap=True)


@verbs.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="A folder that `headrace backup` wrote.")],
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup in the place of what the stack holds: checked first, and replaced whole or not at all."""
    from infra import restoring

    found = restoring.restore(load_settings(), folder.absolute(), _say, force=force)
    if as_json:
        print_json(console, json.dumps(asdict(found)))
        return
    console.print(f"restored what was backed up at {found.made_at}: {found.bytes:,} bytes", markup=False)
    console.print("\n[bold]next[/]   headrace up   ·   headrace doctor   ·   headrace runs")


@verbs.command()
def prune(
    older_than: Annotated[str, typer.Option("--older-than", help="Forget what ended longer ago: 90d, 12w, 36h.")],
    workload: Annotated[str | None, typer.Option(help="Runs of this workload only.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and leave it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Forget old runs that no bundle, certificate, promotion or audit needs, and answers that nobody refers to."""
    longer = age(older_than)
    stack.connect()
    from infra import pruning, showing_pruning

    pruned = pruning.prune(longer, workload=workload, dry_run=dry_run, say=_say)
    showing_pruning.show(console, pruned, as_json=as_json)


@quarantine.command()
def requeue(
    run_id: Annotated[str, typer.Argument(help="A batch's id or its beginning.")],
    reason: Annotated[str | None, typer.Option(help="Only rows whose reason holds this text.")] = None,
    workload: Annotated[
        str, typer.Option(help="Name or path of the workload, where the name does not lead there.")
    ] = "",
) -> None:
    """Ask exactly the quarantined rows of a batch again, in a batch of their own, with the champion of today."""
    settings = stack.connect()
    from infra import requeueing, running

    made = requeueing.requeue(run_id, reason=reason)
    console.print(f"{made.rows:,} rows are asked again", markup=False)
    if made.unreadable:
        console.print(f"{made.unreadable:,} could not be read: mend them in their files, then route these again")
    if made.other_reasons:
        console.print(f"{made.other_reasons:,} are there for other reasons")
    running.route_version(settings, workload or made.workload, made.version, console=console)
