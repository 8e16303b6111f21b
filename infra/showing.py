"""Runs as people read them: lists, summaries, quarantine, the doctor's findings."""

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from domain import summaries
from domain.ledgers import Reconciliation, Stage
from domain.workloads import TierName
from infra import showing_audits, stack, terminal
from infra.db.session import transaction
from infra.db.store import answers, calls, runs
from infra.db.store.runs import RunRecord
from infra.doctor import Diagnosis, diagnose
from infra.reporting import verdict_of
from infra.settings import Settings


def list_runs(console: Console, *, limit: int, as_json: bool) -> None:
    """The newest runs, a line each."""
    with transaction() as db:
        found = runs.load_runs(db, limit=limit)
    if as_json:
        terminal.print_json(console, json.dumps([_facts(run) for run in found]))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "kind", "workload", "state", "dataset", "bundle", "started", "by"):
        table.add_column(heading)
    for run in found:
        dataset, bundle = (run.dataset_version or "")[:8], (run.bundle_hash or "")[:8]
        started = run.started_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(run.id[:8], run.kind, run.workload, run.state, dataset, bundle, started, run.started_by or "")
    console.print(table if found else "no runs yet\nnext   headrace run support-triage")


def _facts(run: RunRecord) -> dict[str, Any]:
    return {
        "id": run.id,
        "kind": run.kind,
        "workload": run.workload,
        "state": run.state,
        "dataset_version": run.dataset_version,
        "bundle_hash": run.bundle_hash,
        "started_by": run.started_by,
        "started_at": run.started_at.isoformat(),
        "ended_at": run.ended_at.isoformat() if run.ended_at else None,
        "summary": run.summary,
        "links": run.links,
    }


def show_run(console: Console, run_id: str, *, quarantined: bool, as_json: bool) -> None:
    """One run: its facts, or its quarantine."""
    run = _find(run_id)
    if not quarantined:
        if as_json:
            terminal.print_json(console, json.dumps(_facts(run)))
        else:
            summary(console, run.id)
        return
    with transaction() as db:
        rows = answers.load_quarantine(db, run.id)
    if as_json:
        listed = [{"place": str(q.place), "stage": q.stage, "reason": q.reason} for q in rows]
        terminal.print_json(console, json.dumps(listed))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("file", "line", "field", "stage", "reason"):
        table.add_column(heading, overflow="fold")
    for q in rows:
        line = "" if q.place.line is None else str(q.place.line)
        table.add_row(escape(q.place.file), line, escape(q.place.field or ""), q.stage, escape(q.reason))
    console.print(table)
    console.print(f"{len(rows)} rows in quarantine")


def _find(run_id: str) -> RunRecord:
    with transaction() as db:
        if run_id == "last" and (newest := runs.load_runs(db, limit=1)):
            return newest[0]
        return runs.load_run(db, run_id)


def summary(console: Console, run_id: str) -> None:
    """What a run came to: rows, calls, quality, cost, verdict, links."""
    with transaction() as db:
        run = runs.load_run(db, run_id)
        rows = runs.conservation(db, run.id)
        spent = calls.spending(db, run.id)
    paid, cached = sum(s.calls for s in spent), sum(s.cached for s in spent)
    tokens = sum(s.usage.prompt + s.usage.completion for s in spent)
    by = f"  started by {run.started_by}" if run.started_by else ""
    console.print(f"\n[bold]{run.kind} {run.workload}[/]  {run.state}  run {run.id[:8]}{by}")
    console.print(f"  rows      {rows}")
    unchanged = "  (unchanged work: nothing was sent)" if cached and not paid else ""
    console.print(
        f"  calls     {paid:,} to the models, {cached:,} answered by the ledger{unchanged}, "
        f"{tokens:,} tokens, ${sum(s.usd for s in spent):.4f}"
    )
    if signals := [s for s in spent if s.stage == Stage.SIGNAL]:
        asked, usd = sum(s.calls for s in signals), sum(s.usd for s in signals)
        console.print(f"  signals   {asked:,} of these calls, ${usd:.4f} of it")
    for tier in TierName:
        if compiled := run.summary.get(f"compile_{tier.value}"):
            console.print(f"  {tier.value:<8}  {escape(compiled)}")
    if "test" in run.summary:
        _tuning(console, run)
    if "answered" in run.summary:
        _routing(console, run)
    if "audit" in run.summary:
        showing_audits.show(console, run.summary["audit"])
    for name, url in run.links.items():
        console.print(f"  {name:<15} {url}", soft_wrap=True)


def _tuning(console: Console, run: RunRecord) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("  test split", "quality", "95 % interval", "n", "tokens / 1,000 rows", "USD / 1,000 rows"):
        table.add_column(heading)
    for line in summaries.table(run.summary):
        table.add_row(f"  {line[0]}", *line[1:])
    console.print(table)
    test = run.summary["test"]
    auroc = "one class only" if test["auroc"] is None else f"{test['auroc']:.3f}"
    console.print(
        f"  valid {test['valid_rate']:.1%}   escalated {test['escalation_rate']:.1%}   AUROC of the confidence {auroc}"
    )
    _signals(console, run.summary)
    console.print(f"  {escape(summaries.verdict_line(verdict_of(run.summary)))}")
    if promise := run.summary["verdict"].get("promise"):
        console.print(f"  [dim]{escape(promise)}[/]")
    if "promoted" in run.summary:
        why = "; ".join(run.summary["gate"])
        console.print(
            f"  {'champion' if run.summary['promoted'] else f'challenger only: {escape(why)}'}"
            f"   bundle {(run.bundle_hash or '')[:12]}"
        )


