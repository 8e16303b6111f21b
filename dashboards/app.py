"""The dashboard: what a team decides by, read from views of the ledger and changed by nobody here."""

from pathlib import Path

import streamlit as st

from dashboards.pages import compare, data, fleet, overview, prompts, quality, router, run, triggers
from dashboards.parts import dress
from domain.errors import HeadraceError

ICON = str(Path(__file__).with_name("icon.svg"))  # a name or an emoji would be fetched from elsewhere
PAGES = {
    "Decide": [
        st.Page(overview.show, title="Overview", url_path="overview", default=True),
        st.Page(run.show, title="Run", url_path="run"),
        st.Page(router.show, title="Router", url_path="router"),
    ],
    "Look closer": [
        st.Page(compare.show, title="Compare", url_path="compare"),
        st.Page(prompts.show, title="Prompts and promotion", url_path="prompts"),
        st.Page(quality.show, title="Quality and judges", url_path="quality"),
    ],
    "Operate": [
        st.Page(data.show, title="Data", url_path="data"),
        st.Page(fleet.show, title="Fleet and cost", url_path="fleet"),
        st.Page(triggers.show, title="Triggers", url_path="triggers"),
    ],
}


def main() -> None:
    """Show the page that the address names."""
    st.set_page_config(page_title="Headrace", page_icon=ICON, layout="wide")
    dress()
    page = st.navigation(PAGES)
    try:
        page.run()
    except HeadraceError as error:
        st.error(f"{error}")
        st.caption(error.hint)


main()
