"""Drift: how far two dataset versions, and the answers of two runs to them, lie apart; a part of the page Data."""

from collections.abc import Sequence

import altair as alt
import streamlit as st

from dashboards import distributions, lists, parts, queries
from dashboards.distributions import SAMPLE, Pair
from dashboards.parts import chosen, table
from dashboards.queries import Row

FIELD = """
SELECT f.field FROM decisive_fields AS f JOIN runs AS r ON r.run_id = f.run_id
WHERE f.workload = :workload AND f.field IS NOT NULL ORDER BY r.started_at DESC LIMIT 1
"""
ANSWERED = """
SELECT run_id, kind, state, bundle_hash, started_at, count(*) OVER () AS n FROM runs
WHERE dataset_version = :version AND workload = :workload
    AND EXISTS (SELECT 1 FROM final_answers AS o WHERE o.run_id = runs.run_id)
ORDER BY (state = 'completed') DESC, started_at DESC LIMIT :most
"""
OFFERED = 50
"""Runs of a version that are offered for comparison."""
NOT_ALL = "not all that differs in their answers is drift of the data."
METHOD = (
    "PSI, the population stability index: Σ (q − p) ln(q / p) over buckets with the shares p before and q after (half "
    "a row is added to each bucket). Numbers are cut at the tenths of the version before. Without a drift PSI stays "
    "below the second figure in 95 of 100 pairs of independent samples: (1/n + 1/m) times the chi-square quantile "
    "(Yurdakul, 2018). Versions that share rows lie closer together than that. The usual limits 0.1 and 0.25 "
    "(Siddiqi, 2006) take no account of n."
)


def section(name: str, before: Row, after: Row) -> None:
    """How far a version of a workload's data, and a run's answers to it, lie from those of another version."""
    st.header("Drift", anchor=False)
    field = str((queries.one(FIELD, workload=name) or {}).get("field") or "")
    rows = max(before["records"], after["records"])
    pairs = {"Length of the inputs, characters": distributions.lengths(before["version"], after["version"], rows=rows)}
    if field and before["gold"] != 0 != after["gold"]:  # rows without labels are no drift of labels
        pairs[f"Gold label, {field}"] = distributions.gold(before["version"], after["version"], field, rows=rows)
    runs = _runs(name, before, after)
    if runs:
        if field:
            pairs[f"Answered label, {field}"] = distributions.outputs(*runs, field, rows=rows)
        pairs["Confidence of the cheap answer"] = distributions.confidences(*runs, rows=rows)
    else:
        st.caption("Answers are compared once a run has answered the rows of both versions.")
    _indices(pairs, sampled=rows > SAMPLE)
    shown = chosen("Distribution", "drift", list(pairs))
    _drawn(shown, pairs[shown])


def _runs(name: str, before: Row, after: Row) -> tuple[str, str] | None:
    """The runs whose answers are compared."""
    offered = [queries.rows(ANSWERED, version=row["version"], workload=name, most=OFFERED) for row in (before, after)]
    if not all(offered):
        return None
    first = alike(*offered)
    picked: list[Row] = []
    labels = ("Answers before, of run", "Answers after, of run")
    for column, label, key, runs, best in zip(st.columns(2), labels, ("run_a", "run_b"), offered, first, strict=True):
        known = {str(row["run_id"]): row for row in (best, *runs)}
        with column:
            picked.append(known[chosen(label, key, list(known), says=lambda id_, known=known: _says(known[id_]))])
            lists.cut(len(runs), runs[0]["n"], of="runs with answers to this version are offered")
    if unlike := apart(*picked):
        st.caption(unlike)
    return picked[0]["run_id"], picked[1]["run_id"]


def _says(run: Row) -> str:
    bundle = f", bundle {run['bundle_hash'][:8]}" if run["bundle_hash"] else ""
    return f"{run['run_id'][:8]}, {run['kind']}{bundle}, {run['started_at']:%m-%d %H:%M}"


def alike(before: Sequence[Row], after: Sequence[Row]) -> tuple[Row, Row]:
    """The pair of runs that differ in no more than the data, if there is one.

    Of pairs of one kind those of complete runs come first, then those of one bundle, then the order they are given in.
    """

    def unlike(pair: tuple[Row, Row]) -> tuple[bool, bool, bool]:
        one, other = pair
        complete = one["state"] == other["state"] == "completed"
        return one["kind"] != other["kind"], not complete, not _same_bundle(one, other)

    return min(((one, other) for other in after for one in before), key=unlike)


def apart(before: Row, after: Row) -> str:
    """What else than the data differs between two runs, in a sentence; empty when nothing that is known does."""
    if before["kind"] != after["kind"]:
        return f"These runs are of different kinds ({before['kind']} and {after['kind']}): {NOT_ALL}"
    if _same_bundle(before, after):
        return ""
    hashes = [run["bundle_hash"] for run in (before, after)]
    bundles = " and ".join(bundle[:8] if bundle else "none" for bundle in hashes)
    told = "used different bundles" if all(hashes) else "are not known to have used one bundle"
    return f"These runs {told} ({bundles}): {NOT_ALL}"


def _same_bundle(one: Row, other: Row) -> bool:
    return one["bundle_hash"] is not None and one["bundle_hash"] == other["bundle_hash"]


def _indices(pairs: dict[str, Pair], *, sampled: bool) -> None:
    shown: list[Row] = []
    for name, pair in pairs.items():
        found = pair.stability
        shown.append(
            {
                "of": name,
                "index": found and f"{found.index:.4f}",
                "by_chance": found and f"{found.by_chance:.4f}",
                "before": found and found.before,
                "after": found and found.after,
                "buckets": found and found.buckets,
                "says": "cannot be compared" if found is None else "drifted" if found.drifted else "as by chance",
            }
        )
    columns = {
        "of": "Of",
        "index": "PSI",
        "by_chance": "95 % by chance",
        "before": "n before",
        "after": "n after",
        "buckets": "Buckets",
        "says": "Reading",
    }
    table(shown, columns, name="Population stability indices")
    sample = f" Of more than {SAMPLE:,} rows, about as many are counted, chosen by hash." if sampled else ""
    st.caption(f"{METHOD}{sample}")
    parts.download(shown, "drift")


def _drawn(name: str, pair: Pair) -> None:
    sums = sum(before for _, before, _ in pair.buckets), sum(after for _, _, after in pair.buckets)
    shares: list[Row] = [
        {"bucket": bucket, "when": when, "share": n / total, "n": n, "order": number}
        for number, (bucket, before, after) in enumerate(pair.buckets)
        for when, n, total in (("before", before, sums[0]), ("after", after, sums[1]))
        if total
    ]
    if not shares:
        st.caption("Neither side has any.")
        return
    drawing = (
        alt.Chart(parts.plotted(shares))
        .mark_bar()
        .encode(
            y=alt.Y("bucket:N", sort=alt.EncodingSortField("order"), title=name),
            yOffset=alt.YOffset("when:N", sort=["before", "after"]),
            x=alt.X("share:Q", title="Share of the rows", axis=alt.Axis(format="%")),
            color=alt.Color("when:N", title="Version", sort=["before", "after"]),
            tooltip=["bucket:N", "when:N", alt.Tooltip("share:Q", format=".1%"), "n:Q"],
        )
    )
    height = 130 + 34 * len(pair.buckets)  # legend and axis take the first of it
    says = f"{name}: shares of n = {sums[0]:,} rows before and n = {sums[1]:,} after, in {len(pair.buckets)} buckets."
    parts.chart(drawing, says, height=height)
    parts.download(shares, "distribution")
