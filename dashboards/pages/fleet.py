"""Fleet and cost: what the workers did, what waits, and where the money went."""

import shlex
from collections.abc import Callable
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

import altair as alt
import streamlit as st

from dashboards import parts, queries
from dashboards.calls import LEDGER, added_up, summed, working_s
from dashboards.parts import chosen, figure, heading, percent, table, usd
from dashboards.periods import period, seconds
from dashboards.queries import Row

NAMES = "SELECT DISTINCT workload FROM runs ORDER BY workload"
RUNS = """
SELECT run_id, kind, state, started_at FROM runs
WHERE (:workload = '' OR workload = :workload) ORDER BY started_at DESC LIMIT 100
"""
QUEUE = """
SELECT
    run_id, left(run_id, 8) AS run, workload, kind, records, records - outcomes - quarantined AS pending, stage, done,
    total, unit, updated_at, CASE WHEN held THEN 'a process' ELSE 'nobody: lost' END AS holder, held,
    '/run?run=' || run_id AS to_run
FROM queue ORDER BY started_at
"""
LEASES = """
SELECT
    left(run_id, 8) AS run, workload, kind, holder, token, left(work, 12) AS work,
    extract(EPOCH FROM expires_at - clock_timestamp())::double precision AS left_s
FROM leases ORDER BY expires_at
"""
WAITING = """
SELECT
    (SELECT count(*) FROM changes WHERE state = 'waiting') AS changes,
    (SELECT count(*) FROM notices WHERE state = 'waiting') AS notices
"""
MEASURES: dict[str, tuple[str, Callable[[Row], Any]]] = {
    "tokens": ("Tokens per second", lambda row: row["prompt"] + row["completion"]),
    "rows": ("Rows per second", itemgetter("rows")),
    "calls": ("Calls per second", itemgetter("calls")),
}

WORKERS = {
    "worker": "Worker",
    "calls": "Calls",
    "rows_s": "Rows/s",
    "calls_s": "Calls/s",
    "tokens_s": "Tokens/s",
    "mean_s": "Seconds a call",
    "in_flight": "In flight",
    "errors": "Not answered",
    "retries": "Retries",
    "prefix_share": "Prefix cache",
}


def show() -> None:
    """The page."""
    heading("Fleet and cost", "What did the workers do, what waits, and where did the money go?")
    names = [str(row["workload"]) for row in queries.rows(NAMES)]
    if not names:
        parts.empty("There is no run yet.", "headrace run support-triage")
        return
    first, second, third = st.columns(3)
    with first:
        words, since = period()
    with second:
        workload = chosen("Workload", "workload", ["", *names], says=lambda name: name or "All workloads")
    with third:
        run = _run(workload)
    found, width = added_up(since=since, workload=workload, run=run)
    _queue()
    if not found:
        parts.empty(f"No call was made or spared in this period ({words.lower()}).", "headrace run support-triage")
        return
    _totals(found, words)
    _workers(found)
    _over_time(found, width)
    _errors(found)
    _money(found)


def _run(workload: str) -> str:
    known = {str(row["run_id"]): row for row in queries.rows(RUNS, workload=workload)}
    asked = st.query_params.get("run", "")
    if asked and asked not in known:
        known[asked] = {}

    def says(run_id: str) -> str:
        row = known.get(run_id)
        if not run_id:
            return "All runs"
        return f"{run_id[:8]}, {row['kind']}, {row['started_at']:%Y-%m-%d %H:%M}" if row else run_id[:8]

    return chosen("Run", "run", ["", *known], says=says)


def _totals(found: list[Row], words: str) -> None:
    (total,) = summed(found)
    looked = total["answered"] + total["spared"]
    first, second, third, fourth = st.columns(4)
    with first:
        figure("Paid", usd(total["usd"]), f"{total['calls']:,} calls, {words.lower()}")
    with second:
        figure("Spared by the ledger", usd(total["spared_usd"]), f"{total['spared']:,} calls that were not made")
    with third:
        share = total["spared"] / looked if looked else None
        figure("Answered by the ledger", percent(share), f"of n = {looked:,} answers")
    with fourth:
        prompt = total["prompt"]
        hits = total["prefix"] / prompt if prompt else None
        figure("From the servers' prefix cache", percent(hits), f"of n = {prompt:,} prompt tokens that were sent")
    st.caption(
        f"Counts of all calls, not estimates. {total['retries']:,} of {total['calls']:,} calls were second or later "
        f"tries of their request ({percent(total['retries'] / total['calls'] if total['calls'] else None, 2)})."
    )


