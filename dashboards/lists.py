"""Lists: the newest rows of a period, and what is said of a list that has not all of its rows."""

import streamlit as st

from dashboards import queries
from dashboards.queries import Row
from infra.db import reader

NEWEST = 500
"""Rows of a list that a page asks for; its table shows the first of them, its download has all of them."""


def newest(columns: str, source: str, order: str, **given: reader.Value) -> tuple[list[Row], int]:
    """The first rows of `SELECT columns source ORDER BY order`, and how many there are without a limit.

    They are counted only where there may be more, and then without the columns. Raises StoreError.
    """
    found = queries.rows(f"SELECT {columns} {source} ORDER BY {order} LIMIT {NEWEST}", **given)
    if len(found) < NEWEST:
        return found, len(found)
    return found, int(queries.rows(f"SELECT count(*) AS n {source}", **given)[0]["n"])


def cut(shown: int, n: int, *, of: str = "in this period, here and in the download", first: str = "newest") -> None:
    """Say that a list has not all of the `n` rows there are, if so."""
    if n > shown:
        st.caption(f"The {first} {shown:,} of n = {n:,} {of}.")
