"""What pages are made of: figures with their n and interval, tables, downloads, links, empty states."""

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, cast

import altair as alt
import numpy as np
import streamlit as st
from pydantic import JsonValue

from dashboards import queries
from dashboards.queries import Row
from domain import spreadsheets
from domain.canonical import canonical
from domain.scores import Estimate, estimate

SHOWN = 200
"""Rows of a table on a page; the download has all of them."""
OF_A_WORKLOAD = ("run", "signal", "threshold", "a", "b", "version", "bundle")
"""Keys of the address that speak of one workload's things."""
SHORT, LONGEST = 26, 300
"""Characters of the text that a column never breaks, and of a cell: what was cut is in the download."""

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#56b4e9",
    "#1b1f24",
)
"""Okabe and Ito's colours, which people with any kind of colour blindness tell apart (the black is our text's)."""
PALETTE = [BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK]
INK = "#4b5563"
"""Grey of labels: 7.6:1 on white."""

STYLE = """
<style>
  [data-testid="stCaptionContainer"] { opacity: 1; }
  [data-testid="stCaptionContainer"] p { color: #4b5563 !important; }
  [data-testid="stHeading"] h2 { font-size: 1.4rem; padding-top: 1rem; }
  .hr-table { border-collapse: collapse; width: 100%; font-size: 0.875rem; }
  .hr-table caption { text-align: left; padding: 0.25rem 0; color: #4b5563; }
  .hr-table th { text-align: left; border-bottom: 2px solid #1b1f24; padding: 0.3rem 1rem 0.3rem 0; }
  .hr-table td { border-bottom: 1px solid #d5dae0; padding: 0.3rem 1rem 0.3rem 0; vertical-align: top;
                 overflow-wrap: anywhere; min-width: 6ch; }
  .hr-table td:not([class]) { min-width: 22ch; }
  .hr-table .short { white-space: nowrap; }
  .hr-table .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
  .hr-says { color: #4b5563; font-size: 0.8rem; margin-bottom: 0.5rem; overflow-wrap: anywhere; }
  .hr-scroll { overflow-x: auto; }
  .hr-figure { border-left: 4px solid #00567d; padding: 0.1rem 0 0.1rem 0.75rem; margin-bottom: 0.5rem; }
  .hr-figure .label { color: #4b5563; font-size: 0.875rem; }
  .hr-figure .value { font-size: 1.6rem; font-weight: 600; line-height: 1.25; }
  .hr-figure .detail { color: #4b5563; font-size: 0.8rem; }
</style>
"""


def dress() -> None:
    """The look of every page."""
    st.html(STYLE)


def heading(title: str, question: str) -> None:
    """A page's title, and the question that it answers."""
    st.title(title, anchor=False)
    st.caption(question)


def empty(what: str, command: str) -> None:
    """Say that there is nothing to show, and what to run so that there is."""
    st.info(f"{what} This fills it:")
    st.code(command, language="console")


def figure(label: str, value: str, detail: str = "") -> None:
    """One number with its unit; `detail` holds n and interval, or what it is compared with."""
    st.html(
        f'<div class="hr-figure"><div class="label">{html.escape(label)}</div>'
        f'<div class="value">{html.escape(value)}</div><div class="detail">{html.escape(detail)}</div></div>'
    )


