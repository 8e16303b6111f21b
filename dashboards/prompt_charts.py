"""Charts of the page Prompts: quality of each version, and what its search gained against what it cost."""

from collections.abc import Sequence

import altair as alt

from dashboards.parts import BLACK, chart, plotted, spread, usd
from dashboards.queries import Row

SAID = 6
"""Versions that a chart's words name."""
_ENDS = (("gain", "gain"), ("low", "low_gain"), ("high", "high_gain"))


def and_more(found: Sequence[Row]) -> str:
    """What is to be said of the others."""
    return f"; and {len(found) - SAID} more, in the table" if len(found) > SAID else ""


def name_of(row: Row) -> str:
    """A version in short: tier, hash, and the beginning of its compile key, since several compiles may end alike."""
    return f"{row['tier']} {row['hash'][:6]} {row['key'][:2]}"


def scores(points: list[Row]) -> alt.LayerChart | alt.FacetChart:
    """Held-out quality as written and of the best candidate, with intervals, a version beside the other."""
    base = alt.Chart(plotted(points)).encode(
        x=alt.X("name:N", title="Version, oldest first", sort=None, axis=alt.Axis(labelAngle=0, labelLimit=110)),
        xOffset=alt.XOffset("which:N", sort=["as written", "best candidate"]),
        color=alt.Color("which:N", title=None),
        tooltip=[
            alt.Tooltip("name:N", title="Version"),
            alt.Tooltip("which:N", title="Prompt"),
            *(alt.Tooltip(f"{key}:Q", format=".3f") for key in ("score", "low", "high")),
            alt.Tooltip("n:Q", title="held-out rows"),
        ],
    )
    scale = alt.Scale(domain=[0, 1])
    bars = base.mark_rule(strokeWidth=2).encode(
        y=alt.Y("low:Q", title="Quality on held-out rows", scale=scale), y2="high:Q"
    )
    shape = alt.Shape("which:N", title=None)
    dots = base.mark_point(filled=True, size=90, opacity=1).encode(y=alt.Y("score:Q", scale=scale), shape=shape)
    names = base.mark_text(dy=-12, fontSize=12).encode(
        y=alt.Y("high:Q", scale=scale), text="alias:N", color=alt.value(BLACK)
    )
    return alt.layer(bars, dots, names)


def gains(known: list[Row]) -> None:
    """Percentage points gained against USD."""
    points: list[Row] = [
        {
            "name": name_of(row),
            "tier": f"{row['tier']} tier",
            "usd": row["usd"],
            **{name: 100 * row[key] for name, key in _ENDS if row[key] is not None},
        }
        for row in known
    ]
    if not points:
        return
    x = alt.X("usd:Q", title="Cost of the search, USD at list price")
    colour = alt.Color("tier:N", title=None)
    ends = [point[name] for point in points for name, _ in _ENDS if name in point]
    dots = (
        alt.Chart(plotted(points))
        .mark_point(filled=True, size=110)
        .encode(
            x=x,
            y=alt.Y("gain:Q", title="Gain on held-out rows, percentage points", scale=spread(ends)),
            color=colour,
            shape=alt.Shape("tier:N", title=None),
            tooltip=["name:N", alt.Tooltip("usd:Q", format=".4f"), alt.Tooltip("gain:Q", format="+.1f")],
        )
    )
    sure = [point for point in points if "low" in point]
    bars = alt.Chart(plotted(sure)).mark_rule(strokeWidth=2).encode(x=x, y="low:Q", y2="high:Q", color=colour)
    says = "; ".join(f"{point['name']}: {point['gain']:+.1f} points for {usd(point['usd'])}" for point in points[:SAID])
    drawing = alt.layer(bars, dots) if sure else dots
    chart(
        drawing,
        f"What a search gained on the held-out rows, against its cost: {says}{and_more(points)}.",
        height=240,
    )
