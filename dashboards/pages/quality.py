"""Quality and judges: how scores are spread, where quality is low, which labels are confused, if a judge is right."""

import shlex
from dataclasses import asdict

import altair as alt
import streamlit as st

from dashboards import qualities
from dashboards.parts import BLUE, chart, chosen, download, empty, heading, plotted, table, workload
from dashboards.qualities import ALL, BINS, FEW, MOST_RUNS, SLICES, Sliced
from dashboards.quality_charts import estimated, heat, histogram
from dashboards.queries import Row
from domain.agreements import Agreement

DRAWN_LABELS = 30
"""Labels up to which the confusion is drawn; of more, the table has the pairs."""
SHOWN_PAIRS = 20
"""Wrong pairs in that table."""
JUDGE = """judge:
  enabled: true
  tier: strong  # which of the two tiers judges
  rows: 100     # answers judged, per tier
"""
FEW_SAYS = f"few rows (n < {FEW})"


def show() -> None:
    """The page."""
    heading("Quality and judges", "How good are the answers, where are they bad, and can a judge be trusted?")
    name = workload()
    if name is None:
        return
    runs = {row["run_id"]: row for row in qualities.scored_runs(name)}
    if not runs:
        again = f"headrace run {shlex.quote(name)}"
        empty("No run of this workload has scores: rows are scored where their gold answers are known.", again)
        return
    asked = st.query_params.get("run", "")
    begun = [key for key in runs if asked and key.startswith(asked)]
    if asked and begun != [asked]:
        if len(begun) != 1:
            st.info("The run in the address has no scores; this is the newest that has.")
        st.query_params["run"] = begun[0] if len(begun) == 1 else next(iter(runs))
    run = runs[chosen("Run", "run", list(runs), says=lambda key: _says(runs[key]))]
    if len(runs) == MOST_RUNS:
        st.caption(f"The newest {MOST_RUNS} runs with scores can be chosen.")
    rows, share = qualities.looked_at(run["run_id"])
    if share < 1:
        st.info(f"Of {rows:,} rows one in {1 / share:,.0f} is looked at, chosen by hash.")
    _distributions(run, share)
    split = _final(run, share)
    _confusion(run, share, split)
    _judge(run, name)


def _says(row: Row) -> str:
    return f"{row['run_id'][:8]} {row['kind']} {row['started_at']:%Y-%m-%d %H:%M} {row['state']}"


def _distributions(run: Row, share: float) -> None:
    st.header("Scores by metric and tier", anchor=False)
    found = qualities.distributions(run["run_id"], share)
    for metric in dict.fromkeys(row["metric"] for row in found):
        histogram(metric, [row for row in found if row["metric"] == metric], own=metric == run["metric"])
    rows = [
        {**row, "estimate": estimated(row), "own": "yes" if row["metric"] == run["metric"] else ""} for row in found
    ]
    columns = {"metric": "Metric", "tier": "Tier", "estimate": "Mean [95 %]", "n": "n answers", "own": "Workload's"}
    table(rows, columns, name="Scores by metric and tier")
    st.caption(
        "Every answer of a tier that was scored, of every split, whichever tier was used in the end; an answer that "
        "stayed invalid is worth 0. The judge's verdicts are 1 (right) or 0."
    )
    edges = [f"rows_{number / BINS:.1f}_to_{(number + 1) / BINS:.1f}" for number in range(BINS)]
    download(
        [
            {key: row[key] for key in ("metric", "tier", "n", "mean", "low", "high")}
            | dict(zip(edges, row["bins"], strict=True))
            for row in found
        ],
        "score-distributions",
    )


def _final(run: Row, share: float) -> str:
    """Quality of the final answers of a split, which is chosen here and returned."""
    st.header("Quality of final answers, by slice", anchor=False)
    found = qualities.slices(run["run_id"], share)
    if not found:
        st.info("No final answer of this run was scored.")
        return ALL
    splits = [row["slice"] for row in found[ALL, "split"].lines]
    left, right = st.columns(2)
    with left:
        options = [*sorted(splits, key=lambda name: name != "test"), ALL]
        split = chosen("Rows of the split", "split", options, says=lambda name: "all splits" if name == ALL else name)
    with right:
        by = chosen("Slice by", "by", list(SLICES), says=SLICES.__getitem__)
    of = ALL if by == "split" else split
    _slices(found[of, by], by, "rows of every split" if of == ALL else f"{of} rows")
    st.caption(
        "A row in quarantine has no valid answer and is worth 0, as in the certificate. The threshold was chosen on "
        "the calibration rows: what it comes to is seen on the test rows. Intervals are each for itself: of many "
        "slices some look bad, or good, by chance."
    )
    lines = [{"rows_of": of, "by": by, **row} for (of, by), part in found.items() for row in part.lines]
    cut = any(part.slices > len(part.lines) for part in found.values())
    which = f"the {qualities.MOST_SLICES} largest slices of each kind and split" if cut else "all slices"
    download(lines, "quality-slices", label=f"Download {which} as CSV")
    return split


