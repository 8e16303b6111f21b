"""Data: dataset versions, what each changed and led to, its bad rows, and how far inputs and answers have drifted."""

import altair as alt
import streamlit as st

from dashboards import distributions, parts, queries, versions
from dashboards.distributions import SAMPLE, Pair
from dashboards.parts import chosen, heading, percent, table
from dashboards.queries import Row

FIELD = """
SELECT f.field FROM decisive_fields AS f JOIN runs AS r ON r.run_id = f.run_id
WHERE f.workload = :workload AND f.field IS NOT NULL ORDER BY r.started_at DESC LIMIT 1
"""
OF_RUN = "SELECT dataset_version AS version FROM runs WHERE run_id = :run AND dataset_version IS NOT NULL"
ANSWERED = """
SELECT run_id, kind, state, started_at FROM runs
WHERE dataset_version = :version AND workload = :workload
    AND EXISTS (SELECT 1 FROM final_answers AS o WHERE o.run_id = runs.run_id)
ORDER BY (state = 'completed') DESC, started_at DESC LIMIT 50
"""
BAD = """
SELECT field, reason, count(*) AS rows FROM bad_rows WHERE version = :version
GROUP BY field, reason ORDER BY count(*) DESC, reason LIMIT 200
"""
BAD_ROWS = """
SELECT file, line, field, reason FROM bad_rows WHERE version = :version
ORDER BY file, line NULLS FIRST, field LIMIT 5000
"""
METHOD = (
    "PSI, the population stability index: Σ (q − p) ln(q / p) over buckets with the shares p before and q after (half "
    "a row is added to each bucket). Numbers are cut at the tenths of the version before. Without a drift PSI stays "
    "below the second figure in 95 of 100 pairs of independent samples: (1/n + 1/m) times the chi-square quantile "
    "(Yurdakul, 2018). Versions that share rows lie closer together than that. The usual limits 0.1 and 0.25 "
    "(Siddiqi, 2006) take no account of n."
)
WHAT = {"added": "Added", "changed": "Changed", "removed": "Removed"}


def show() -> None:
    """The page."""
    heading("Data", "Which data led to what, what was wrong with it, and has it drifted?")
    name = parts.workload()
    if name is None:
        return
    found = versions.versions(name)
    if not found:
        parts.empty("No dataset of this workload was read yet.", f"headrace run {name}")
        return
    _list(found)
    before, after = _choose(found)
    if after["gold"] is None:  # too large to be counted through for the list
        counted = versions.versions(name, counted=after["version"])
        after = next(row for row in counted if row["version"] == after["version"])
    _version(name, after)
    _differences(before, after)
    _bad(after)
    _drift(name, before, after)


def _says(row: Row) -> str:
    return f"{row['version'][:12]}, {row['created_at']:%Y-%m-%d %H:%M}, {row['records']:,} rows of {row['uri']}"


def _list(found: list[Row]) -> None:
    st.header("Versions", anchor=False)
    shown: list[Row] = []
    for row in found:
        small = row["before"] and max(row["records"], row["before_records"]) <= versions.SMALL
        changed = versions.numbers(row["before"], row["version"]) if small else {}
        gold = None if row["gold"] is None or not row["records"] else row["gold"] / row["records"]
        shown.append({**row, "short": row["version"][:12], "gold_share": percent(gold), **changed})
    columns = {
        "created_at": "Read (UTC)",
        "short": "Version",
        "uri": "From",
        "records": "Rows",
        "bad_rows": "Bad rows",
        "gold_share": "With gold",
        "added": "Added",
        "changed": "Changed",
        "removed": "Removed",
        "runs": "Runs",
        "deliveries": "Deliveries",
    }
    table(shown, columns, name="Versions")
    st.caption(
        f"Added, changed and removed against the version before from the same place, by id and content; counted here "
        f"up to {versions.SMALL:,} rows, and below for the chosen pair whatever its size."
    )
    parts.download(
        [{key: row.get(key) for key in ("version", *columns) if key != "short"} for row in shown], "versions"
    )


def _choose(found: list[Row]) -> tuple[Row | None, Row]:
    """The version that is looked at, and the one that it is compared with."""
    known = {str(row["version"]): row for row in found}
    if st.query_params.get("b") not in known and (run := st.query_params.get("run")):
        of_run = queries.one(OF_RUN, run=run)
        if of_run and of_run["version"] in known:
            st.query_params["b"] = of_run["version"]
    first, second = st.columns(2)
    with second:
        after = known[chosen("Version", "b", list(known), says=lambda key: _says(known[key]))]
    others = [key for key in known if key != after["version"]]
    if not others:
        with first:
            st.caption("There is no other version to compare it with yet.")
        return None, after
    others.sort(key=lambda key: key != after["before"])  # the one before comes first, the rest stays in its order
    with first:
        return known[chosen("Compared with", "a", others, says=lambda key: _says(known[key]))], after


