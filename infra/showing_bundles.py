"""Bundles as people read them: a list, one in full, and a champion that was made."""

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from domain import summaries
from domain.bundles import Bundle
from domain.certificates import Certificate
from domain.datasets import Split
from domain.errors import WorkloadError
from domain.figures import figures_of
from domain.validities import Validity, examine
from domain.workloads import TierName
from infra.aliasing import Moved, judged_rows
from infra.challenging import Challenged
from infra.db.session import transaction
from infra.db.store import audits, bundles, promotions, runs
from infra.db.store.bundles import StoredBundle
from infra.db.store.promotions import Entry
from infra.serving import present_of
from infra.settings import Settings
from infra.terminal import print_json
from infra.workloads import find_workload, load_workload

Json = dict[str, Any]
SHORT = 12
HISTORY = 10


def list_bundles(console: Console, workload: str | None, *, as_json: bool) -> None:
    """The newest bundles first, a line each; quality and cost are those of the test split."""
    with transaction() as db:
        found = bundles.load_bundles(db, workload=workload)
    listed = [{**_facts(stored), **_figures(_summary(stored))} for stored in found]
    if as_json:
        print_json(console, json.dumps(listed))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("bundle", "workload", "made", "alias", "threshold", "quality", "USD / 1,000 rows", "run"):
        table.add_column(heading)
    for stored, facts in zip(found, listed, strict=True):
        table.add_row(
            stored.bundle.hash[:SHORT],
            stored.bundle.workload,
            _when(stored.created_at),
            ", ".join(stored.aliases),
            _threshold(stored.bundle),
            "-" if facts["quality"] is None else f"{facts['quality']:.3f}",
            "-" if facts["usd_per_1000"] is None else f"{facts['usd_per_1000']:.4f}",
            (stored.run_id or "imported")[:8],
        )
    console.print(table if found else "no bundles yet\nnext   headrace run support-triage")


def workload_of(reference: str) -> str:
    """The name of the workload that a bundle belongs to; raises NotFound."""
    with transaction() as db:
        return bundles.find_bundle(db, reference).bundle.workload


def show_bundle(console: Console, reference: str, folder: str, settings: Settings, *, as_json: bool) -> None:
    """One bundle: its certificate and whether it still holds, its tiers, its lineage, its promotions."""
    with transaction() as db:
        stored = bundles.find_bundle(db, reference)
        history = promotions.load_entries(db, stored.bundle.workload)
    history = [entry for entry in history if stored.bundle.hash in (entry.move.to_hash, entry.move.from_hash)]
    summary, validity = _summary(stored), _validity(stored.bundle, folder, settings)
    if as_json:
        facts = {
            **_facts(stored),
            **_figures(summary),
            **_state(stored.bundle, validity),
            "history": [_entry(entry) for entry in history],
            "body": stored.bundle.model_dump(mode="json"),
        }
        print_json(console, json.dumps(facts))
        return
    _print_promise(console, stored, validity)
    _print_parts(console, stored, summary)
    for entry in history[-HISTORY:]:
        console.print(f"  {_when(entry.at)}  {escape(_said(entry))}")


def _print_promise(console: Console, stored: StoredBundle, validity: Validity | None) -> None:
    bundle = stored.bundle
    aliases = f"  {', '.join(stored.aliases)}" if stored.aliases else ""
    console.print(f"[bold]bundle {bundle.hash[:SHORT]}[/]  {bundle.workload}{aliases}")
    console.print(f"  hash         {bundle.hash}")
    console.print(f"  {escape(summaries.verdict_line(bundle.certificate))}")
    state = _state(bundle, validity)
    mark = {"valid": "[green]✓[/]", "void": "[red]✗[/]"}.get(state["state"], "·")
    console.print(f"  state        {mark} {state['state']}")
    for reason in state["void"]:
        console.print(f"    because    {escape(reason)}")
    for part in state["unknown"]:
        console.print(f"    not known  {escape(part)}")


def _print_parts(console: Console, stored: StoredBundle, summary: Json) -> None:
    bundle = stored.bundle
    if "test" in summary:
        for line in summaries.table(summary):
            console.print(f"  {line[0]:<12} quality {line[1]} {escape(line[2])}  n {line[3]}  {line[5]} per 1,000 rows")
    for name in TierName:
        tier, prompt, served = bundle[name].tier, bundle[name].prompt, bundle[name].served
        engine = f"  engine {served.engine_version}" if served and served.engine_version else ""
        console.print(
            f"  {name.value:<12} {escape(tier.model)} @ {(tier.revision or 'no revision')[:SHORT]}{escape(engine)}  "
            f"prompt {prompt.hash[:SHORT]} with {len(prompt.demos)} demos  "
            f"${tier.usd_per_million.input:g} in, ${tier.usd_per_million.output:g} out per million"
        )
    lineage = bundle.lineage
    console.print(f"  signal       {bundle.routing.signal} of {escape(bundle.decisive)}, re-asks {bundle.max_reasks}")
    console.print(
        f"  lineage      run {(stored.run_id or 'none: imported')[:SHORT]}  {_when(stored.created_at)}  workload "
        f"{lineage.workload_hash[:SHORT]}  dataset {lineage.dataset_version[:SHORT]}  "
        f"{lineage.calibration_rows} calibration rows"
    )


