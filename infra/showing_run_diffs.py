"""Two runs side by side, as people read them and as JSON."""

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from domain.canonical import canonical
from domain.comparisons import Difference
from domain.run_diffs import Ended, Flip, RunDiff
from infra.comparing import compare_runs
from infra.db.store.runs import RunRecord
from infra.terminal import print_json

MOST_FLIPS = 20


def show(console: Console, before: str, after: str, *, as_json: bool) -> None:
    """Quality, cost and every flipped row of two runs, with what it is put down to."""
    one, two, found = compare_runs(before, after)
    if as_json:
        print_json(console, json.dumps(_facts(one, two, found)))
        return
    console.print(f"[bold]{one.workload}[/]  run {one.id[:8]} ({one.kind}) → run {two.id[:8]} ({two.kind})")
    alone = f", {found.before_only} only in the first, {found.after_only} only in the second"
    console.print(f"  rows      {found.rows} in both{alone if found.before_only or found.after_only else ''}")
    if found.quality is None:
        metrics = " and ".join(escape(repr(run.spec.get("metric"))) for run in (one, two))
        console.print(f"  quality   not comparable: the runs were scored by {metrics}")
    elif found.quality.n:
        console.print(f"  quality   {_interval(found.quality, 3)}  on {found.quality.n} scored rows")
    else:
        console.print("  quality   not known: these rows have no gold answers")
    if found.rows:
        console.print(f"  USD       {_interval(found.usd_per_1000, 4)}  per 1,000 rows")
    causes = ", ".join(f"{cause} {count}" for cause, count in found.causes.most_common())
    console.print(f"  flipped   {len(found.flips)}{f': {escape(causes)}' if causes else ''}")
    table = Table(box=None, pad_edge=False)
    for heading in ("  row", "before", "after", "quality", "put down to"):
        table.add_column(heading, overflow="fold")
    for flip in found.flips[:MOST_FLIPS]:
        table.add_row(f"  {escape(flip.before.row)}", *map(escape, _words(flip, comparable=found.quality is not None)))
    if found.flips:
        console.print(table)
    if len(found.flips) > MOST_FLIPS:
        console.print(f"  and {len(found.flips) - MOST_FLIPS} more: --json has all")


def _words(flip: Flip, *, comparable: bool) -> tuple[str, str, str, str]:
    qualities = (flip.before.quality, flip.after.quality)
    quality = "-" if None in qualities or not comparable else f"{qualities[0]:.2f} → {qualities[1]:.2f}"
    return _ended(flip.before), _ended(flip.after), quality, " + ".join(flip.parts) or "not on record"


def _ended(ended: Ended) -> str:
    return f"{ended.tier}: {canonical(dict(ended.output)).decode()}" if ended.output is not None else "quarantined"


def _interval(found: Difference, digits: int) -> str:
    interval = escape(f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]")
    return f"{interval}  p = {found.p_value:.3g} ({found.method})"


def _facts(one: RunRecord, two: RunRecord, found: RunDiff) -> dict[str, Any]:
    return {
        "a": one.id,
        "b": two.id,
        "rows": found.rows,
        "a_only": found.before_only,
        "b_only": found.after_only,
        "metrics": [one.spec.get("metric"), two.spec.get("metric")],
        "quality": asdict(found.quality) if found.quality else None,
        "usd_per_1000": asdict(found.usd_per_1000),
        "causes": dict(found.causes),
        "flips": [
            {
                "row": flip.before.row,
                "parts": list(flip.parts),
                "a": _end(flip.before),
                "b": _end(flip.after),
            }
            for flip in found.flips
        ],
    }


def _end(ended: Ended) -> dict[str, Any]:
    return {"tier": ended.tier, "output": ended.output, "quality": ended.quality, "usd": ended.usd, "key": ended.key}
