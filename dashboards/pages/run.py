"""Run: where its rows went, how long its stages took, what its calls cost, and what is in quarantine."""

import shlex
from urllib.parse import urlencode

import altair as alt
import streamlit as st

from dashboards import queries, run_calls
from dashboards.addresses import complete
from dashboards.parts import BLUE, INK, ORANGE, chart, chosen, counted, download, empty, figure, heading, plotted, table
from dashboards.queries import Row
from domain.ledgers import Conservation

NEWEST = """
(SELECT run_id, kind, workload, state, started_at FROM runs WHERE :run <> '' AND starts_with(run_id, :run) LIMIT 100)
UNION
(SELECT run_id, kind, workload, state, started_at FROM runs ORDER BY started_at DESC LIMIT 100)
ORDER BY started_at DESC
"""
QUARANTINED = """
SELECT file, line, field, stage, reason FROM run_quarantine
WHERE run_id = :run AND (:stage = '' OR stage = :stage)
      AND position(lower(:word) IN lower(concat_ws(' ', file, field, reason))) > 0
ORDER BY file, line, record_key LIMIT :most
"""
REASONS = """
SELECT stage, left(reason, 200) AS reason, count(*) AS rows, count(*) OVER () AS kinds FROM run_quarantine
WHERE run_id = :run GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT :most
"""
STAGES = "SELECT DISTINCT stage FROM run_quarantine WHERE run_id = :run ORDER BY stage"
ASKED_AGAIN = """
SELECT count(*) AS rows FROM run_quarantine
WHERE run_id = :run AND stage <> 'snapshot' AND position(:reason IN reason) > 0
"""
MOST, MOST_REASONS = 10_000, 1_000
"""Rows of a quarantine that the page looks at, a filter finds others; reasons, those of most rows."""
ENDS = {"records": INK, "outcomes": BLUE, "left over": ORANGE}
"""The terms of the equation that steps count for."""
ABSENT = "There is no run that the address asks for: it has not begun, or it was pruned."
GOES_ON = ("cancelled", "paused", "failed", "lost")


def show() -> None:
    """The page."""
    heading("Run", "Where did the rows go, and what did it take?")
    runs = {row["run_id"]: row for row in queries.rows(NEWEST, run=st.query_params.get("run", ""))}
    if not runs:
        empty("There is no run yet.", "headrace run support-triage")
        return
    complete("run", runs, ABSENT)
    picked = chosen("Run", "run", list(runs), says=lambda run: _named(runs[run]))
    run = queries.one("SELECT * FROM runs WHERE run_id = :run", run=picked)
    if run is None:
        empty("This run is not there any more.", "headrace runs")
        return
    _facts(run)
    _rows(run)
    _stages(run)
    run_calls.histograms(run)
    run_calls.cost(run)
    run_calls.trouble(run)
    _quarantine(run)


def _named(row: Row) -> str:
    return f"{row['run_id'][:8]}  {row['kind']} {row['workload']}, {row['state']}, {row['started_at']:%Y-%m-%d %H:%M}"


def _facts(run: Row) -> None:
    left, right = st.columns(2)
    with left:
        ended = f"{run['ended_at']:%Y-%m-%d %H:%M:%S}" if run["ended_at"] else "not yet"
        started = f"{run['started_at']:%Y-%m-%d %H:%M:%S} UTC" + (f" by {by}" if (by := run["started_by"]) else "")
        figure("State", run["state"], f"{run['kind']} {run['workload']}; began {started}, ended {ended}")
    with right:
        figure(
            "Time",
            f"{run['seconds']:,.1f} s",
            f"data {_short(run['dataset_version'])}, bundle {_short(run['bundle_hash'])}",
        )
    within = "?" + urlencode({"run": run["run_id"], "workload": run["workload"]})
    links = [{"where": name, "address": address} for name, address in sorted(run["links"].items())]
    if queries.rows("SELECT run_id FROM router_runs WHERE run_id = :run", run=run["run_id"]):
        links.insert(0, {"where": "router: frontier, threshold, signals", "address": f"/router{within}"})
    table(links, {"where": "See it in"}, name="Where else this run can be seen", links={"where": "address"})
    st.code(f"headrace show {run['run_id'][:8]}", language="console")
    if run["state"] in GOES_ON:
        st.code(f"headrace resume {run['run_id'][:8]}", language="console")


def _short(name: str | None) -> str:
    return name[:8] if name else "–"


def _rows(run: Row) -> None:
    st.header("Where the rows went", anchor=False)
    counted = queries.one("SELECT * FROM run_rows WHERE run_id = :run", run=run["run_id"])
    if counted is None or not counted["records"]:
        empty("This run has taken no rows upon itself.", f"headrace show {run['run_id'][:8]}")
        return
    terms = Conservation(*(counted[name] for name in ("records", "outcomes", "quarantined", "cancelled", "pending")))
    ways = funnel(counted)
    drawing = (
        alt.Chart(plotted(ways))
        .mark_bar()
        .encode(
            x=alt.X("rows:Q", title="Rows"),
            y=alt.Y("step:N", sort=None, title=None),
            color=alt.Color(
                "ends:N", title="Of the equation", scale=alt.Scale(domain=list(ENDS), range=list(ENDS.values()))
            ),
            tooltip=["step:N", "rows:Q"],
        )
    )
    chart(drawing, f"{terms}. Every row is counted once on the right; the equation {_verb(terms)}.", height=260)
    columns = {"step": "Step", "rows": "Rows", "share": "% of records", "ends": "Of the equation"}
    table(ways, columns, name="Where the rows went")
    download(ways, "rows")


