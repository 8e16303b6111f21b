"""What came of a reproduction, as people read it and as JSON."""

import json
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from domain.scores import Estimate
from infra.reproducing import Reproduction
from infra.terminal import print_json


def show(console: Console, found: Reproduction, *, as_json: bool) -> None:
    """How many answers agree, by tier, and what asking again cost."""
    if as_json:
        facts = {
            "run": found.run_id,
            "reproduced": found.of.id,
            "workload": found.of.workload,
            "sample": found.sample,
            "seed": found.seed,
            "rows": found.rows,
            "skipped": found.skipped,
            "tiers": {name.value: asdict(tier) for name, tier in found.tiers.items()},
            "usd": sum(tier.usd for tier in found.tiers.values()),
            "notes": found.notes,
        }
        print_json(console, json.dumps(facts))
        return
    console.print(f"[bold]reproduce {escape(found.of.workload)}[/]  run {found.of.id[:8]}, {found.rows:,} of its rows")
    table = Table(box=None, pad_edge=False)
    for heading in ("  tier", "asked", "same text", "same output", "same label", "logprob gap", "confidence drift"):
        table.add_column(heading)
    for name, tier in found.tiers.items():
        said = tier.agreement
        drift = _signed(said.confidence_drift)
        if said.largest_drift is not None:
            drift += f" (largest {_signed(said.largest_drift)})"
        shares = (_share(said.text), _share(said.output), _share(said.label))
        table.add_row(f"  {name.value}", f"{tier.asked:,}", *shares, _gap(said.logprob_gap), drift)
    console.print(table)
    for name, tier in found.tiers.items():
        if tier.unanswered:
            console.print(f"  note      {name.value}: {tier.unanswered:,} were not answered: {escape(tier.why or '')}")
    if found.skipped:
        console.print(f"  note      {found.skipped:,} refused answers have no request to repeat")
    for note in found.notes:
        console.print(f"  note      {escape(note)}")
    tokens = sum(tier.usage.prompt + tier.usage.completion for tier in found.tiers.values())
    spent = sum(tier.usd for tier in found.tiers.values())
    console.print(f"  spent     {tokens:,} tokens, ${spent:.4f}, as run {found.run_id[:8]}")


def _share(share: Estimate) -> str:
    return f"{share.mean:.1%} [{share.low:.1%}, {share.high:.1%}]" if share.n else "-"


def _gap(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2g}"
