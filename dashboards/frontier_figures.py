"""What a frontier looks like: the chart of all thresholds, the figures of one, and what the confidence is worth."""

from typing import Any

import altair as alt
import streamlit as st

from dashboards import frontiers
from dashboards.frontiers import Frontier, Point
from dashboards.parts import (
    BLACK,
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    chart,
    download,
    figure,
    interval,
    percent,
    plotted,
    proportion,
    table,
    usd,
    usd_interval,
)
from dashboards.queries import Row
from domain.workloads import SignalName

CHANCES = (SignalName.PROBABILITY, SignalName.ISOTONIC, SignalName.P_TRUE, SignalName.SELF_CONSISTENCY)
"""Signals that claim to be the chance that the cheap answer is right."""
LOOKS = {
    "certified": (GREEN, "circle"),
    "not certified": (ORANGE, "cross"),
    "deployed": (BLUE, "diamond"),
    "chosen": (BLACK, "square"),
    "cheap alone": (PURPLE, "triangle-down"),
    "strong alone": (RED, "triangle-up"),
}
CALIBRATION, TEST = "calibration", "test"
QUALITY, LOST, ESCALATED, COST = "Quality", "Quality lost against all-strong", "Escalated", "Cost of 1,000 rows"
ON_THE_CURVE = "datum.what === 'certified' || datum.what === 'not certified'"


def points(found: Frontier, place: int, deployed: float | None) -> list[Row]:
    """What the frontier's chart shows: each threshold, the chosen and the deployed one, and either tier alone."""
    lines = [
        {
            "what": "certified" if found.certified(i) else "not certified",
            "threshold": point.threshold,
            "usd": 1000 * point.cost,
            "quality": point.quality,
            "escalated": 1 - point.kept,
            "gap": point.gap,
            "p_value": point.p_value,
        }
        for i, point in enumerate(found.tuned.curve)
    ]
    lines.append({**lines[place], "what": "chosen"})
    if deployed is not None:
        cost, quality = frontiers.of_threshold(found, deployed)
        lines.append({"what": "deployed", "threshold": deployed, "usd": 1000 * cost, "quality": quality})
    alone = (("cheap alone", found.tuned.cheap), ("strong alone", found.tuned.strong))
    return lines + [{"what": what, "usd": 1000 * tier.cost, "quality": tier.quality} for what, tier in alone]


def draw(found: Frontier, place: int, deployed: float | None) -> None:
    """Cost against quality of every threshold, what is certified among them, and where the chosen one is."""
    st.header("Cost and quality of every threshold", anchor=False)
    shown = points(found, place, deployed)
    kinds = [kind for kind in LOOKS if any(row["what"] == kind for row in shown)]
    x = alt.X("usd:Q", title="USD per 1,000 rows, list price", scale=alt.Scale(zero=False))
    y = alt.Y("quality:Q", title="Quality (share of 1)", scale=alt.Scale(zero=False))
    colours, shapes = [LOOKS[kind][0] for kind in kinds], [LOOKS[kind][1] for kind in kinds]
    dots = (
        alt.Chart(plotted(shown))
        .mark_point(filled=True, opacity=0.9)
        .encode(
            x=x,
            y=y,
            color=alt.Color("what:N", title="Point", scale=alt.Scale(domain=kinds, range=colours)),
            shape=alt.Shape("what:N", title="Point", scale=alt.Scale(domain=kinds, range=shapes)),
            size=alt.condition(ON_THE_CURVE, alt.value(35), alt.value(160)),
            tooltip=[alt.Tooltip(f"{name}:Q", format=".4g") for name in ("threshold", "usd", "quality", "escalated")],
        )
    )
    floor = found.target.floor(found.tuned.strong.quality)
    line = alt.Chart(plotted([{"quality": floor}])).mark_rule(strokeDash=[6, 4], color=RED).encode(y="quality:Q")
    tested = tested_points(found)
    drawing = alt.Chart(plotted(tested)).mark_line(color=INK, strokeDash=[2, 2]).encode(x=x, y=y, order="place:Q")
    region = [row["usd"] for row in shown if row["what"] == "certified"]
    area = alt.Chart(plotted([{"from": min(region), "to": max(region)}] if region else [])).mark_rect(
        color=GREEN, opacity=0.12
    )
    proven = f"certified from {usd(min(region))} to {usd(max(region))}, shaded" if region else "none is certified"
    dotted = (
        f"Dotted: the same thresholds on n = {len(found.test):,} test rows." if tested else "There are no test rows."
    )
    says = (
        f"{len(found.tuned.curve)} thresholds on n = {len(found.calibration):,} calibration rows: {proven}. {dotted} "
        f"Dashed: the lowest quality allowed on these rows, {floor:.3f}."
    )
    layers = [area.encode(x="from:Q", x2="to:Q"), line, drawing, dots] if region else [line, drawing, dots]
    chart(alt.layer(*layers), says, height=360)
    download(shown[: len(found.tuned.curve)], "frontier", label="Calibration rows as CSV")
    download(tested, "frontier-test", label="Test rows as CSV")


