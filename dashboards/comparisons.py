"""What a comparison of two runs or bundles shows: differences with intervals, flipped rows, differing parts."""

import html
from collections.abc import Sequence
from dataclasses import replace

import altair as alt
import streamlit as st

from dashboards import flips, paired_runs, texts
from dashboards.paired_runs import AMOUNTS, Compared, Measure, Overall, Pair, overall
from dashboards.parts import BLACK, BLUE, chart, chosen, download, figure, plotted, spread, table, usd
from dashboards.queries import Row
from dashboards.samples import share_of
from domain.bundle_diffs import diff_bundles
from domain.bundles import Bundle
from domain.canonical import canonical
from domain.run_diffs import Rule

LABELS = {
    Measure.QUALITY: "Quality, by the workload's metric",
    Measure.STRONG: "Answered by the strong tier",
    Measure.VALID: "Valid answer",
    Measure.USD: "USD per 1,000 rows",
    Measure.TOKENS: "Tokens per row",
}

COLUMNS = {
    "measure": "Measure",
    "a": "Mean of A",
    "b": "Mean of B",
    "difference": "B less A [95 % interval]",
    "n": "n rows",
    "up": "Rows up",
    "down": "Rows down",
    "p": "p",
    "method": "Method",
}


def differences(pair: Pair, *, ended: bool) -> tuple[Pair, Overall]:
    """Each measure's paired difference with its interval, as forest plot, table and download.

    Returns the pair with the share of the rows that is looked at, and what they came to.
    """
    st.header("Differences, B less A", anchor=False)
    pair, rows = _looked_at(pair)
    found = overall(pair, ended=ended)
    columns = st.columns(3)
    with columns[0]:
        what = "Test rows in both" if pair.a.bundle else "Rows in both"
        figure(what, f"{found.both:,}", _besides(pair, rows, found.both))
    with columns[1]:
        figure("Ended in another way", f"{found.flips:,}", _share(found.flips, found.both))
    with columns[2]:
        other = found.flips - found.fixed - found.broken
        detail = f"{other:,} more with quality equal or not known"
        figure("Fixed / broken", f"{found.fixed:,} / {found.broken:,}", detail)
    if not found.both:
        st.info("No row ended in both: there is nothing to compare.")
        return pair, found
    if not pair.one_metric:
        st.warning("Quality is not comparable: A and B were scored by two metrics.")
        table([{"a": pair.a.metric, "b": pair.b.metric}], {"a": "Metric of A", "b": "Metric of B"}, name="Metrics")
    elif all(one.measure is not Measure.QUALITY for one in found.measures):
        st.info("Quality is not known: no row of these has a gold answer and a score in both.")
    _forest(found.measures)
    order = list(LABELS)
    measures = sorted(found.measures, key=lambda one: order.index(one.measure))
    table([_line(one) for one in measures], COLUMNS, name="Differences")
    scored = "quality of scored rows" + (" (0 for a row in quarantine)" if pair.a.bundle else ", none in quarantine")
    st.caption(
        f"Each line is of the rows that have the measure in both: {scored}, USD and validity of rows that ended in "
        "both, tier and tokens of rows that both answered. USD of a row in quarantine is what was spent on it. Tokens "
        "are of every call that led to the answers in use. Intervals are two-sided, each for itself."
    )
    download([_exact(one) for one in measures], "compare-differences")
    return pair, found


def _looked_at(pair: Pair) -> tuple[Pair, tuple[int, int]]:
    """The pair with the share of its rows that is looked at, and how many rows ended in either."""
    rows = paired_runs.ended_alone(pair.a), paired_runs.ended_alone(pair.b)
    share = share_of(min(rows))
    if share == 1:
        return pair, rows
    which = {"some": f"one in {1 / share:,.0f}, chosen by hash", "all": "all of them, which takes a while"}
    if chosen(f"Rows looked at, of {min(rows):,}", "rows", list(which), says=which.__getitem__) == "all":
        return pair, rows
    return replace(pair, share=share), rows


def _besides(pair: Pair, rows: tuple[int, int], both: int) -> str:
    if pair.share < 1:
        return f"a sample of one in {1 / pair.share:,.0f}, of {rows[0]:,} rows in A and {rows[1]:,} in B"
    return f"{rows[0] - both:,} only in A, {rows[1] - both:,} only in B"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} % of the rows in both" if whole else "of no rows"


