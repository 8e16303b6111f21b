"""Audits and labels as people read them."""

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from domain.audit_verdicts import SIGHTS, Report, lines, sights
from infra.db.session import transaction
from infra.db.store import audits, labels
from infra.db.store.audits import Audit
from infra.labels import Imported
from infra.terminal import print_json

Json = dict[str, Any]
FAULTS_SHOWN = 20


def show(console: Console, report: Json) -> None:
    """A report, the verdict first."""
    found = Report.model_validate(report)
    colour = "red" if found.alarms else "green" if found.verdict == "quiet" else "yellow"
    verdict, *rest = lines(found)
    console.print(f"  [{colour}]{escape(verdict)}[/]")
    for line in rest:
        console.print(f"    {escape(line)}")


def show_audit(console: Console, run_id: str, *, as_json: bool) -> bool:
    """A concluded audit with what its detectors can see; True when nothing is held against the certificate: neither
    an alarm nor that it was void before."""
    with transaction() as db:
        audit = audits.load_audit(db, run_id)
    if as_json:
        print_json(console, json.dumps({**_facts(audit), "sights": {name: asdict(s) for name, s in SIGHTS.items()}}))
    else:
        show(console, audit.report.model_dump(mode="json"))
        for line in sights():
            console.print(f"    [dim]{escape(line)}[/]")
    return not audit.report.alarms and audit.report.verdict != "void"


def list_audits(console: Console, workload: str, *, as_json: bool) -> None:
    """A workload's audits in their order, a line each."""
    with transaction() as db:
        found = audits.load_audits(db, workload=workload)
    if as_json:
        print_json(console, json.dumps([_facts(audit) for audit in found]))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("audit", "at", "bundle", "verdict", "loss", "95 %", "rows", "log e", "detector", "USD"):
        table.add_column(heading)
    for audit in found:
        report = audit.report
        low, high = report.gap_interval or (0.0, 0.0)
        table.add_row(
            audit.run_id[:8],
            audit.at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            audit.bundle_hash[:12],
            report.verdict,
            "-" if report.gap is None else f"{report.gap:.4f}",
            f"\\[{low:.4f}, {high:.4f}]" if report.gap_interval else "-",
            str(report.gap_rows),
            f"{report.log_e:.2f}",
            f"{report.detector:,.1f}",
            f"{audit.usd:.4f}",
        )
    console.print(table if found else f"no audits yet\nnext   headrace audit {workload}")


def _facts(audit: Audit) -> Json:
    return {
        "run": audit.run_id,
        "at": audit.at.isoformat(),
        "workload": audit.workload,
        "bundle": audit.bundle_hash,
        "usd": audit.usd,
        **audit.report.model_dump(mode="json"),
    }


def show_imported(console: Console, found: Imported, *, as_json: bool) -> None:
    """What became of a file of labels; every fault with its place and what to do."""
    if as_json:
        faults = [{"place": str(place), "reason": reason, "fix": fix} for place, reason, fix in found.faults]
        print_json(console, json.dumps({**asdict(found), "faults": faults}))
        return
    console.print(
        f"{found.new:,} labels imported, {found.known:,} known already, {found.replaced:,} replaced; "
        f"{found.bad:,} bad rows, {found.conflicts:,} rows against earlier labels"
    )
    for place, reason, fix in found.faults[:FAULTS_SHOWN]:
        console.print(f"  {escape(str(place))}: {escape(reason)}\n    fix     {escape(fix)}")
    if len(found.faults) > FAULTS_SHOWN:
        console.print(f"  … and {len(found.faults) - FAULTS_SHOWN:,} more, with --json")


def list_labels(console: Console, *, as_json: bool) -> None:
    """How many labels there are of what, and how many audited rows wait for one."""
    with transaction() as db:
        found = labels.count_labels(db)
        waiting = labels.count_unlabelled(db)
    if as_json:
        print_json(console, json.dumps({"labels": [asdict(count) for count in found], "waiting": waiting}))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("workload", "field", "labels", "files"):
        table.add_column(heading)
    for count in found:
        table.add_row(count.workload, count.field, f"{count.labels:,}", str(count.sources))
    console.print(table if found else "no labels yet\nnext   headrace labels import WORKLOAD FILE")
    for workload, rows in waiting.items():
        console.print(f"{escape(workload)}: {rows:,} audited rows wait for a label")
