"""What a run's calls took: seconds, tokens, money, and what went wrong with them."""

from typing import Any

import altair as alt
import streamlit as st

from dashboards import queries
from dashboards.parts import BLUE, ORANGE, chart, download, empty, figure, plotted, table, usd
from dashboards.queries import Row
from domain.workloads import TierName

PAID, SPARED = "paid", "answered by the ledger"


def histograms(run: Row) -> None:
    """Seconds and tokens of a tier's calls."""
    st.header("Latency and tokens of a call", anchor=False)
    latencies = queries.rows("SELECT * FROM run_latencies WHERE run_id = :run ORDER BY tier, low_s", run=run["run_id"])
    tokens = queries.rows("SELECT * FROM run_tokens WHERE run_id = :run ORDER BY tier, kind, low", run=run["run_id"])
    if not latencies and not tokens:
        empty("No call was made for a row in this run.", f"headrace show {run['run_id'][:8]}")
        return
    quantiles = _quantiles(run) if latencies else {}
    for column, tier in zip(st.columns(2), TierName, strict=True):
        with column:
            mine = [row for row in latencies if row["tier"] == tier]
            if mine:
                calls, half, most = quantiles[tier]
                says = (
                    f"Seconds of a {tier} call: median {half:.2f} s, 95th percentile {most:.2f} s, "
                    f"n = {calls:,} calls paid for and answered."
                )
                chart(_histogram(mine, ("low_s", "high_s"), "calls", f"Seconds of a {tier} call"), says, height=200)
            _tokens([row for row in tokens if row["tier"] == tier], tier)
    took = [{"tier": tier, "calls": n, "p50_s": half, "p95_s": most} for tier, (n, half, most) in quantiles.items()]
    download(latencies, "latencies", label="Latencies as CSV")
    download(took, "latency-quantiles", label="Median and 95th percentile as CSV")
    download(tokens, "tokens", label="Tokens as CSV")


def _tokens(mine: list[Row], tier: str) -> None:
    for kind in ("prompt", "completion"):
        bins = [row for row in mine if row["kind"] == kind]
        if not bins:
            continue
        n, total = sum(row["answers"] for row in bins), sum(row["tokens"] for row in bins)
        says = (
            f"{kind.capitalize()} tokens of a {tier} answer: mean {total / n:,.1f}, n = {n:,}, the ledger's included."
        )
        chart(_histogram(bins, ("low", "high"), "answers", f"{kind.capitalize()} tokens, {tier}"), says, height=160)


def _quantiles(run: Row) -> dict[str, tuple[int, float, float]]:
    """Calls, median and 95th percentile of the seconds by tier: as the run wrote them at its end, else counted now."""
    if told := run["summary"].get("latency_s"):
        return {tier: (row["calls"], row["p50"], row["p95"]) for tier, row in told.items()}
    found = queries.rows("SELECT * FROM run_latency_quantiles WHERE run_id = :run", run=run["run_id"])
    return {row["tier"]: (row["calls"], row["p50_s"], row["p95_s"]) for row in found}


def _histogram(bins: list[Row], ends: tuple[str, str], height: str, title: str) -> alt.Chart:
    low, high = ends
    x = alt.X(f"{low}:Q", title=f"{title} (log scale)", scale=alt.Scale(type="log"), axis=alt.Axis(tickCount=5))
    y = alt.Y(f"{height}:Q", title=height.capitalize())
    return alt.Chart(plotted(bins)).mark_bar(stroke="#ffffff").encode(x=x, x2=f"{high}:Q", y=y, y2=alt.Y2Datum(0))


def cost(run: Row) -> None:
    """What was paid, what the ledger spared, by stage and tier."""
    st.header("Cost", anchor=False)
    found = queries.rows("SELECT * FROM run_calls WHERE run_id = :run ORDER BY stage, tier, cached", run=run["run_id"])
    if not found:
        empty("This run has made no call.", f"headrace show {run['run_id'][:8]}")
        return
    paid, spared = [row for row in found if not row["cached"]], [row for row in found if row["cached"]]
    left, right = st.columns(2)
    with left:
        tokens = sum(row["prompt_tokens"] + row["completion_tokens"] for row in paid)
        detail = f"USD at list price; {_sum(paid, 'calls'):,} calls to the models, {tokens:,} tokens"
        figure("Paid", usd(sum(row["usd"] for row in paid)), detail)
    with right:
        detail = f"USD at list price; {_sum(spared, 'calls'):,} calls answered by the ledger"
        figure("Spared", usd(sum(row["usd"] for row in spared)), detail)
    lines = split_cost(found)
    drawing = (
        alt.Chart(plotted(lines))
        .mark_bar()
        .encode(
            x=alt.X("usd:Q", title="USD at list price"),
            y=alt.Y("where:N", sort=None, title=None),
            color=alt.Color("way:N", title="Calls", scale=alt.Scale(domain=[PAID, SPARED], range=[BLUE, ORANGE])),
            tooltip=["where:N", "way:N", "usd:Q", "calls:Q"],
        )
    )
    chart(drawing, "USD by stage and tier: paid for, and spared because the ledger knew the answer.", height=180)
    columns = {
        "where": "Stage, tier",
        "way": "Calls",
        "calls": "n",
        "prompt_tokens": "Prompt tokens",
        "prefix_tokens": "of them cached prefix",
        "completion_tokens": "Completion tokens",
        "usd": "USD",
    }
    table(lines, columns, name="Cost by stage and tier")
    download(lines, "cost")


def split_cost(found: list[Row]) -> list[Row]:
    """Calls, tokens and USD by stage, tier and way (paid for, or answered by the ledger), their endings together."""
    summed: dict[tuple[str, str, bool], Row] = {}
    for row in found:
        where = f"{row['stage']}, {row['tier']}"
        start = {"where": where, "way": SPARED if row["cached"] else PAID}
        line = summed.setdefault((row["stage"], row["tier"], row["cached"]), start)
        for name in ("calls", "prompt_tokens", "prefix_tokens", "completion_tokens", "usd"):
            line[name] = line.get(name, 0) + row[name]
    return list(summed.values())


def _sum(found: list[Row], name: str) -> Any:
    return sum(row[name] for row in found)


def trouble(run: Row) -> None:
    """Rows that were asked again, and calls that were not answered."""
    st.header("Re-asks and errors", anchor=False)
    asked = queries.rows("SELECT * FROM run_reasks WHERE run_id = :run ORDER BY tier, reasks", run=run["run_id"])
    again = {tier: [row for row in asked if row["tier"] == tier] for tier in sorted({row["tier"] for row in asked})}
    for tier, mine in again.items():
        n, more = _sum(mine, "answers"), sum(row["answers"] for row in mine if row["reasks"])
        figure(f"Rows asked again, {tier}", f"{more:,}", f"of n = {n:,} rows; {_sum(mine, 'invalid'):,} stayed invalid")
    download(asked, "reasks", label="Re-asks as CSV")
    calls = queries.rows("SELECT * FROM run_calls WHERE run_id = :run AND outcome <> 'answered'", run=run["run_id"])
    if not calls:
        st.text("Every call was answered.")
        return
    errors = sorted(calls, key=lambda row: -row["calls"])
    columns = {"outcome": "Ending", "stage": "Stage", "tier": "Tier", "calls": "Calls", "example": "Example"}
    table(errors, columns, name="Calls that were not answered")
    download([{key: row[key] for key in columns} for row in errors], "errors")