def tested_points(found: Frontier) -> list[Row]:
    """Cost, USD per 1,000 rows, and quality of every threshold on the test rows, in the order of the curve."""
    curve, n = frontiers.test_curve(found), len(found.test)
    return [
        {"place": i, "threshold": point.threshold, "usd": 1000 * cost, "quality": quality, "n": n}
        for i, (point, (cost, quality)) in enumerate(zip(found.tuned.curve, curve, strict=bool(curve)))
    ]


def figures(found: Frontier, point: Point, *, certified: bool) -> None:
    """What the chosen threshold comes to on the calibration and on the test rows."""
    st.header("The chosen threshold", anchor=False)
    seen, strong, n = point.seen, found.tuned.strong, point.n
    verdict = "Certified" if certified else "Not certified"
    if seen.passed and found.counts and not certified:
        verdict = "Passed, but saves nothing"
    told = f"p = {seen.p_value:.3g} at level {found.level:.4g}, {found.tuned.verdict.test}; n = {n:,}"
    figure(f"Threshold {seen.threshold:.4f}", verdict, f"{told}; {seen.worse:,} rows worse, {seen.better:,} better")
    lines = measured(found, point)
    saved = f"; saves {1 - seen.cost / strong.cost:.1%}" if strong.cost else ""
    more = {
        (CALIBRATION, LOST): f"; all-strong {strong.quality:.3f}",
        (CALIBRATION, COST): f"; all-strong {usd(1000 * strong.cost)}{saved}",
        (TEST, lost_on_test(found)): f", {point.test_loss.method}",
    }
    for column, rows in zip(st.columns(2), (CALIBRATION, TEST), strict=True):
        with column:
            for row in lines:
                if row["rows"] == rows:
                    _measure(row, more.get((rows, row["measure"]), ""))
    download(lines, "chosen-threshold")


def lost_on_test(found: Frontier) -> str:
    """What the loss on the test rows is measured against."""
    return f"Quality lost {found.target.lost_against}"


def measured(found: Frontier, point: Point) -> list[Row]:
    """The figures of a threshold on either rows, each with its 95 % interval and n: shares of 1, and USD. On no rows
    nothing is known."""
    seen, tested, loss = point.seen, point.tested, point.test_loss
    escalated = (proportion(1 - seen.kept, point.n), proportion(point.test_escalated, tested.n))
    known: list[tuple[str, str, float, Any]] = [
        (CALIBRATION, QUALITY, seen.quality, (point.quality.low, point.quality.high)),
        (CALIBRATION, LOST, seen.gap, point.gap_interval),
        (CALIBRATION, ESCALATED, 1 - seen.kept, (escalated[0].low, escalated[0].high)),
        (CALIBRATION, COST, 1000 * seen.cost, _thousand(point.cost_interval)),
        (TEST, QUALITY, tested.mean, (tested.low, tested.high)),
        (TEST, lost_on_test(found), loss.mean, (loss.low, loss.high)),
        (TEST, ESCALATED, point.test_escalated, (escalated[1].low, escalated[1].high)),
        (TEST, COST, 1000 * point.test_usd, _thousand(point.test_cost_interval)),
    ]
    sizes = {CALIBRATION: point.n, TEST: tested.n}
    return [
        {
            "rows": rows,
            "measure": measure,
            "value": value if sizes[rows] else None,
            "low": ends[0] if sizes[rows] and ends else None,
            "high": ends[1] if sizes[rows] and ends else None,
            "n": sizes[rows],
        }
        for rows, measure, value, ends in known
    ]


