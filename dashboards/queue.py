"""The queue: what is under way, what waits, and who holds which lease; a part of the page Fleet and cost."""

import shlex

import streamlit as st

from dashboards import queries
from dashboards.parts import counted, figure, table
from dashboards.periods import seconds

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


def section() -> None:
    """Runs under way, what waits for its turn, and who holds which lease; of all workloads, at this moment."""
    st.header("Queue", anchor=False)
    st.caption("As it is now, of all workloads and runs: period, workload and run chosen above do not narrow it.")
    found, leases, waits = queries.rows(QUEUE), queries.rows(LEASES), queries.rows(WAITING)[0]
    pending = sum(int(row["pending"]) for row in found)
    first, second, third, fourth = st.columns(4)
    with first:
        figure("Rows of runs under way", f"{pending:,}", f"without outcome yet, in {counted(len(found), 'run')}")
    with second:
        figure("Changes waiting", f"{waits['changes']:,}", "for the dispatcher")
    with third:
        figure("Notices waiting", f"{waits['notices']:,}", "for an endpoint")
    with fourth:
        figure("Leases held", f"{len(leases):,}", "pieces of work, each of one process")
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