def table(
    found: Sequence[Row], columns: Mapping[str, str], *, name: str, links: Mapping[str, str] | None = None
) -> None:
    """Rows as a table, the first of them; `columns` gives a heading to each key, in order.

    `links` says which column holds the address that another column's text leads to. Text is escaped: what came from
    data or models is never read as HTML or Markdown.
    """
    targets = links or {}
    head = "".join(f'<th scope="col"{_kind(found, key)}>{html.escape(says)}</th>' for key, says in columns.items())
    body = "".join(
        "<tr>" + "".join(f"<td{_kind(found, key)}>{_cell(row, key, targets)}</td>" for key in columns) + "</tr>"
        for row in found[:SHOWN]
    )
    more = f"<caption>the first {SHOWN:,} of {len(found):,}</caption>" if len(found) > SHOWN else ""
    st.html(
        f'<div class="hr-scroll" tabindex="0" role="region" aria-label="{html.escape(name)}">'
        f'<table class="hr-table">{more}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _kind(found: Sequence[Row], key: str) -> str:
    numbers = any(isinstance(row.get(key), int | float) and not isinstance(row.get(key), bool) for row in found)
    if numbers:
        return ' class="number"'
    return ' class="short"' if all(len(_text(row.get(key))) <= SHORT for row in found[:SHOWN]) else ""


def _cell(row: Row, key: str, links: Mapping[str, str]) -> str:
    text = _text(row.get(key))
    shown = html.escape(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…")
    target = row.get(links[key]) if key in links else None
    if isinstance(target, str) and target.startswith(("http://", "https://", "/", "?")):
        return f'<a href="{html.escape(target, quote=True)}">{shown}</a>'
    return shown


def _text(value: Any) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:,.4g}"
        case int():
            return f"{value:,}"
        case _ if hasattr(value, "strftime"):
            return str(value.strftime("%Y-%m-%d %H:%M:%S"))
        case _:
            return str(value)


def plotted(found: Sequence[Row]) -> alt.Data:
    """Rows as a chart's data: times as ISO 8601, what is no number (NaN, infinite) as null. Name types in encodings."""
    return alt.Data(values=[{key: _plain(value) for key, value in row.items()} for row in found])


def _plain(value: Any) -> Any:
    match value:
        case datetime() | date():
            return value.isoformat()
        case float() if not math.isfinite(value):
            return None
        case str() | int() | float() | None:
            return value
        case _:
            return str(value)


def spread(values: Iterable[float]) -> alt.Scale:
    """The scale of differences: one to either side where all of them are 0, since an axis needs a length."""
    return alt.Scale() if any(values) else alt.Scale(domain=[-1, 1])


def chart(drawing: alt.TopLevelMixin, says: str, *, height: int = 280) -> None:
    """A chart as wide as the page, `height` pixels high (of one view), with what it says in words below it.

    `says` is read out in the chart's place, so it holds what is to be seen, units included. Axes get their titles and
    units from the encodings (`alt.X("usd:Q", title="USD per 1,000 rows")`). Nothing is fetched, and the export menu
    is off: what is shown is to be had with `download`.
    """
    known: Any = drawing  # every chart has these; only the union of their classes does not say so
    if isinstance(drawing, alt.Chart | alt.LayerChart):
        known = known.properties(height=height)
    known = known.properties(usermeta={"embedOptions": {"actions": False}})
    known = known.configure_range(category=PALETTE).configure_view(stroke=None).configure_bar(color=BLUE)
    known = known.configure_line(color=BLUE, strokeWidth=2).configure_point(color=BLUE, filled=True, size=60)
    known = known.configure_axis(
        labelFontSize=12, titleFontSize=12, labelColor=INK, titleColor=BLACK, gridColor="#e5e8ec", labelLimit=160
    )
    known = known.configure_legend(
        orient="top", columns=2, labelFontSize=12, titleFontSize=12, labelColor=BLACK, labelLimit=220, symbolLimit=8
    )
    # Streamlit's own theme would take the palette, the legend and the colours of the text back.
    st.altair_chart(known, width="stretch", theme=None, alt=says)
    st.html(f'<div class="hr-says">{html.escape(says)}</div>')


def download(found: Sequence[Row], name: str, *, label: str = "Download as CSV") -> None:
    """A button that gives these rows, all of them, as `name`.csv; what a spreadsheet could take for a formula is text.

    `name` is made of letters, digits and dashes, and one page uses it once. Nothing is drawn for no rows.
    """
    if not found:
        return
    header = list(found[0])
    lines = [[_cellular(row.get(key)) for key in header] for row in found]
    st.download_button(
        f"{label} ({counted(len(found), 'row')})",
        data=lambda: spreadsheets.csv_text(header, lines).encode("utf-8-sig"),
        file_name=f"{name}.csv",
        mime="text/csv",
        key=f"download-{name}",
        on_click="ignore",
    )


def _cellular(value: Any) -> Any:
    match value:
        case dict() | list():
            return canonical(cast(JsonValue, value)).decode()
        case datetime() | date():
            return value.isoformat()
        case _:
            return value


def chosen(
    label: str, key: str, options: Sequence[str], *, says: Callable[[str], str] = str, resets: Sequence[str] = ()
) -> str:
    """One of several, kept in the address (`?key=…`), so that a page can be sent to somebody. Needs an option.

    `resets` are keys of the address that speak of what is chosen here, and mean nothing once another is.
    """
    asked = st.query_params.get(key, options[0])
    start = options.index(asked) if asked in options else 0
    found = st.selectbox(label, options, index=start, format_func=says)
    if st.query_params.get(key) != found:
        if st.query_params.get(key) in options:
            for other in resets:
                st.query_params.pop(other, None)
        st.query_params[key] = found
    return found


def workload() -> str | None:
    """The workload that a page is about, from the address or chosen; None (and an empty state) when there is none."""
    names = [str(row["workload"]) for row in queries.rows("SELECT DISTINCT workload FROM runs ORDER BY workload")]
    if not names:
        empty("There is no run yet.", "headrace run support-triage")
        return None
    if st.query_params.get("workload", names[0]) not in names:
        st.warning("There is no run of the workload that the address asks for. What is shown is another.")
    return chosen("Workload", "workload", names, resets=OF_A_WORKLOAD)


def counted(n: int, what: str) -> str:
    """How many there are of a thing whose plural ends in s: `1 row`, `1,234 rows`."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 as per cent."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def usd(amount: float | None) -> str:
    """Dollars, with as many places as it takes to see something: two digits at least of what is not 0."""
    if amount is None:
        return "–"
    if abs(amount) >= 10:
        return f"${amount:,.2f}"
    return f"${amount:.{max(4, 1 - math.floor(math.log10(abs(amount)))) if amount else 4}f}"


def usd_interval(ends: Any, *, times: float = 1.0) -> str:
    """An interval of dollars, with the places of `usd`."""
    return f"[{usd(times * ends[0])}, {usd(times * ends[1])}]" if ends else "not known"


def proportion(rate: float, n: int) -> Estimate:
    """A share of n rows with its interval (Wilson's, as for every 0/1 quality)."""
    ones = round(rate * n)
    return estimate(np.repeat(np.array([1.0, 0.0]), [ones, n - ones]))


def interval(ends: Any) -> str:
    """An interval as people write it."""
    return f"[{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "not known"