def _thousand(ends: Any) -> Any:
    return (1000 * ends[0], 1000 * ends[1]) if ends else None


def _measure(row: Row, more: str) -> None:
    label, value, n = f"{row['measure']}, {row['rows']} rows", row["value"], row["n"]
    if value is None:
        figure(label, "not known", f"n = {n:,}")
        return
    ends = None if row["low"] is None else (row["low"], row["high"])
    shown, within = f"{value:.3f}" if row["measure"] == QUALITY else f"{value:+.3f}", interval(ends)
    if row["measure"] == ESCALATED:
        shown, within = percent(value), f"{percent(row['low'])} to {percent(row['high'])}"
    if row["measure"] == COST:
        shown, within = usd(value), usd_interval(ends)
    unit = "USD at list price, " if row["measure"] == COST else ""
    figure(label, shown, f"{unit}95 % interval {within}, n = {n:,}{more}")


def reliability(found: Frontier, signal: SignalName) -> None:
    """How often cheap answers of about equal confidence are right."""
    st.header("What the confidence is worth", anchor=False)
    bins = frontiers.reliability(found)
    if not bins:
        st.text("No calibration row has this confidence.")
        return
    lines = [
        {
            "low": one.low,
            "high": one.high,
            "confidence": one.confidence,
            "right": one.right.mean,
            "right_low": one.right.low,
            "right_high": one.right.high,
            "rows": one.right.n,
        }
        for one in bins
    ]
    title = f"Mean {signal.value} of the bin"
    base = alt.Chart(plotted(lines)).encode(x=alt.X("confidence:Q", title=title))
    y = alt.Y("right_low:Q", title="Cheap quality (share of 1)", scale=alt.Scale(domain=[0, 1]))
    layers: list[Any] = [
        base.mark_rule(strokeWidth=2, color=BLUE).encode(y=y, y2="right_high:Q"),
        base.mark_point(filled=True, size=70, color=BLUE).encode(y="right:Q", tooltip=["right:Q", "rows:Q"]),
    ]
    says = f"Quality of cheap answers by confidence, with 95 % intervals; n = {sum(one.right.n for one in bins):,} rows"
    if signal in CHANCES:
        ends = plotted([{"at": 0.0}, {"at": 1.0}])
        diagonal = alt.Chart(ends).mark_line(color=INK, strokeDash=[4, 4], strokeWidth=1)
        layers.insert(0, diagonal.encode(x=alt.X("at:Q", title=title), y="at:Q"))
        says += ". On the dashed line the confidence is the chance to be right."
    else:
        says += ". This confidence is no probability: it only has to rise with quality."
    chart(alt.layer(*layers), says, height=240)
    _counts(lines, signal)
    columns = {"low": "From", "high": "to", "confidence": "Mean", "right": "Quality", "interval": "95 % interval"}
    said = [{**line, "interval": interval((line["right_low"], line["right_high"]))} for line in lines]
    table(said, {**columns, "rows": "n"}, name="Quality by confidence")
    download(lines, "reliability")


def _counts(lines: list[Row], signal: SignalName) -> None:
    counts = alt.Chart(plotted(lines)).mark_bar(stroke="#ffffff")
    drawn = counts.encode(
        x=alt.X("low:Q", title=signal.value.capitalize()),
        x2="high:Q",
        y=alt.Y("rows:Q", title="Rows"),
        y2=alt.Y2Datum(0),
    )
    chart(drawn, "Rows of each bin, from its least to its largest confidence.", height=120)