def _slices(found: Sliced, by: str, of: str) -> None:
    rows: list[Row] = [
        {**row, "estimate": estimated(row), "note": FEW_SAYS if row["few"] else ""} for row in found.lines
    ]
    points: list[Row] = [
        {key: row[key] for key in ("mean", "low", "high", "n")}
        | {"slice": row["slice"][:40], "enough": f"n < {FEW}" if row["few"] else f"n of {FEW} or more"}
        for row in rows
    ]
    colours = alt.Scale(domain=[f"n of {FEW} or more", f"n < {FEW}"], range=[BLUE, "#7b828c"])
    base = alt.Chart(plotted(points)).encode(
        y=alt.Y("slice:N", title=SLICES[by], sort=[point["slice"] for point in points]),
        color=alt.Color("enough:N", title=None, scale=colours),
        tooltip=["slice:N", *(alt.Tooltip(f"{key}:Q", format=".3f") for key in ("mean", "low", "high")), "n:Q"],
    )
    scale = alt.Scale(domain=[0, 1])
    bars = base.mark_rule(strokeWidth=3).encode(x=alt.X("low:Q", title="Quality, 0 to 1", scale=scale), x2="high:Q")
    dots = base.mark_point(filled=True, size=80).encode(x=alt.X("mean:Q", scale=scale))
    few = len([row for row in rows if row["few"]])
    worst = min(rows, key=lambda row: row["mean"])
    which = f"{len(rows)}"
    if found.slices > len(rows):
        left_out = found.rows - sum(row["n"] for row in rows)
        which = f"the {len(rows)} largest"
        st.caption(f"The {len(rows)} largest of {found.slices:,} slices; {left_out:,} rows are in the others.")
    says = (
        f"Quality of final answers, {of}, by {SLICES[by].lower()}, with 95 % intervals; the lowest of {which} is "
        f"{worst['slice'][:80]}: {estimated(worst)}, n = {worst['n']:,}. "
        f"{few} of them have fewer than {FEW} rows and are grey."
    )
    chart(bars + dots, says, height=60 + 26 * len(points))
    columns = {"slice": SLICES[by], "estimate": "Quality [95 %]", "n": "n rows", "note": "Note"}
    table(rows, columns, name=f"Quality by {SLICES[by]}")


def _confusion(run: Row, share: float, split: str) -> None:
    st.header("Gold labels against answered ones", anchor=False)
    whose = {"final": "final answers", "cheap": "answers of the cheap tier", "strong": "answers of the strong tier"}
    of = chosen("Whose answers", "answers", list(whose), says=whose.__getitem__)
    found = qualities.confusion(run["run_id"], share, split, of)
    if not found.lines:
        st.info("No row with a gold label was answered here.")
        return
    rows: list[Row] = [
        {
            "gold": row["gold"],
            "said": "no valid answer" if row["said"] is None else row["said"],
            "rows": row["rows"],
            "of_gold": row["of_gold"],
            "percent": 100 * row["rows"] / row["of_gold"],
            "right": row["gold"] == row["said"],
        }
        for row in found.lines
    ]
    where = "every split" if split == ALL else f"the {split} split"
    said = (
        f"{found.right:,} of {found.n:,} {whose[of]} to rows of {where} have the gold label "
        f"({100 * found.right / found.n:.1f} %)"
    )
    labels = sorted({row["gold"] for row in rows} | {row["said"] for row in rows})
    if found.pairs > len(rows):
        st.caption(f"{said}. Of {found.pairs:,} pairs of labels the {len(rows):,} most frequent are listed.")
    elif len(labels) <= DRAWN_LABELS:
        heat(rows, labels, said, run["decisive"])
    else:
        st.caption(f"{said}; {len(labels)} labels are too many to draw.")
    _wrong([row for row in rows if not row["right"]])
    download(rows, "confusion")


def _wrong(wrong: list[Row]) -> None:
    if not wrong:
        return
    st.html("<h3>Most frequent confusions</h3>")
    shown = [{**row, "share": f"{row['percent']:.1f} %"} for row in wrong[:SHOWN_PAIRS]]
    columns = {
        "gold": "Gold",
        "said": "Answered",
        "rows": "Rows",
        "of_gold": "Rows with this gold",
        "share": "Share",
    }
    table(shown, columns, name="Most frequent confusions")
    if len(wrong) > SHOWN_PAIRS:
        st.caption(f"The {SHOWN_PAIRS} most frequent of {len(wrong):,}; the download has all that are listed.")


def _judge(run: Row, name: str) -> None:
    st.header("Judge against gold", anchor=False)
    found = qualities.judged(run["run_id"])
    if not found:
        if run["judged"]:
            st.info("A judge is configured, but none of its verdicts is about an answer that has a score.")
        else:
            st.info("No judge looked at this run's answers. One is configured in workload.yaml:")
            st.code(JUDGE, language="yaml", wrap_lines=True)
            st.code(f"headrace run {shlex.quote(name)}", language="console", wrap_lines=True)
        return
    rows = [
        {
            **{key: row[key] for key in ("tier", "both_right", "judge_only", "gold_only", "both_wrong")},
            "n": row["agreement"].share.n,
            "share": estimated(asdict(row["agreement"].share)),
            "kappa": _kappa(row["agreement"]),
            "note": FEW_SAYS if row["agreement"].share.n < FEW else "",
        }
        for row in found
    ]
    columns = {
        "tier": "Answers of",
        "share": "Agreement [95 %]",
        "kappa": "Cohen's kappa [95 %]",
        "n": "n answers",
        "both_right": "Both: right",
        "judge_only": "Only the judge: right",
        "gold_only": "Only gold: right",
        "both_wrong": "Both: wrong",
        "note": "Note",
    }
    table(rows, columns, name="Judge against gold")
    st.caption(
        f"The {run['judging_tier'] or 'strong'} tier judged valid answers only, the first of them in the order of the "
        "data, of every split: they are no random sample, and nothing is said of answers that stayed invalid. Gold "
        "calls an answer right when the workload's metric gives it 1. Kappa is the agreement beyond chance: 0 is "
        "chance, 1 is always. Its interval is that of large samples (Fleiss, Cohen and Everitt, 1969)."
    )
    download(qualities.judged_figures(found), "judge-against-gold")


def _kappa(found: Agreement) -> str:
    if found.kappa is None:
        return "not defined: one verdict throughout"
    return f"{found.kappa:.3f} [{found.low:.3f}, {found.high:.3f}]"
