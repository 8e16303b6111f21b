"""What a run shows of itself in Prefect, and where its pages are elsewhere."""

from typing import Any, cast
from urllib.parse import quote

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from domain import audit_verdicts, summaries
from domain.audit_verdicts import Report
from domain.certificates import Certificate, NotCertified
from domain.ledgers import Conservation
from domain.quarantines import by_reason
from domain.verdicts import CurvePoint
from infra import progress_artifact, replay_process, tracing, tracking
from infra.db.store.answers import StoredQuarantine
from infra.db.store.calls import Spending
from infra.db.store.runs import RunRecord
from infra.settings import load_settings
from infra.workloads import LoadedWorkload

Json = dict[str, Any]
SHOWN = 2000
"""Characters of a value."""
MOST_REASONS = 200


def params(loaded: LoadedWorkload) -> dict[str, str | float]:
    """A workload's settings as flat parameters."""
    w = loaded.workload
    return {
        "workload_hash": loaded.hash,
        "cheap.model": w.tiers.cheap.model,
        "strong.model": w.tiers.strong.model,
        "optimizer": w.optimizer.name.value,
        "optimizer.seed": w.optimizer.seed,
        "metric": w.metric,
        "target.kind": w.target.kind,
        "target.eps": w.target.eps,
        "target.delta": w.target.delta,
        "max_reasks": w.max_reasks,
    }


def links(run_id: str, *, tracking_id: str, workload: str) -> dict[str, str]:
    """The run's pages in Prefect, MLflow, Phoenix and, where there is one, the dashboard."""
    settings = load_settings()
    api = (settings.prefect_api_url or "").rstrip("/").removesuffix("/api")
    dashboard = (settings.dashboard_url or "").rstrip("/")
    return {
        **({"dashboard": f"{dashboard}/run?run={quote(run_id)}&workload={quote(workload)}"} if dashboard else {}),
        "prefect": f"{api}/runs/flow-run/{quote(run_id)}",
        "mlflow": tracking.run_url(tracking_id),
        "phoenix": tracing.project_url(workload),
    }


def summarise(run: RunRecord, *, rows: Conservation, spent: list[Spending], quarantine: list[StoredQuarantine]) -> None:
    """Leave a markdown summary, the reasons of the quarantine and links in Prefect; progress says that it is over."""
    create_markdown_artifact(
        key=f"summary-{run.workload}",
        markdown=markdown(run, rows=rows, spent=spent),
        description=f"Summary of {run.kind} {run.workload}",
    )
    reasons = by_reason((q.stage, str(q.place), q.reason) for q in quarantine)
    create_table_artifact(
        key=f"quarantine-{run.workload}",
        table=[
            {"stage": r.stage, "reason": r.kind, "rows": r.rows, "examples": "; ".join(r.examples)[:SHOWN]}
            for r in reasons[:MOST_REASONS]
        ],
        description=f"{len(quarantine):,} rows in quarantine, by stage and reason",
    )
    for name, url in run.links.items():
        create_link_artifact(key=f"{name}-{run.workload}", link=url, description=f"{name} of this run")
    progress_artifact.conclude(run.id, f"{run.state}: {rows}")


def curve(workload: str, points: list[CurvePoint], *, threshold: float | None) -> None:
    """Leave the tuned curve as a table in Prefect: what each threshold does on the calibration rows."""
    create_table_artifact(
        key=f"curve-{workload}",
        table=[
            {
                "threshold": f"{point.threshold:.4f}" + (" (chosen)" if point.threshold == threshold else ""),
                "escalated": f"{1 - point.kept:.1%}",
                "quality": f"{point.quality:.4f}",
                "loss of quality": f"{point.gap:+.4f}",
                "USD per 1,000 rows": f"{1000 * point.cost:.4f}",
                "p-value": f"{point.p_value:.3g}",
                "certified": "yes" if point.passed else "no",
            }
            for point in points
        ],
        description="Thresholds of the cascade on the calibration rows; the cheapest certified one is chosen",
    )


def audit(workload: str, lines: list[str]) -> None:
    """Leave an audit's report in Prefect, the newest under the same key as those before."""
    listed = "\n".join(f"- {line}" for line in (*lines, *audit_verdicts.sights()))
    create_markdown_artifact(key=f"audit-{workload}", markdown=f"# audit of {workload}\n\n{listed}\n")


def replay(run_id: str, workload: str, found: Json) -> None:
    """Leave what came of a replay in Prefect: the verdict, both values where they part, and what was compared."""
    first = found["first"]
    lines = [f"# replay of {found['kind']} {workload}", "", f"run `{run_id}`: {replay_process.line(found)}", ""]
    if first is not None:
        lines += [f"**{first['kind']}**: {first['what']}", "", f"cause: {first['cause']}", ""]
        for name in ("recorded", "replayed"):
            lines += [name, "", "````", first[name][:SHOWN].replace("````", "` ` ` `"), "````", ""]
    lines += ["| decisions | compared | diverging |", "|---|---|---|"]
    lines += [f"| {kind} | {n:,} | {found['diverging'].get(kind, 0):,} |" for kind, n in found["compared"].items()]
    lines += ["", *(f"- {note}" for note in found["notes"])]
    if found["unproven"]:
        lines += [f"- {found['unproven']:,} refused rows left no answer to go by"]
    create_markdown_artifact(key=f"replay-{workload}", markdown="\n".join(lines), description="What a replay found")


def markdown(run: RunRecord, *, rows: Conservation, spent: list[Spending]) -> str:
    """The summary of a run for people."""
    calls, cached = sum(s.calls for s in spent), sum(s.cached for s in spent)
    usd = sum(s.usd for s in spent)
    lines = [
        f"# {run.kind} {run.workload}",
        "",
        f"- rows: {rows}",
        f"- model calls: {calls:,} paid, {cached:,} answered by the ledger, ${usd:.4f}",
        *([f"- dataset version `{run.dataset_version[:12]}`"] if run.dataset_version else []),
        *([f"- bundle `{run.bundle_hash[:12]}`"] if run.bundle_hash else []),
        "",
    ]
    if "test" in run.summary:
        lines += [
            "| tier | quality | 95 % interval | n | tokens per 1,000 rows | USD per 1,000 rows |",
            "|---|---|---|---|---|---|",
        ]
        lines += ["| " + " | ".join(line) + " |" for line in summaries.table(run.summary)]
        lines += ["", summaries.verdict_line(verdict_of(run.summary)), ""]
        lines += [f"> {promise}", ""] if (promise := run.summary["verdict"].get("promise")) else []
    if run.kind == "route" and (void := run.summary.get("void")):
        lines += [summaries.void_line(void, run.workload), ""]
    if said := run.summary.get("audit"):
        lines += [f"- {line}" for line in audit_verdicts.lines(Report.model_validate(said))]
    lines += [f"- [{name}]({url})" for name, url in run.links.items()]
    return "\n".join(lines)


def verdict_of(summary: Json) -> Certificate | NotCertified:
    """The verdict that a run's summary holds."""
    verdict = cast(Json, summary["verdict"])
    if verdict["certified"]:
        return Certificate.model_validate({**verdict, "grid": ()})
    return NotCertified.model_validate(verdict)