def _workers(found: list[Row]) -> None:
    st.header("Workers", anchor=False)
    made = [row for row in found if row["worker"] != LEDGER]
    shown: list[Row] = []
    for total in summed(made, worker=itemgetter("worker")):
        span = working_s([row for row in made if row["worker"] == total["worker"]])
        tokens = total["prompt"] + total["completion"]
        shown.append(
            {
                **total,
                "working_s": span,
                "rows_s": _rate(total["rows"], span),
                "calls_s": _rate(total["calls"], span),
                "tokens_s": _rate(tokens, span),
                "mean_s": total["seconds"] / total["calls"] if total["calls"] else None,
                "in_flight": _rate(total["seconds"], span),
                "errors": total["calls"] - total["answered"],
                "prefix_share": percent(total["prefix"] / total["prompt"] if total["prompt"] else None),
            }
        )
    if not shown:
        st.caption("No worker was asked: the ledger knew every answer.")
        return
    table(shown, WORKERS, name="Workers")
    st.caption(
        "Rates are over the time in which stages of runs used a worker, from the first call's start to the last one's "
        "end. Rows are answers of the stage generate. In flight is the mean number of calls under way (their seconds "
        "by that time). Prefix cache: the share of the prompt's tokens that the server had."
    )
    parts.download(shown, "workers")


def _rate(amount: float, length: float) -> float | None:
    """An amount by a length of time; of large ones no decimals."""
    if not length:
        return None
    rate = amount / length
    return round(rate) if rate >= 100 else round(rate, 4)


def _over_time(found: list[Row], width: int) -> None:
    measure = chosen("Over time", "measure", list(MEASURES), says=lambda name: MEASURES[name][0])
    title, read = MEASURES[measure]
    made = [row for row in found if row["worker"] != LEDGER]
    told = {(row["at"], row["worker"]): row for row in summed(made, at=itemgetter("at"), worker=itemgetter("worker"))}
    points: list[Row] = [
        {"at": at, "worker": worker, "rate": read(row) / width if row else 0.0, "n": row["calls"] if row else 0}
        for worker in sorted({worker for _, worker in told})
        for at in _points([at for at, _ in told], width)
        for row in [told.get((at, worker))]
    ]
    if not points:
        return
    drawing = (
        alt.Chart(parts.plotted(points))
        .mark_line(point=True)
        .encode(
            x=alt.X("at:T", scale=alt.Scale(type="utc"), title="Time (UTC)"),
            y=alt.Y("rate:Q", title=title),
            color=alt.Color("worker:N", title="Worker"),
            tooltip=["worker:N", alt.Tooltip("rate:Q", title=title), alt.Tooltip("n:Q", title="calls")],
        )
    )
    most = max(points, key=itemgetter("rate"))
    length = seconds(width)
    parts.chart(
        drawing, f"{title}, averaged over {length} each; at most {_rate(most['rate'], 1):,} ({most['worker']})."
    )
    parts.download(points, "throughput")


def _points(at: list[datetime], width: int) -> list[datetime]:
    """Every point from the first to the last, so that a pause is drawn as one."""
    if not at:
        return []
    first, last = min(at), max(at)
    return [first + timedelta(seconds=n * width) for n in range(round((last - first).total_seconds() / width) + 1)]


def _errors(found: list[Row]) -> None:
    st.header("Calls that were not answered", anchor=False)
    bad = [row for row in found if row["outcome"] != "answered"]
    calls = {row["worker"]: row["calls"] for row in summed(found, worker=itemgetter("worker"))}
    said = {(row["worker"], row["outcome"]): row["detail"] for row in bad if row["detail"]}
    shown: list[Row] = [
        {
            "worker": row["worker"],
            "outcome": row["outcome"],
            "calls": row["calls"],
            "share": percent(row["calls"] / calls[row["worker"]], 2),
            "of": calls[row["worker"]],
            "detail": said.get((row["worker"], row["outcome"])),
        }
        for row in summed(bad, worker=itemgetter("worker"), outcome=itemgetter("outcome"))
    ]
    if not shown:
        st.caption("None.")
        return
    columns = {"worker": "Worker", "outcome": "How it ended", "calls": "Calls", "share": "Share", "of": "of calls"}
    table(shown, {**columns, "detail": "An example of what was said"}, name="Calls that were not answered")
    parts.download(shown, "calls-not-answered")