def _signals(console: Console, summary: dict[str, Any]) -> None:
    """How well each signal tells right from wrong; of declared ones what a cascade by them was certified to cost."""
    if not summary.get("signals"):
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("  signal", "AUROC", "AURC", "USD / 1,000 rows of its own", "certified cascade"):
        table.add_column(heading)
    for name, told in sorted(summary["signals"].items()):
        verdict = "" if "certified" not in told else "not certified"
        if told.get("certified"):
            verdict = f"${1000 * told['usd']:.4f}" + ("  chosen" if name == summary["verdict"]["signal"] else "")
        figures = ("-" if told[figure] is None else f"{told[figure]:.3f}" for figure in ("auroc", "aurc"))
        table.add_row(f"  {name}", *figures, f"${1000 * told['usd_per_row']:.4f}", verdict)
    console.print(table)


def _routing(console: Console, run: RunRecord) -> None:
    figures = run.summary
    if void := figures.get("void"):
        console.print(f"  [yellow]void[/]      {escape(summaries.void_line(void, run.workload))}")
    line = f"  answered {figures['answered']}   kept on cheap {figures['kept_on_cheap']}"
    line += f"   escalated {figures['escalated']}"
    line += f"   ${figures['usd_per_1000']:.4f} per 1,000 rows"
    if "saving" in figures:
        line += f"   all-strong ${figures['usd_per_1000_all_strong']:.4f}, saved {figures['saving']:.1%}"
    console.print(line)
    if "valid_rate" in figures:
        straight = f"   straight to strong {figures['straight_to_strong']}" if figures["straight_to_strong"] else ""
        console.print(
            f"  valid {figures['valid_rate']:.1%}   escalated {figures['escalation_rate']:.1%}{straight}"
            + "".join(
                f"   {tier} p50 {s['p50']:.2f} s, p95 {s['p95']:.2f} s" for tier, s in figures["latency_s"].items()
            )
        )


def check(console: Console, settings: Settings, run_id: str | None, *, as_json: bool) -> bool:
    """The services, then the two equations for a run or the newest five; False when something is wrong."""
    states = stack.status(settings)
    with transaction() as db:
        chosen = [runs.load_run(db, run_id)] if run_id else runs.load_runs(db, limit=5)
        found = [diagnose(db, run) for run in chosen]
    well = all(d.healthy for d in found) and all(s.phase == "healthy" for s in states)
    if as_json:
        terminal.print_json(console, json.dumps({"healthy": well, "runs": [_finding(d) for d in found]}))
        return well
    console.print(terminal.status_table(states))
    for d in found:
        mark = "[green]✓[/]" if d.healthy else "[red]✗[/]"
        console.print(f"\n{mark} [bold]{d.run.kind} {d.run.workload}[/]  {d.run.state}  run {d.run.id[:8]}")
        console.print(f"    rows    {d.rows}")
        for tokens in d.tokens:
            console.print(f"    tokens  {tokens.server}  {_said(tokens)}")
        if d.run.state == "lost":
            console.print(
                f"    fix     its process died: headrace resume {d.run.id[:8]}, or headrace cancel {d.run.id[:8]}"
            )
    if not found:
        console.print("\nno runs yet")
    return well


def _finding(d: Diagnosis) -> dict[str, Any]:
    return {
        "run": d.run.id,
        "state": d.run.state,
        "healthy": d.healthy,
        "rows": str(d.rows),
        "tokens": [{"server": t.server, "reconciles": t.holds, "said": _said(t)} for t in d.tokens],
    }


def _said(tokens: Reconciliation) -> str:
    ledger = f"ledger {tokens.ledger_prompt:,} + {tokens.ledger_completion:,}"
    if tokens.holds is None and not tokens.server.startswith("http"):
        return f"{ledger}; an engine for batches keeps no counters of its own"
    if tokens.holds is None:
        return f"{ledger}; the server's counters are not known for the whole run (it restarted, or the run did not end)"
    sign = "=" if tokens.holds else "≠"
    return f"{ledger} {sign} server {tokens.server_prompt:,} + {tokens.server_completion:,} (prompt + completion)"


def closing_words(console: Console, workload: str) -> None:
    """What the figures mean, and what to do next."""
    console.print(
        "\nThe demo models (135M and 270M parameters) show the plumbing, not the quality to expect. Your own\n"
        "vLLM or any OpenAI-compatible server takes two lines a tier in workload.yaml:\n"
        "    model: <served name>\n"
        "    base_urls: \\[http://your-server:8000/v1]"
    )
    console.print(
        "\n[bold]next[/]   headrace show last --quarantined   ·   headrace doctor   ·   "
        f"edit the workload, headrace run {workload}   ·   headrace down"
    )