def _version(name: str, row: Row) -> None:
    st.header(f"Version {row['version'][:12]}", anchor=False)
    split = {
        "train": "for prompts",
        "calibration": "for the certificate",
        "test": "for the test",
        "incoming": "to route",
    }
    counted = [f"{row[key]:,} {words}" for key, words in split.items() if row[key]]
    gold = f"{row['gold']:,} of n = {row['records']:,} rows have gold" if row["gold"] is not None else ""
    st.caption("; ".join([*counted, gold, f"{row['bad_rows']:,} rows cannot be used"]))
    runs = queries.rows(versions.RUNS, version=row["version"], workload=name)
    deliveries = queries.rows(versions.DELIVERIES, version=row["version"])
    if runs:
        columns = {"run": "Run", "kind": "Kind", "started_at": "Started (UTC)"}
        table(runs, columns, name="Runs on this version", links={"run": "to_run"})
    else:
        st.caption("No run has worked on it.")
    if deliveries:
        columns = {"received_at": "Received (UTC)", "source": "Sender", "delivery": "Delivery", "dataset": "Dataset"}
        table(deliveries, {**columns, "state": "Became", "detail": "Detail"}, name="Deliveries of this version")


def _differences(before: Row | None, after: Row) -> None:
    if before is None:
        return
    st.header("What changed", anchor=False)
    counts = versions.numbers(before["version"], after["version"])
    for column, (what, n) in zip(st.columns(3), counts.items(), strict=True):
        with column:
            parts.figure(WHAT[what], f"{n:,} rows", f"of {after['records']:,}, against {before['records']:,} before")
    found = versions.differences(before["version"], after["version"])
    if not found:
        st.caption("The same rows: only their order, splits or bad rows differ.")
        return
    shown = [{**row, "what": WHAT[row["what"]]} for row in found]
    columns = {"what": "What", "record_id": "Id", "split": "Split", "file": "File", "line": "Line"}
    with st.expander(f"Rows that differ, up to {versions.LISTED} of each kind"):
        table(shown, columns, name="Rows that differ")
        parts.download([{key: value for key, value in row.items() if key != "n"} for row in shown], "differences")


def _bad(row: Row) -> None:
    st.header("Rows that cannot be used", anchor=False)
    found = queries.rows(BAD, version=row["version"])
    if not found:
        st.caption(f"None of n = {row['records'] + row['bad_rows']:,} rows.")
        return
    total = row["records"] + row["bad_rows"]
    shown = [{**line, "share": percent(line["rows"] / total, 2)} for line in found]
    columns = {"field": "Field", "reason": "Reason", "rows": "Rows", "share": f"of n = {total:,}"}
    table(shown, columns, name="Reasons of rows that cannot be used")
    every = queries.rows(BAD_ROWS, version=row["version"])
    with st.expander("Where they stand"):
        columns = {"file": "File", "line": "Line", "field": "Field", "reason": "Reason"}
        table(every, columns, name="Rows that cannot be used")
        parts.download(every, "bad-rows")


def _drift(name: str, before: Row | None, after: Row) -> None:
    if before is None:
        return
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
    offered = [queries.rows(ANSWERED, version=row["version"], workload=name) for row in (before, after)]
    if not all(offered):
        return None
    picked: list[str] = []
    labels = ("Answers before, of run", "Answers after, of run")
    for column, label, key, runs in zip(st.columns(2), labels, ("run_a", "run_b"), offered, strict=True):
        known = {str(row["run_id"]): row for row in runs}
        with column:
            picked.append(
                chosen(
                    label,
                    key,
                    list(known),
                    says=lambda id_, known=known: (
                        f"{id_[:8]}, {known[id_]['kind']}, {known[id_]['started_at']:%m-%d %H:%M}"
                    ),
                )
            )
    return picked[0], picked[1]


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
    height = max(160, 34 * len(pair.buckets))
    says = f"{name}: shares of n = {sums[0]:,} rows before and n = {sums[1]:,} after, in {len(pair.buckets)} buckets."
    parts.chart(drawing, says, height=height)
    parts.download(shares, "distribution")
