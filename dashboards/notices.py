"""Notices: who was told of what, and what nobody has heard yet; a part of the page Triggers."""

import shlex

import streamlit as st

from dashboards import lists, parts
from dashboards.parts import chosen, table

NOTICES = "created_at, endpoint, event, state, tries, due_at, settled_at, error, key"
TOLD_OF = "FROM notices WHERE created_at >= now() - CAST(:since AS interval) AND (:state = 'any' OR state = :state)"
TOLD = """
SELECT
    count(*) FILTER (WHERE state = 'waiting') AS waiting, count(*) FILTER (WHERE state = 'delivered') AS delivered,
    count(*) FILTER (WHERE state = 'dead') AS dead, coalesce(sum(greatest(tries - 1, 0)), 0) AS retries
FROM notices WHERE created_at >= now() - CAST(:since AS interval)
"""


def section(words: str, since: str) -> None:
    """What endpoints were told in a period; `words` and `since` are the period's."""
    st.header("Notices", anchor=False)
    state = chosen("State of notices", "notices", ("any", "waiting", "delivered", "dead"))
    found, n = lists.newest(NOTICES, TOLD_OF, "created_at DESC, endpoint, key", since=since, state=state)
    if not found:
        st.caption(
            f"None, {words.lower()}. Endpoints stand below notify in triggers.yaml; this sends one a test message:"
        )
        st.code("headrace notices test ENDPOINT", language="console")
        return
    columns = {
        "created_at": "Happened (UTC)",
        "endpoint": "Endpoint",
        "event": "Event",
        "state": "State",
        "tries": "Tries",
        "due_at": "Next try (UTC)",
        "settled_at": "Settled (UTC)",
        "error": "Last error",
    }
    waiting = [{**row, "due_at": row["due_at"] if row["state"] == "waiting" else None} for row in found]
    table(waiting, columns, name="Notices")
    lists.cut(len(found), n)
    parts.download(waiting, "notices")
    dead = [row["key"] for row in found if row["state"] == "dead"]
    if dead:
        st.caption("Send a notice that was given up again, from the first try on:")
        key = st.selectbox("Notice", list(dict.fromkeys(dead)))
        st.code(f"headrace notices retry {shlex.quote(key or '')}", language="console")
