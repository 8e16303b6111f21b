"""Charts of the page Quality: how scores are spread, and which labels are taken for which."""

import altair as alt

from dashboards.parts import BLACK, BLUE, chart, plotted
from dashboards.qualities import BINS
from dashboards.queries import Row


def estimated(row: Row) -> str:
    """A mean with its 95 % interval, as people write it."""
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def histogram(metric: str, found: list[Row], *, own: bool) -> None:
    """A metric's scores of each tier in tenths of [0, 1]; `own` says that it is the workload's."""
    points: list[Row] = [
        {
            "tier": f"{row['tier']} tier",
            "score": f"{number / BINS:.1f} to {(number + 1) / BINS:.1f}",
            "percent": 100 * count / row["n"],
            "rows": count,
        }
        for row in found
        for number, count in enumerate(row["bins"])
    ]
    order = [f"{number / BINS:.1f} to {(number + 1) / BINS:.1f}" for number in range(BINS)]
    title = metric[:80] + (", the workload's metric" if own else "")
    drawing = (
        alt.Chart(plotted(points))
        .mark_bar()
        .encode(
            x=alt.X("score:N", title=f"Score, {title}", sort=order, axis=alt.Axis(labelAngle=-45)),
            xOffset=alt.XOffset("tier:N"),
            y=alt.Y("percent:Q", title="Answers, per cent"),
            color=alt.Color("tier:N", title=None),
            tooltip=["tier:N", "score:N", alt.Tooltip("rows:Q", format=","), alt.Tooltip("percent:Q", format=".1f")],
        )
    )
    said = "; ".join(f"{row['tier']} tier mean {estimated(row)}, n = {row['n']:,}" for row in found)
    chart(drawing, f"Distribution of {title}, in per cent of each tier's answers: {said}.", height=220)


def heat(rows: list[Row], labels: list[str], said: str, field: str) -> None:
    """Gold labels down, answered ones across; `said` is what it comes to, `field` the one that decides."""
    base = alt.Chart(plotted(rows)).encode(
        x=alt.X("said:N", title=f"Answered, {field}", sort=labels, axis=alt.Axis(labelAngle=-45, orient="bottom")),
        y=alt.Y("gold:N", title=f"Gold, {field}", sort=labels),
        tooltip=["gold:N", "said:N", alt.Tooltip("rows:Q", format=","), alt.Tooltip("percent:Q", format=".1f")],
    )
    scale = alt.Scale(domain=[0, 100], range=["#ffffff", BLUE], interpolate="lab")
    cells = base.mark_rect(stroke="#d5dae0").encode(
        color=alt.Color("percent:Q", title="Per cent of the gold label", scale=scale)
    )
    counts = base.mark_text(fontSize=11).encode(
        text=alt.Text("rows:Q", format=","),
        color=alt.condition("datum.percent > 75", alt.value("#ffffff"), alt.value(BLACK)),
    )
    chart(
        cells + counts,
        f"Gold labels (down) against answered ones (across), rows each: {said}.",
        height=110 + 26 * len(labels),
    )