def _queue() -> None:
    st.header("Queue", anchor=False)
    found, leases, waits = queries.rows(QUEUE), queries.rows(LEASES), queries.rows(WAITING)[0]
    pending = sum(int(row["pending"]) for row in found)
    first, second, third, fourth = st.columns(4)
    with first:
        figure("Rows of runs under way", f"{pending:,}", f"without outcome yet, in {len(found):,} runs")
    with second:
        figure("Changes waiting", f"{waits['changes']:,}", "for the dispatcher")
    with third:
        figure("Notices waiting", f"{waits['notices']:,}", "for an endpoint")
    with fourth:
        figure("Leases held", f"{len(leases):,}", "pieces of work that one process does")
    if found:
        columns = {
            "run": "Run",
            "workload": "Workload",
            "kind": "Kind",
            "records": "Rows",
            "pending": "Pending",
            "stage": "Stage",
            "done": "Done",
            "total": "of",
            "unit": "Unit",
            "updated_at": "Last word (UTC)",
            "holder": "Carried out by",
        }
        table(found, columns, name="Runs under way", links={"run": "to_run"})
        lost = [str(row["run_id"]) for row in found if not row["held"]]
        if lost:
            st.caption("A run that nobody carries out is ended by the sweeper, and goes on with:")
            st.code("\n".join(f"headrace resume {shlex.quote(run)}" for run in lost), language="console")
    if leases:
        shown = [{**row, "left": seconds(row["left_s"])} for row in leases]
        columns = {"run": "Held for", "workload": "Workload", "kind": "Kind", "holder": "Process", "left": "Ends in"}
        table(shown, columns, name="Leases")


def _money(found: list[Row]) -> None:
    st.header("Money", anchor=False)
    days = summed(found, day=_day, tier=itemgetter("tier"), model=itemgetter("model"))
    paid = [{**row, "who": f"{row['tier']}, {row['model']}"} for row in days]
    drawing = (
        alt.Chart(parts.plotted(paid))
        .mark_bar()
        .encode(
            x=alt.X("day:T", timeUnit="utcyearmonthdate", scale=alt.Scale(type="utc"), title="Day (UTC)"),
            y=alt.Y("usd:Q", title="USD paid"),
            color=alt.Color("who:N", title="Tier, model"),
            tooltip=["who:N", alt.Tooltip("usd:Q", format="$.4f"), alt.Tooltip("calls:Q")],
        )
    )
    total = sum(row["usd"] for row in days)
    parts.chart(drawing, f"{usd(total)} paid, by day, tier and model.")
    columns = {"calls": "Calls", "spared": "Spared calls", "paid": "Paid, USD", "saved": "Spared, USD"}
    by_day = {"day": "Day (UTC)", "tier": "Tier", "model": "Model", **columns}
    table(_priced(days), by_day, name="Money by day and model")
    parts.download(days, "money-by-day-and-model")
    st.markdown("**By workload and stage**")
    stages = summed(found, workload=lambda row: row["workload"] or "–", stage=itemgetter("stage"))
    by_stage = {"workload": "Workload", "stage": "Stage", **columns}
    table(_priced(stages), by_stage, name="Money by workload and stage")
    parts.download(stages, "money-by-workload-and-stage")


def _day(row: Row) -> str:
    return f"{row['at']:%Y-%m-%d}"


def _priced(found: list[Row]) -> list[Row]:
    total: Row = {name: sum(row[name] for row in found) for name in ("calls", "spared", "usd", "spared_usd")}
    whole: list[Row] = [*found, {next(iter(found[0])): "All", **total}]
    return [{**row, "paid": usd(row["usd"]), "saved": usd(row["spared_usd"])} for row in whole]
