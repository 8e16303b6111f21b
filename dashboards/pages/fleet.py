"""Fleet and cost: what the workers did, what waits, and where the money went."""

from collections.abc import Callable
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

import altair as alt
import streamlit as st

from dashboards import lists, parts, queries, queue
from dashboards.calls import LEDGER, added_up, summed, working_s
from dashboards.parts import chosen, counted, figure, heading, percent, table, usd
from dashboards.periods import period, seconds
from dashboards.queries import Row

NAMES = "SELECT DISTINCT workload FROM runs ORDER BY workload"
RUNS = """
SELECT run_id, kind, state, started_at, count(*) OVER () AS n FROM runs
WHERE (:workload = '' OR workload = :workload) ORDER BY started_at DESC LIMIT 100
"""
CLOCK = alt.TimeFormatSpecifier(hours="%H:%M", minutes="%H:%M", seconds="%H:%M:%S")
"""Vega's own axes have twelve hours."""
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
    "prompt": "Prompt tokens",
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
        workload = chosen(
            "Workload", "workload", ["", *names], says=lambda name: name or "All workloads", resets=["run"]
        )
    with third:
        run = _run(workload)
    found, width = added_up(since=since, workload=workload, run=run)
    queue.section()
    if not found:
        parts.empty(f"No call was made or spared in this period ({words.lower()}).", "headrace run support-triage")
        return
    _totals(found, words)
    _workers(found)
    _over_time(found, width)
    _errors(found)
    _money(found)


def _run(workload: str) -> str:
    found = queries.rows(RUNS, workload=workload)
    known = {str(row["run_id"]): row for row in found}
    asked = st.query_params.get("run", "")
    if asked and asked not in known:
        known[asked] = {}

    def says(run_id: str) -> str:
        row = known.get(run_id)
        if not run_id:
            return "All runs"
        return f"{run_id[:8]}, {row['kind']}, {row['started_at']:%Y-%m-%d %H:%M}" if row else run_id[:8]

    run = chosen("Run", "run", ["", *known], says=says)
    if found:
        lists.cut(len(found), found[0]["n"], of="runs are offered; any other is found by ?run= in the address")
    return run


def _totals(found: list[Row], words: str) -> None:
    st.header("Calls", anchor=False)
    (total,) = summed(found)
    looked = total["answered"] + total["spared"]
    first, second, third, fourth = st.columns(4)
    with first:
        figure("Paid", usd(total["usd"]), f"at list price, {counted(total['calls'], 'call')}, {words.lower()}")
    with second:
        unmade = f"at list price, {counted(total['spared'], 'call')} not made"
        figure("Spared by the ledger", usd(total["spared_usd"]), unmade)
    with third:
        share = total["spared"] / looked if looked else None
        figure("Answered by the ledger", percent(share), f"of n = {counted(looked, 'answer')}")
    with fourth:
        prompt = total["prompt"]
        hits = total["prefix"] / prompt if prompt else None
        figure("From the servers' prefix cache", percent(hits), f"of n = {counted(prompt, 'prompt token')} sent")
    st.caption(
        f"Counts of all calls, not estimates. Second or later tries of their request: {total['retries']:,} of "
        f"n = {counted(total['calls'], 'call')} "
        f"({percent(total['retries'] / total['calls'] if total['calls'] else None, 2)})."
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
        "Rates are over the time in which stages of runs used a worker, each from its first call's start to its last "
        "one's end; time in which several did counts once. Rows are answers of the stage generate. In flight is the "
        "mean number of calls under way (their seconds by that time). Prefix cache: the share of the prompt tokens "
        "that the server had."
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
            x=alt.X("at:T", scale=alt.Scale(type="utc"), title="Time (UTC)", axis=alt.Axis(format=CLOCK)),
            y=alt.Y("rate:Q", title=title),
            color=alt.Color("worker:N", title="Worker"),
            tooltip=["worker:N", alt.Tooltip("rate:Q", title=title), alt.Tooltip("n:Q", title="calls")],
        )
    )
    most = max(points, key=itemgetter("rate"))
    parts.chart(
        drawing,
        f"{title}, averaged over {seconds(width)} each, the first and the last of which may be filled in part; at most "
        f"{_rate(most['rate'], 1):,} ({most['worker']}). n = {counted(sum(row['calls'] for row in made), 'call')}.",
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
    bad = [row for row in found if row["outcome"] != "answered" and row["calls"]]
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
        st.caption(f"None of n = {counted(sum(calls.values()), 'call')}.")
        return
    columns = {"worker": "Worker", "outcome": "How it ended", "calls": "Calls", "share": "Share", "of": "of calls"}
    table(shown, {**columns, "detail": "An example of what was said"}, name="Calls that were not answered")
    parts.download(shown, "calls-not-answered")


def _money(found: list[Row]) -> None:
    st.header("Money", anchor=False)
    days = summed(found, day=_day, tier=itemgetter("tier"), model=itemgetter("model"))
    days.sort(key=itemgetter("day"), reverse=True)
    paid = [{**row, "who": f"{row['tier']}, {row['model']}"} for row in days]
    drawing = (
        alt.Chart(parts.plotted(paid))
        .mark_bar()
        .encode(
            x=alt.X("day:T", timeUnit="utcyearmonthdate", scale=alt.Scale(type="utc"), title="Day (UTC)"),
            y=alt.Y("usd:Q", title="USD paid, list price"),
            color=alt.Color("who:N", title="Tier, model"),
            tooltip=["who:N", alt.Tooltip("usd:Q", format="$.4f"), alt.Tooltip("calls:Q")],
        )
    )
    total, made = sum(row["usd"] for row in days), sum(row["calls"] for row in days)
    says = (
        f"{usd(total)} paid for n = {counted(made, 'call')}, by day, tier and model; USD at the workloads' list prices."
    )
    parts.chart(drawing, says)
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
    # The sum comes first: a table shows its first rows only.
    whole: list[Row] = [{next(iter(found[0])): "All", **total}, *found]
    return [{**row, "paid": usd(row["usd"]), "saved": usd(row["spared_usd"])} for row in whole]
