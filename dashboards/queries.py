"""What pages ask of the views; answers are kept for a few seconds, so that a click costs no query twice.

What is asked of a dataset version alone is kept longer: a version never changes, it is only forgotten.
"""

from typing import Any

import streamlit as st

from infra.db import reader

Row = dict[str, Any]
KEPT_S, OF_A_VERSION_KEPT_S = 10, 600


@st.cache_data(ttl=KEPT_S, show_spinner=False, max_entries=500)
def rows(query: str, **given: reader.Value) -> list[Row]:
    """The rows of a query on the schema `views`; `:name` in it stands for a given value. Raises StoreError."""
    return reader.read(query, given)


@st.cache_data(ttl=OF_A_VERSION_KEPT_S, show_spinner=False, max_entries=200)
def of_version(query: str, **given: reader.Value) -> list[Row]:
    """The rows of a query whose answer the dataset versions given to it decide. Raises StoreError."""
    return reader.read(query, given)


def one(query: str, **given: reader.Value) -> Row | None:
    """The first row of a query, if there is one. Raises StoreError."""
    found = rows(query, **given)
    return found[0] if found else None
