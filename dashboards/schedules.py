"""Schedules and automations: which runs they have started, as far as the ledger knows; a part of the page Triggers."""

import streamlit as st

from dashboards import lists, parts, queries
from dashboards.parts import counted, table
from dashboards.queries import Row

FLOWS = {"optimize": "optimize-workload", "route": "route-batch", "audit": "audit-bundle"}
"""The flow of each kind of run."""
STARTERS = {
    "schedule": "by schedules",
    "delivery": "by deliveries",
    "automation": "by automations",
    "person": "by people, at Prefect's UI, a terminal or its API",
    None: "by what is not on record",
}
BEGUN = """
SELECT started_by, count(*) AS runs FROM runs
WHERE started_at >= now() - CAST(:since AS interval) GROUP BY started_by
"""
SCHEDULES = """
SELECT
    workload, kind, max(started_at) AS newest, (array_agg(state ORDER BY started_at DESC))[1] AS became,
    (array_agg(run_id ORDER BY started_at DESC))[1] AS run_id,
    count(*) FILTER (WHERE started_at >= now() - CAST(:since AS interval)) AS runs,
    count(*) FILTER (WHERE started_at >= now() - CAST(:since AS interval) AND state = 'completed') AS completed,
    count(*) FILTER (WHERE started_at >= now() - CAST(:since AS interval) AND state = 'unchanged') AS unchanged,
    count(*) FILTER (
        WHERE started_at >= now() - CAST(:since AS interval) AND state IN ('failed', 'crashed', 'cancelled', 'lost')
    ) AS failed
FROM runs WHERE started_by = 'schedule' GROUP BY workload, kind ORDER BY workload, kind
"""
COLUMNS = """
    started_at, started_by, workload, kind, state, run_id, left(run_id, 8) AS run, '/run?run=' || run_id AS to_run,
    links ->> 'prefect' AS prefect, CASE WHEN links ->> 'prefect' <> '' THEN 'open' END AS page, ended_at
"""
RUNS = """
FROM runs WHERE started_by IN ('schedule', 'automation') AND started_at >= now() - CAST(:since AS interval)
"""
PREFECT = """
SELECT regexp_replace(links ->> 'prefect', '/runs/flow-run/.*$', '') AS home
FROM runs WHERE links ->> 'prefect' LIKE 'http%/runs/flow-run/%' ORDER BY started_at DESC LIMIT 1
"""


def section(words: str, since: str) -> None:
    """Schedules, and the runs that they and automations started in a period; `words` and `since` are the period's."""
    st.header("Schedules", anchor=False)
    known = queries.rows(SCHEDULES, since=since)
    if known:
        _known(known, words)
    else:
        st.caption("No run in the ledger was started by a schedule.")
    st.caption(
        "Prefect keeps the schedules, switches them and says when each is next due. This sets up those of a workload:"
    )
    st.code("headrace deploy WORKLOAD", language="console")
    home = queries.one(PREFECT)
    if home:
        to = f"{home['home']}/deployments"
        columns = {"page": "Deployments and schedules in Prefect"}
        table([{"page": to, "to": to}], columns, name="In Prefect", links={"page": "to"})
    _runs(words, since)


def _known(known: list[Row], words: str) -> None:
    shown = [{**row, "flow": _flow(row), "run": row["run_id"][:8], "to": f"/run?run={row['run_id']}"} for row in known]
    columns = {
        "workload": "Workload",
        "flow": "Flow",
        "newest": "Newest run (UTC)",
        "became": "Became",
        "run": "Run",
        "runs": f"Runs, {words.lower()}",
        "completed": "Completed",
        "unchanged": "Unchanged",
        "failed": "Failed or cancelled",
    }
    table(shown, columns, name="Schedules", links={"run": "to"})
    parts.download([{key: row[key] for key in (*columns, "run_id") if key != "run"} for row in shown], "schedules")


def _runs(words: str, since: str) -> None:
    st.header("Runs that schedules and automations started", anchor=False)
    begun = {row["started_by"]: row["runs"] for row in queries.rows(BEGUN, since=since)}
    said = [f"{begun[who]:,} {by}" for who, by in STARTERS.items() if begun.get(who)]
    n = sum(begun.values())
    st.caption(f"{counted(n, 'run')} began in the ledger, {words.lower()}{': ' if said else ''}{'; '.join(said)}.")
    found, total = lists.newest(COLUMNS, RUNS, "started_at DESC, run_id", since=since)
    if found:
        shown = [{**row, "flow": _flow(row)} for row in found]
        columns = {
            "started_at": "Began (UTC)",
            "started_by": "Started by",
            "workload": "Workload",
            "flow": "Flow",
            "state": "Became",
            "run": "Run",
            "page": "Prefect",
        }
        table(
            shown,
            columns,
            name="Runs that schedules and automations started",
            links={"run": "to_run", "page": "prefect"},
        )
        lists.cut(len(found), total)
        kept = ("started_at", "ended_at", "started_by", "workload", "flow", "state", "run_id", "prefect")
        parts.download([{key: row[key] for key in kept} for row in shown], "scheduled-runs")
    st.caption(
        "Listed is what has begun in the ledger. A run that ended before that is in Prefect alone: one that was "
        "Skipped since a newer time of its schedule was due, was cancelled while it waited, or could not "
        "read its workload."
    )


def _flow(row: Row) -> str:
    return FLOWS.get(row["kind"], str(row["kind"]))
