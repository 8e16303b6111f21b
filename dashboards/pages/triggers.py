"""Triggers: what was said to have changed, what became of it, and who was told of what."""

import shlex
from collections.abc import Callable
from typing import Any

import altair as alt
import streamlit as st

from dashboards import lists, notices, parts, queries, schedules
from dashboards.parts import chosen, counted, figure, heading, table
from dashboards.periods import period, seconds
from dashboards.queries import Row

SHOWN_KEY = 10
"""Characters of a delivery's key that name it; `headrace webhooks replay` finds it by them."""
STATES = ("any", "waiting", "started", "joined", "unchanged", "announced", "failed")
TICKS: dict[str, Any] = {"hour": "utcyearmonthdatehours", "day": "utcyearmonthdate"}
MEANINGS = {
    "any": "Whatever became of it",
    "waiting": "Waiting for the dispatcher",
    "started": "A run was started",
    "joined": "A run that was under way deals with it",
    "unchanged": "Nothing had changed",
    "announced": "Left to an automation of yours",
    "failed": "Failed",
}
BECAME = """
SELECT
    count(*) AS changes,
    count(*) FILTER (WHERE state = 'started') AS started,
    count(DISTINCT run_id) FILTER (WHERE state = 'started') AS runs,
    count(*) FILTER (WHERE state = 'joined') AS joined,
    count(*) FILTER (WHERE state = 'unchanged') AS unchanged,
    count(*) FILTER (WHERE state = 'announced') AS announced,
    count(*) FILTER (WHERE state = 'failed') AS failed,
    count(*) FILTER (WHERE replayed) AS replayed,
    coalesce(sum(tries), 0) AS retries,
    count(*) FILTER (WHERE settled_at IS NOT NULL AND NOT replayed) AS settled,
    percentile_cont(0.5) WITHIN GROUP (
        ORDER BY extract(EPOCH FROM settled_at - received_at)
    ) FILTER (WHERE NOT replayed) AS median_s,
    percentile_cont(0.95) WITHIN GROUP (
        ORDER BY extract(EPOCH FROM settled_at - received_at)
    ) FILTER (WHERE NOT replayed) AS most_s
FROM changes WHERE received_at >= now() - CAST(:since AS interval)
"""
WAITING = """
SELECT count(*) AS waiting, extract(EPOCH FROM now() - min(received_at))::double precision AS oldest_s
FROM changes WHERE state = 'waiting'
"""
SENDERS = """
SELECT source, count(*) AS deliveries, count(*) FILTER (WHERE datasets = '[]') AS nothing, max(received_at) AS newest
FROM deliveries WHERE received_at >= now() - CAST(:since AS interval) GROUP BY source ORDER BY source
"""
OVER_TIME = """
SELECT date_trunc(:unit, received_at) AS at, state, count(*) AS changes
FROM changes WHERE received_at >= now() - CAST(:since AS interval) GROUP BY 1, 2 ORDER BY 1, 2
"""
DELIVERIES = """
    d.received_at, d.source, d.event, left(d.key, :shown) AS delivery, left(d.delivery_id, 16) AS id, c.dataset,
    CASE WHEN c.number IS NULL THEN 'nothing for us' ELSE c.state END AS state,
    c.tries, c.replayed, left(c.dataset_version, 12) AS version, c.run_id, c.run_state, c.detail,
    concat_ws(' ', left(c.run_id, 8), c.run_state) AS run, CASE WHEN c.prefect <> '' THEN 'open' END AS page,
    c.due_at, c.settled_at, CASE WHEN c.run_state IS NOT NULL THEN '/run?run=' || c.run_id END AS to_run, c.prefect,
    d.key, d.delivery_id
"""
RECEIVED = """
FROM deliveries AS d LEFT JOIN changes AS c ON c.delivery_key = d.key
WHERE d.received_at >= now() - CAST(:since AS interval) AND (:state = 'any' OR c.state = :state)
"""
STARTS = """
    created_at, flow, workload, left(dataset_version, 12) AS version, scope, max_usd, run_id,
    concat_ws(' ', left(run_id, 8), coalesce(run_state, 'not begun')) AS run,
    CASE WHEN run_state IS NOT NULL THEN '/run?run=' || run_id END AS to_run, prefect,
    CASE WHEN prefect <> '' THEN 'open' END AS page, left(key, 17) AS key
"""
STARTED = "FROM starts WHERE created_at >= now() - CAST(:since AS interval)"
POLLS = """
SELECT p.dataset, p.looked_at, p.seen, extract(EPOCH FROM now() - p.looked_at)::double precision AS ago_s,
    (SELECT count(*) FROM changes AS c WHERE c.dataset = p.dataset AND c.source = 'poll' AND NOT c.replayed) AS found
FROM polls AS p ORDER BY p.dataset
"""


def show() -> None:
    """The page."""
    heading("Triggers", "What was said to have changed, what became of it, and was everybody told?")
    words, since = period()
    _figures(words, since)
    _deliveries(words, since)
    _starts(words, since)
    _polls()
    schedules.section(words, since)
    notices.section(words, since)


