"""Addresses: what a page's address asks for, held against what there is."""

from collections.abc import Collection

import streamlit as st


def complete(key: str, known: Collection[str], missing: str) -> None:
    """Make the beginning of a name in the address (`?key=…`) the whole name, before `parts.chosen` reads it.

    Where none of the known names begins so, or more than one does, a warning says `missing` (a sentence), so that what
    is shown in its place is not taken for what was asked for.
    """
    asked = st.query_params.get(key)
    if not asked or asked in known:
        return
    begun = [name for name in known if name.startswith(asked)]
    if len(begun) == 1:
        st.query_params[key] = begun[0]
    elif begun:
        st.warning("More than one begins with what the address asks for. What is shown is the first.")
    else:
        st.warning(f"{missing} What is shown is another one.")