def show_moved(console: Console, moved: Moved, *, as_json: bool) -> None:
    """Who is champion now, who was before, and what the gate said."""
    reasons = list(moved.verdict.reasons) if moved.verdict else []
    if as_json:
        facts = {"workload": moved.bundle.workload, "champion": moved.bundle.hash, "before": moved.before}
        print_json(console, json.dumps({**facts, "act": moved.act and moved.act.value, "gate": reasons}))
        return
    if moved.act is None:
        console.print(f"{moved.bundle.hash[:SHORT]} is champion of {moved.bundle.workload} already")
        return
    before = f", before {moved.before[:SHORT]}" if moved.before else ""
    console.print(f"{moved.act.value}: {moved.bundle.hash[:SHORT]} is champion of {moved.bundle.workload}{before}")
    for reason in reasons:
        console.print(f"  in spite of  {escape(reason)}")


def show_challenger(console: Console, made: Challenged, *, as_json: bool) -> None:
    """Which bundle is challenger now, what it was made of, what it promises, and how it becomes champion."""
    bundle, short = made.bundle, made.bundle.hash[:SHORT]
    if as_json:
        facts = {"workload": bundle.workload, "challenger": bundle.hash, "of": made.of, "new": made.new}
        certificate = bundle.certificate.model_dump(mode="json", exclude={"grid"})
        print_json(console, json.dumps({**facts, "threshold": bundle.threshold, "certificate": certificate}))
        return
    already = "" if made.new else " already"
    console.print(f"{short} is challenger of {bundle.workload}{already}: {made.of[:SHORT]} at {_threshold(bundle)}")
    console.print(f"  {escape(summaries.verdict_line(bundle.certificate))}")
    console.print(f"  through the gate: headrace promote {short}", markup=False)


def _validity(bundle: Bundle, folder: str, settings: Settings) -> Validity | None:
    """Whether the bundle still fits the deployment; None when its workload's folder is not found."""
    try:
        loaded = load_workload(find_workload(folder or bundle.workload, settings.workloads))
    except WorkloadError:
        if folder:
            raise
        return None
    with transaction() as db:
        alarms = audits.alarms(db, bundle.hash)
    return examine(bundle, present_of(loaded, settings), alarms)


def _state(bundle: Bundle, validity: Validity | None) -> Json:
    if validity is None:
        missing = f"the folder of the workload {bundle.workload!r} is not found: give it with --workload"
        return {"state": "not compared", "void": [], "unknown": [missing]}
    certified = isinstance(bundle.certificate, Certificate)
    state = "not certified" if not certified else "void" if validity.void else "valid"
    return {"state": state, "void": list(validity.reasons), "unknown": list(validity.unknown)}


def _facts(stored: StoredBundle) -> Json:
    bundle = stored.bundle
    return {
        "hash": bundle.hash,
        "workload": bundle.workload,
        "made": stored.created_at.isoformat(),
        "aliases": list(stored.aliases),
        "certified": bundle.certificate.certified,
        "threshold": bundle.threshold,
        "run": stored.run_id,
    }


def _figures(summary: Json) -> Json:
    test = summary.get("test")
    if test is None:
        return {"quality": None, "usd_per_1000": None}
    return {"quality": test["cascade"]["mean"], "usd_per_1000": 1000 * test["cascade_usd"]}


def _summary(stored: StoredBundle) -> Json:
    """The test figures as the run that made a bundle summed them up; of another bundle's run they are made again."""
    if stored.run_id is None:
        return {}
    with transaction() as db:
        run = runs.load_run(db, stored.run_id)
    if run.bundle_hash == stored.bundle.hash:
        return run.summary
    return {"test": asdict(figures_of(judged_rows(stored, Split.TEST), stored.bundle.threshold))}


def _entry(entry: Entry) -> Json:
    move = entry.move
    return {
        "at": entry.at.isoformat(),
        "who": entry.who,
        "act": move.act.value,
        "from": move.from_hash,
        "to": move.to_hash,
        "reason": entry.reason,
        "gate": entry.gate,
        "run": entry.run_id,
    }


def _said(entry: Entry) -> str:
    by = f" in run {entry.run_id[:8]}" if entry.run_id else ""
    refused = "; ".join(entry.gate["reasons"]) if entry.gate and entry.gate["reasons"] else ""
    words = f"{entry.move.act.value} {entry.move.to_hash[:SHORT]} by {entry.who}{by}"
    if entry.move.from_hash and entry.move.from_hash != entry.move.to_hash:
        words += f", before {entry.move.from_hash[:SHORT]}"
    return words + (f": {entry.reason}" if entry.reason else "") + (f" (gate: {refused})" if refused else "")


def _threshold(bundle: Bundle) -> str:
    return "not certified" if bundle.threshold is None else f"{bundle.threshold:.3f}"


def _when(at: Any) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