def _figures(words: str, since: str) -> None:
    became, now = queries.rows(BECAME, since=since)[0], queries.rows(WAITING)[0]
    senders = queries.rows(SENDERS, since=since)
    told = queries.rows(notices.TOLD, since=since)[0]
    n = sum(row["deliveries"] for row in senders)
    first, second, third, fourth = st.columns(4)
    with first:
        nothing = sum(row["nothing"] for row in senders)
        figure("Deliveries", f"{n:,}", f"{words.lower()}; {nothing:,} of them for no dataset of ours")
    with second:
        of = f"for {became['started']:,} of {counted(became['changes'], 'change')}"
        figure("Runs started", f"{became['runs']:,}", f"{of}; {_rest(became)}")
    with third:
        oldest = "nothing waits" if not now["waiting"] else f"the oldest for {seconds(now['oldest_s'])}"
        figure("Waiting now", f"{now['waiting']:,}", oldest)
    with fourth:
        figure("Notices given up", f"{told['dead']:,}", f"{told['delivered']:,} delivered, {told['waiting']:,} waiting")
    if became["settled"]:
        st.caption(
            f"From message to decision: median {seconds(became['median_s'])}, 95th percentile "
            f"{seconds(became['most_s'])} (n = {counted(became['settled'], 'change')}, replays left out); the "
            f"dispatcher tried again {counted(became['retries'], 'time')}. Only messages whose sender was "
            "verified are kept."
        )
    _over_time(words, since)
    if senders:
        columns = {
            "source": "Sender",
            "deliveries": "Deliveries",
            "nothing": "For no dataset",
            "newest": "Newest (UTC)",
        }
        table(senders, columns, name="Senders")


def _rest(became: Row) -> str:
    told = [f"{became[state]:,} {state}" for state in STATES[3:] if became[state]]
    return ", ".join(told) or "nothing else"


def _over_time(words: str, since: str) -> None:
    unit = "hour" if since in {"1 hour", "1 day"} else "day"
    found = queries.rows(OVER_TIME, since=since, unit=unit)
    if not found:
        return
    drawing = (
        alt.Chart(parts.plotted(found))
        .mark_bar()
        .encode(
            x=alt.X("at:T", timeUnit=TICKS[unit], scale=alt.Scale(type="utc"), title="Received (UTC)"),
            y=alt.Y("changes:Q", title=f"Changes per {unit}", axis=alt.Axis(tickMinStep=1)),
            color=alt.Color("state:N", title="What became of it"),
            tooltip=["state:N", "changes:Q"],
        )
    )
    total = counted(sum(row["changes"] for row in found), "change")
    parts.chart(drawing, f"{total} by {unit} of receipt and by what became of them, {words.lower()}.")


def _deliveries(words: str, since: str) -> None:
    st.header("Deliveries", anchor=False)
    state = chosen("What became of it", "state", STATES, says=MEANINGS.__getitem__)
    order = "d.received_at DESC, d.key, c.number"
    found, n = lists.newest(DELIVERIES, RECEIVED, order, since=since, state=state, shown=SHOWN_KEY)
    if not found:
        what = "No message" if state == "any" else "No such message"
        parts.empty(f"{what} was received in this period ({words.lower()}).", "headrace webhooks send-test own DATASET")
        return
    columns = {
        "received_at": "Received (UTC)",
        "source": "Sender",
        "event": "Event",
        "dataset": "Dataset",
        "state": "Became",
        "run": "Run",
        "detail": "Detail",
        "delivery": "Delivery",
        "id": "Sender's id",
        "tries": "Tried again",
        "page": "Prefect",
    }
    table(found, columns, name="Deliveries", links={"run": "to_run", "page": "prefect"})
    lists.cut(len(found), n)
    parts.download(_without(found, "to_run", "run", "page", "delivery", "id"), "deliveries")
    _replay(found)


def _replay(found: list[Row]) -> None:
    known = {row["delivery"]: row for row in reversed(found) if row["dataset"]}
    if not known:
        return
    st.markdown("**Look at a delivery's datasets again.** A dataset that has not changed starts nothing.")
    delivery = st.selectbox("Delivery", list(reversed(known)), format_func=_named(known))
    st.code(f"headrace webhooks replay {shlex.quote(delivery or '')}", language="console")


def _named(known: dict[str, Row]) -> Callable[[str], str]:
    return lambda key: f"{key}, {known[key]['received_at']:%Y-%m-%d %H:%M:%S}, {known[key]['source']}"


def _starts(words: str, since: str) -> None:
    st.header("Runs that deliveries started", anchor=False)
    found, n = lists.newest(STARTS, STARTED, "created_at DESC, key", since=since)
    if not found:
        st.caption(f"None, {words.lower()}.")
        return
    columns = {
        "created_at": "Started (UTC)",
        "flow": "Flow",
        "workload": "Workload",
        "version": "Version",
        "scope": "Scope",
        "max_usd": "Budget, USD",
        "run": "Run",
        "page": "Prefect",
    }
    table(found, columns, name="Runs that deliveries started", links={"run": "to_run", "page": "prefect"})
    lists.cut(len(found), n)
    parts.download(_without(found, "to_run", "run", "page"), "starts")


def _polls() -> None:
    st.header("Files that are looked at", anchor=False)
    found = queries.rows(POLLS)
    if not found:
        st.caption("None: no dataset of triggers.yaml has poll_s, or `headrace webhooks serve` has not run yet.")
        return
    shown = [
        {**row, "ago": seconds(row["ago_s"]), "first": "yes" if row["seen"] else "not yet: missing, or not readable"}
        for row in found
    ]
    columns = {
        "dataset": "Dataset",
        "looked_at": "Last look (UTC)",
        "ago": "Ago",
        "first": "Seen",
        "found": "Changes found",
    }
    table(shown, columns, name="Files that are looked at")
    parts.download(found, "polls")


def _without(found: list[Row], *names: str) -> list[Row]:
    return [{key: value for key, value in row.items() if key not in names} for row in found]