def _line(one: Compared) -> Row:
    found = one.difference

    def says(value: float, *, signed: bool = False) -> str:
        if one.measure not in AMOUNTS:
            return f"{value:+.3f}" if signed else f"{value:.3f}"
        if one.measure is Measure.USD:
            return f"{value:+.4f}" if signed else usd(value)
        return f"{value:+,.1f}" if signed else f"{value:,.1f}"

    low, high = says(found.low, signed=True), says(found.high, signed=True)
    return {
        "measure": LABELS[one.measure],
        "a": says(one.before),
        "b": says(one.after),
        "difference": f"{says(found.mean, signed=True)} [{low}, {high}]",
        "n": found.n,
        "up": found.up,
        "down": found.down,
        "p": f"{found.p_value:.3g}",
        "method": found.method,
    }


def _exact(one: Compared) -> Row:
    found = one.difference
    return {
        "measure": one.measure.value,
        "mean_a": one.before,
        "mean_b": one.after,
        "difference": found.mean,
        "low_95": found.low,
        "high_95": found.high,
        "n": found.n,
        "rows_up": found.up,
        "rows_down": found.down,
        "p_value": found.p_value,
        "method": found.method,
    }


def _forest(found: Sequence[Compared]) -> None:
    """Two forest plots, since shares and amounts have no scale in common."""
    shares = [one for one in found if one.measure not in AMOUNTS]
    amounts = [one for one in found if one.measure in AMOUNTS and one.before]
    if shares:
        _plot([_point(one, 1.0) for one in shares], "percentage points")
    if amounts:
        _plot([_point(one, one.before) for one in amounts], "per cent of A's mean")


def _point(one: Compared, scale: float) -> Row:
    found = one.difference
    name = (
        "Strong tier"
        if one.measure is Measure.STRONG
        else LABELS[one.measure].removesuffix(", by the workload's metric")
    )
    return {
        "measure": name,
        **{key: 100 * getattr(found, key) / scale for key in ("mean", "low", "high")},
        "n": found.n,
    }


def _plot(points: list[Row], unit: str) -> None:
    y = alt.Y("measure:N", title=None, sort=[point["measure"] for point in points])
    base = alt.Chart(plotted(points))
    zero = alt.Chart(plotted([{"zero": 0}])).mark_rule(color=BLACK, strokeDash=[4, 4]).encode(x="zero:Q")
    scale = spread(point[end] for point in points for end in ("low", "high"))
    bars = base.mark_rule(strokeWidth=3, color=BLUE).encode(
        x=alt.X("low:Q", title=f"B less A, {unit}", scale=scale), x2="high:Q", y=y
    )
    dots = base.mark_point().encode(
        x="mean:Q",
        y=y,
        tooltip=[
            alt.Tooltip("measure:N", title="Measure"),
            *(alt.Tooltip(f"{key}:Q", format="+.3f", title=f"{key}, {unit}") for key in ("mean", "low", "high")),
            alt.Tooltip("n:Q", format=","),
        ],
    )
    says = "; ".join(
        f"{point['measure']} {point['mean']:+.2f} [{point['low']:+.2f}, {point['high']:+.2f}], n = {point['n']:,}"
        for point in points
    )
    chart(zero + bars + dots, f"B less A in {unit}, with 95 % intervals: {says}.", height=60 + 40 * len(points))


