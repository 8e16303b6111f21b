"""What `headrace prune` did, or would do, as people read it and as JSON."""

import json

from rich.console import Console
from rich.table import Table

from infra.pruning import Pruned
from infra.terminal import print_json


def show(console: Console, pruned: Pruned, *, as_json: bool) -> None:
    """Runs, rows and bytes that go, and why the others stay."""
    if as_json:
        print_json(console, json.dumps(_facts(pruned)))
        return
    verb = "would go" if pruned.dry_run else "gone"
    console.print(f"{len(pruned.runs):,} runs from before {pruned.before:%Y-%m-%d %H:%M} UTC {verb}")
    table = Table(box=None, pad_edge=False)
    for heading in ("table", "rows", "bytes"):
        table.add_column(heading, justify="left" if heading == "table" else "right")
    for size in pruned.sizes:
        table.add_row(size.table, f"{size.rows:,}", f"{size.bytes:,}")
    table.add_row("all", f"{pruned.rows:,}", f"{pruned.bytes:,}")
    console.print(table)
    for need, count in pruned.kept.most_common():
        console.print(f"  {count:,} stay: {need}")
    if not pruned.quiet:
        console.print("A run is under way: answers and snapshots stay until it has ended.")
    if pruned.dry_run:
        console.print("\n[bold]next[/]   the same without --dry-run")


def _facts(pruned: Pruned) -> dict[str, object]:
    return {
        "before": pruned.before.isoformat(),
        "dry_run": pruned.dry_run,
        "runs": [run.id for run in pruned.runs],
        "tables": {size.table: {"rows": size.rows, "bytes": size.bytes} for size in pruned.sizes},
        "kept": {need.name.lower(): count for need, count in pruned.kept.items()},
        "quiet": pruned.quiet,
    }