def _verb(terms: Conservation) -> str:
    return "holds" if terms.holds else "does not hold: see `headrace doctor`"


def funnel(counted: Row) -> list[Row]:
    """The steps of a run's rows; those that are a term of the equation's right side add up to the records."""
    other = counted["quarantined"] - counted["failed"]
    steps = (
        ("Records", counted["records"], "records"),
        ("Answered by cheap, kept", counted["kept"], "outcomes"),
        ("Escalated, answered by strong", counted["escalated"], "outcomes"),
        ("Straight to strong", counted["straight"], "outcomes"),
        ("No valid answer", counted["failed"], "left over"),
        ("Quarantined before", other, "left over"),
        ("Cancelled", counted["cancelled"], "left over"),
        ("Pending", counted["pending"], "left over"),
    )
    whole = counted["records"] or 1
    return [{"step": step, "rows": n, "share": 100 * n / whole, "ends": ends} for step, n, ends in steps]


def _stages(run: Row) -> None:
    st.header("Stages", anchor=False)
    found = queries.rows("SELECT * FROM run_stages WHERE run_id = :run ORDER BY began_s, stage", run=run["run_id"])
    if not found:
        empty("No stage of this run has reported yet.", f"headrace show {run['run_id'][:8]}")
        return
    bars = [{**row, "end_s": row["began_s"] + row["seconds"]} for row in found]
    drawing = (
        alt.Chart(plotted(bars))
        .mark_bar()
        .encode(
            x=alt.X("began_s:Q", title="Seconds since the run began"),
            x2="end_s:Q",
            y=alt.Y("stage:N", sort=None, title=None),
            tooltip=["stage:N", alt.Tooltip("seconds:Q", format=",.1f"), "done:Q", "total:Q"],
        )
    )
    longest = max(bars, key=lambda row: row["seconds"])
    says = f"When each stage worked; the longest is {longest['stage']} with {longest['seconds']:,.1f} s."
    chart(drawing, says, height=max(120, 26 * len(bars)))
    columns = {
        "stage": "Stage",
        "done": "Done",
        "total": "of",
        "unit": "Unit",
        "began_s": "Began, s",
        "seconds": "Took, s",
    }
    table(found, columns, name="Stages")
    download(found, "stages")


def _quarantine(run: Row) -> None:
    st.header("Quarantine", anchor=False)
    reasons = queries.rows(REASONS, run=run["run_id"], most=MOST_REASONS)
    if not reasons:
        st.text("No row of this run is in quarantine.")
        return
    columns = {"stage": "Stage", "reason": "Reason", "rows": "Rows"}
    table(reasons, columns, name="Reasons of the quarantine")
    if (kinds := reasons[0]["kinds"]) > len(reasons):
        st.caption(f"Of {kinds:,} reasons, {len(reasons):,} are listed: those of most rows. The rows below are of all.")
    download([{key: row[key] for key in columns} for row in reasons], "quarantine-reasons", label="Reasons as CSV")
    left, right = st.columns(2)
    with left:
        every = "every stage"
        stages = [row["stage"] for row in queries.rows(STAGES, run=run["run_id"])]
        stage = st.selectbox("Stage", [every, *stages])
    with right:
        word = st.text_input("Reason, file or field contains", max_chars=100)
    given = {"run": run["run_id"], "stage": "" if stage == every else stage, "word": word, "most": MOST}
    found = queries.rows(QUARANTINED, **given)
    st.text(
        counted(len(found), "row")
        + (f" (the first {MOST:,}; narrow the filter to see others)" if len(found) == MOST else "")
    )
    columns = {"file": "File", "line": "Line", "field": "Field", "stage": "Stage", "reason": "Reason"}
    table(found, columns, name="Rows in quarantine")
    download(found, "quarantine")
    _again(run, found, word)


def _again(run: Row, found: list[Row], word: str) -> None:
    """The commands to read these rows in the terminal and to have them answered again."""
    short = run["run_id"][:8]
    st.caption("To read them in the terminal:")
    st.code(f"headrace show {short} --quarantined", language="console")
    readable = [row for row in found if row["stage"] != "snapshot"]
    if len(readable) < len(found):
        st.caption("Rows that could not be read: correct them in their file, then run the workload again.")
        st.code(f"headrace run {shlex.quote(run['workload'])}", language="console")
    if not readable:
        return
    if run["kind"] != "route" or run["state"] in {"running", "paused"}:
        st.caption("The other rows: only those of a batch that has ended can be asked again by themselves.")
        return
    st.caption(
        "To have the other rows answered again, by the champion of today. The ledger gives the same answer to the same "
        "request: where an answer was not valid, only another prompt or model changes that."
    )
    reason = word if word and all(word in row["reason"] for row in readable) else ""
    asked = queries.rows(ASKED_AGAIN, run=run["run_id"], reason=reason)[0]["rows"]
    if asked != len(readable):
        st.caption(
            f"This asks more rows than are shown, {asked:,} and not {len(readable):,}: the command finds them by the "
            "very text of their reason only, not by stage, file or field."
        )
    st.code(requeue(short, reason), language="console")


def requeue(short: str, reason: str) -> str:
    """The command that asks the quarantined rows of a batch again, those whose reason holds a text."""
    return shlex.join(["headrace", "quarantine", "requeue", short, *(["--reason", reason] if reason else [])])
