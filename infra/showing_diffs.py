"""Two bundles side by side, as people read them and as JSON."""

import json
from dataclasses import asdict
from typing import Any

from pydantic import JsonValue
from rich.console import Console
from rich.markup import escape

from domain.bundle_diffs import BundleDiff, Compared, compare_cascades, diff_bundles
from domain.canonical import canonical
from domain.comparisons import Difference
from domain.datasets import Split
from infra.aliasing import judged_rows, require_one_metric
from infra.db.session import transaction
from infra.db.store import bundles
from infra.db.store.bundles import StoredBundle
from infra.terminal import print_json

SHORT = 12
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def show_diff(console: Console, before: str, after: str, *, as_json: bool) -> None:
    """What differs between two bundles; quality and cost on the test rows that both answered."""
    with transaction() as db:
        one, two = bundles.find_bundle(db, before), bundles.find_bundle(db, after)
    require_one_metric(one, two)
    found = diff_bundles(one.bundle, two.bundle)
    rows = compare_cascades(
        judged_rows(one, Split.TEST),
        judged_rows(two, Split.TEST),
        thresholds=(one.bundle.threshold, two.bundle.threshold),
    )
    if as_json:
        print_json(console, json.dumps(_facts(one, two, found, rows)))
        return
    console.print(f"[bold]{one.bundle.hash[:SHORT]} → {two.bundle.hash[:SHORT]}[/]  {_names(one)} → {_names(two)}")
    if found.identical:
        console.print("  the bundles are identical")
    for name, text in found.prompts.items():
        _print_text(console, f"prompt, {name.value}", text)
    _print_text(console, "output schema", found.schema)
    for part in found.changed:
        console.print(f"  {escape(part.name):<40} {escape(_short(part.before))} → {escape(_short(part.after))}")
    _print_rows(console, rows)


def _print_text(console: Console, title: str, text: str) -> None:
    console.print(f"[bold]{title}[/]  {'' if text else 'equal'}")
    for line in text.splitlines():
        colour = _COLOURS.get(line[:1])
        console.print(f"  [{colour}]{escape(line)}[/]" if colour else f"  {escape(line)}")


def _print_rows(console: Console, rows: Compared) -> None:
    if rows.quality.n == 0:
        console.print("[bold]same rows[/]  none: the ledger holds no test row that both bundles' runs answered")
        return
    quality, cost = rows.quality, rows.usd_per_1000
    alone = rows.before_only + rows.after_only
    besides = f", {alone} others answered by one of them only" if alone else ""
    console.print(f"[bold]same rows[/]  {quality.n} test rows{besides}; B less A, 95 % intervals")
    console.print(
        f"  quality            {_interval(quality, 3)}   {quality.up} rows better, {quality.down} worse, "
        f"p = {quality.p_value:.3g} ({quality.method})"
    )
    console.print(f"  USD per 1,000 rows {_interval(cost, 4)}   p = {cost.p_value:.3g} ({cost.method})")


def _facts(one: StoredBundle, two: StoredBundle, found: BundleDiff, rows: Compared) -> dict[str, Any]:
    return {
        "a": one.bundle.hash,
        "b": two.bundle.hash,
        "runs": [one.run_id, two.run_id],
        "identical": found.identical,
        "prompts": {name.value: text for name, text in found.prompts.items()},
        "schema": found.schema,
        "changed": [asdict(part) for part in found.changed],
        "rows": asdict(rows),
    }


def _names(stored: StoredBundle) -> str:
    alias = ", ".join(stored.aliases) or "no alias"
    return f"{stored.bundle.workload} ({alias}, run {(stored.run_id or 'none')[:8]})"


def _interval(found: Difference, digits: int) -> str:
    return escape(f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]")


def _short(value: JsonValue) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else canonical(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}…"
