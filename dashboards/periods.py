"""Periods: how far back a page looks."""

from typing import Any

import streamlit as st

from dashboards.parts import chosen

PERIODS = {
    "hour": ("The last hour", "1 hour"),
    "day": ("The last day", "1 day"),
    "week": ("The last 7 days", "7 days"),
    "month": ("The last 30 days", "30 days"),
    "all": ("Since the beginning", "1000 years"),
}
DEFAULT = "week"


def period() -> tuple[str, str]:
    """The period chosen or named in the address (`?period=week`): in words, and as an interval for Postgres."""
    if "period" not in st.query_params:
        st.query_params["period"] = DEFAULT
    return PERIODS[chosen("Period", "period", list(PERIODS), says=lambda name: PERIODS[name][0])]


def seconds(length: Any) -> str:
    """A length of time, given in seconds, as people say it."""
    value = float(length)
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if value >= 2 * size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,.1f} s"
