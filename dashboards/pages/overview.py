"""Overview: each workload's verdict, its last runs, and what changed between the last two."""

import shlex
from typing import Any, cast
from urllib.parse import urlencode

import altair as alt
import streamlit as st

from dashboards import queries, verdicts
from dashboards.parts import chart, download, empty, heading, plotted, table, workload
from dashboards.queries import Row
from domain.canonical import digest
from domain.prompts import PromptVersion

VERDICTS = "SELECT * FROM verdicts ORDER BY workload"
RUNS = """
SELECT run_id, left(run_id, 8) AS short, kind, state, started_at, seconds, quarantined,
       left(dataset_version, 8) AS data, left(bundle_hash, 8) AS bundle, links, summary->'test' AS test,
       summary->'verdict'->>'certified' AS certified
FROM (SELECT * FROM runs WHERE workload = :workload ORDER BY started_at DESC LIMIT 30) AS last
JOIN quarantine_counts USING (run_id)
ORDER BY started_at DESC
"""
MAKINGS = """
SELECT * FROM makings WHERE workload = :workload AND state = 'completed' AND kind = (
    SELECT kind FROM runs WHERE workload = :workload AND state = 'completed' AND kind IN ('optimize', 'route')
    ORDER BY started_at DESC LIMIT 1
) ORDER BY started_at DESC LIMIT 2
"""
PARTS = {
    "dataset_version": "Data version",
    "records": "Rows of the data",
    "instructions": "Instructions",
    "cheap_prompt": "Prompt, cheap",
    "strong_prompt": "Prompt, strong",
    "json_schema": "Output schema",
    "signal": "Signal",
    "threshold": "Threshold",
    "target": "Target",
    "metric": "Metric",
    "optimizer": "Optimiser",
    "cheap_model": "Model, cheap",
    "cheap_revision": "Revision, cheap",
    "cheap_prices": "Prices, cheap",
    "cheap_engine": "Engine, cheap",
    "strong_model": "Model, strong",
    "strong_revision": "Revision, strong",
    "strong_prices": "Prices, strong",
    "strong_engine": "Engine, strong",
    "code": "Code that decides",
    "bundle_hash": "Bundle",
}
"""What may differ between two runs, and what people call it."""
LINKED = {"prefect": "Prefect", "mlflow": "MLflow", "phoenix": "Phoenix"}


def show() -> None:
    """The page."""
    heading("Overview", "Does each workload keep its promise, and at what cost?")
    found = queries.rows(VERDICTS)
    if not found:
        empty("There is no run yet.", "headrace run support-triage")
        return
    lines = [verdicts.line(row) for row in found]
    columns = {key: key for key in lines[0] if key != "address"}
    table(lines, columns, name="Verdict of each workload", links={"Workload": "address"})
    download([verdicts.numbers(row) for row in found], "verdicts")
    name = workload()
    if name is None:
        return
    chosen = next(row for row in found if row["workload"] == name)
    verdicts.show(chosen)
    _addresses(chosen)
    _runs(name)
    _changes(name)


def _addresses(row: Row) -> None:
    name = {"workload": row["workload"]}
    found = [
        {"what": what, "which": run[:8], "address": f"/{page}?" + urlencode({"run": run, **name})}
        for what, page, run in (
            ("The run that made the champion", "run", row["made_by"]),
            ("Its router: frontier, threshold, signals", "router", row["made_by"]),
            ("The run that judged it last", "run", row["judged_by"]),
            ("The batch that it routed last", "run", row["batch"]),
        )
        if run
    ]
    table(found, {"what": "See", "which": "Run"}, name="Where to look further", links={"which": "address"})