def flipped(pair: Pair, found: Overall, *, rules: tuple[Rule, Rule]) -> None:
    """The rows that ended in another way, filtered and paged; `rules` as in `domain.run_diffs.behind`."""
    st.header("Rows that ended in another way", anchor=False)
    left, middle, right = st.columns(3)
    with left:
        kind = chosen("Which", "kind", list(flips.KINDS), says=flips.KINDS.__getitem__)
    with middle:
        move = chosen("Tiers of A, then of B", "tiers", list(flips.MOVES), says=flips.MOVES.__getitem__)
    total = flips.count(pair, found, kind, move)
    if not total:
        st.info("No row of these ended in another way.")
        return
    pages = -(-min(total, flips.MOST) // flips.PAGE)
    with right:
        number = int(st.number_input(f"Page, of {pages:,}", min_value=1, max_value=pages, value=1, step=1)) - 1
    _page(pair, kind, move, number, total, rules=rules)


def _page(pair: Pair, kind: str, move: str, number: int, total: int, *, rules: tuple[Rule, Rule]) -> None:
    found = flips.page(pair, kind, move, number, rules=rules)
    first = number * flips.PAGE + 1
    reach = f"; the first {flips.MOST:,} can be leafed through" if total > flips.MOST else ""
    st.caption(f"{first:,} to {first + len(found) - 1:,} of {total:,} rows, in the order of their keys{reach}.")
    st.html("".join(map(_flip, found)))
    download(found, "compare-flips", label="Download these rows as CSV")
    if not pair.a.bundle:
        st.caption("All of them, with what each is put down to, as JSON:")
        st.code(f"headrace diff {pair.a.run_id} {pair.b.run_id} --json", language="console", wrap_lines=True)


def _flip(row: Row) -> str:
    place = f"{row['file']}, line {row['line']}" if row["line"] is not None else str(row["file"])
    # Text that runs from right to left, or says that what follows does, is kept to itself.
    title = f"Row <bdi>{html.escape(row['record_id'][:200])}</bdi>: {html.escape(row['kind'])}"
    inputs = texts.block(row["inputs"], name=f"Input of row {row['record_id'][:80]}")
    if row["inputs_b"] != row["inputs"]:
        inputs += "<p>Input in B:</p>" + texts.block(row["inputs_b"], name=f"Input in B of row {row['record_id'][:80]}")
    gold = f"<p>Gold: <b>{html.escape(texts.shown(row['gold'])[:500])}</b></p>" if row["gold"] else ""
    return (
        f'<div class="hr-row"><h3>{title}</h3>'
        f'<p class="aside"><bdi>{html.escape(place)}</bdi> · {html.escape(row["split"])} · '
        f"put down to: {html.escape(row['parts'])}</p>{inputs}{gold}"
        f'<div class="hr-sides">{_end(row, "a")}{_end(row, "b")}</div></div>'
    )


def _end(row: Row, side: str) -> str:
    tier, confidence, quality = row[f"tier_{side}"], row[f"confidence_{side}"], row[f"quality_{side}"]
    if tier is None:
        body = f"<p>quarantined: <bdi>{html.escape(str(row[f'reason_{side}'])[:500])}</bdi></p>"
        return f"<div><p><b>{side.upper()}</b></p>{body}</div>"
    facts = [
        f"{tier} tier",
        "no confidence" if confidence is None else f"confidence {confidence:.3f}",
        "not scored" if quality is None else f"quality {quality:.2f}",
        usd(1000 * row[f"usd_{side}"]) + " per 1,000",
    ]
    answer = texts.block(row[f"output_{side}"], name=f"Answer of {side.upper()} to row {row['record_id'][:80]}")
    return f"<div><p><b>{side.upper()}</b> {html.escape(' · '.join(facts))}</p>{answer}</div>"


def differing_parts(before: Bundle, after: Bundle) -> None:
    """Prompts and schema as unified diffs, everything else value by value."""
    found = diff_bundles(before, after)
    if found.identical:
        st.info(f"Both are the same bundle, {before.hash[:12]}: nothing differs.")
        return
    for name, text in found.prompts.items():
        _diff(f"Prompt of the {name.value} tier", text)
    _diff("Output schema", found.schema)
    if found.changed:
        st.html("<h3>Other parts</h3>")
        rows = [{"part": part.name, "a": _short(part.before), "b": _short(part.after)} for part in found.changed]
        table(rows, {"part": "Part", "a": "A", "b": "B"}, name="Other parts of the bundles")
        download([{"part": p.name, "a": p.before, "b": p.after} for p in found.changed], "compare-bundle-parts")


def _diff(title: str, text: str) -> None:
    st.html(f"<h3>{html.escape(title)}</h3>")
    st.html(texts.unified(text, name=title) if text else "<p>equal</p>")


def _short(value: object) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else canonical(value).decode()  # pyright: ignore[reportArgumentType]
    return text if len(text) <= 200 else f"{text[:200]}…"