def _runs(name: str) -> None:
    st.header("Last runs", anchor=False)
    found = queries.rows(RUNS, workload=name)
    lines = [
        {
            **{key: row[key] for key in ("short", "kind", "state", "started_at", "seconds", "quarantined", "data")},
            "bundle": row["bundle"],
            "verdict": {"true": "certified", "false": "not certified"}.get(row["certified"] or ""),
            "address": "/run?" + urlencode({"run": row["run_id"], "workload": name}),
            **{key: says if key in row["links"] else None for key, says in LINKED.items()},
            **{f"{key}_address": row["links"].get(key) for key in LINKED},
        }
        for row in found
    ]
    columns = {
        "short": "Run",
        "kind": "Kind",
        "state": "State",
        "verdict": "Verdict",
        "started_at": "Started (UTC)",
        "seconds": "Seconds",
        "quarantined": "Quarantined rows",
        "data": "Data",
        "bundle": "Bundle",
        **dict(LINKED),
    }
    links = {"short": "address", **{key: f"{key}_address" for key in LINKED}}
    _course(found)
    table(lines, columns, name="Last runs", links=links)
    download([{**line, "run": row["run_id"]} for line, row in zip(lines, found, strict=True)], "last-runs")


def _course(found: list[Row]) -> None:
    """Quality of the judged ones among these runs, oldest first."""
    points = [
        {"run": row["short"], "at": row["started_at"], "tier": tier, **row["test"][tier]}
        for row in reversed(found)
        for tier in ("cascade", "strong")
        if row["test"] and row["test"][tier]["n"]
    ]
    if not points:
        return
    base = alt.Chart(plotted(points)).encode(
        x=alt.X("run:N", sort=None, title="Run, oldest first"), xOffset=alt.XOffset("tier:N")
    )
    scale = alt.Scale(zero=False, nice=True)
    bars = base.mark_rule(strokeWidth=2).encode(
        y=alt.Y("low:Q", title="Quality (share of 1)", scale=scale), y2="high:Q", color="tier:N"
    )
    dots = base.mark_point(filled=True, size=70).encode(
        y=alt.Y("mean:Q", scale=scale),
        color=alt.Color("tier:N", title="Answered by"),
        shape=alt.Shape("tier:N"),
        tooltip=["run:N", "tier:N", alt.Tooltip("mean:Q", format=".3f"), alt.Tooltip("n:Q", title="test rows")],
    )
    last, sizes = points[-2], [point["n"] for point in points]
    few, many = min(sizes), max(sizes)
    each = f"n = {few:,}" if few == many else f"n = {few:,} to {many:,}"
    chart(
        bars + dots,
        f"Quality of the cascade and of the strong tier alone on each run's test rows ({each} a run), with 95 % "
        f"intervals; the newest run's cascade: {last['mean']:.3f}, n = {last['n']:,}.",
        height=220,
    )
    download(points, "quality-of-runs")


def _changes(name: str) -> None:
    st.header("What changed between the last two runs", anchor=False)
    found = queries.rows(MAKINGS, workload=name)
    if len(found) < 2:
        empty("Two completed runs of one kind are needed to compare.", f"headrace run {shlex.quote(name)}")
        return
    after, before = found
    st.caption(f"{after['kind']} {before['run_id'][:8]}, then {after['run_id'][:8]}; both completed.")
    told = changes(before, after)
    if not told:
        st.text("Nothing: data, prompts, schema, signal, threshold, models, engines and code are the same.")
        return
    columns = {"part": "Part", "before": before["run_id"][:8], "after": after["run_id"][:8]}
    table(told, columns, name="What changed between the last two runs")
    download(told, "what-changed")


def changes(before: Row, after: Row) -> list[Row]:
    """The parts that are not the same in two runs, each as it was and as it is."""
    pairs = ((says, _shown(key, before[key]), _shown(key, after[key])) for key, says in PARTS.items())
    return [{"part": says, "before": one, "after": two} for says, one, two in pairs if one != two]


def _shown(key: str, value: Any) -> Any:
    if value is None:
        return None
    if key.endswith("_prompt"):
        return PromptVersion.model_validate(value).hash[:12]
    if key in ("instructions", "json_schema"):
        return digest(value)[:12]
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in sorted(cast(dict[str, Any], value).items()))
    return (
        value[:12] if key in ("dataset_version", "bundle_hash", "code", "cheap_revision", "strong_revision") else value
    )
