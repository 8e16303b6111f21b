"""Data: dataset versions, what each changed and led to, its bad rows, and how far inputs and answers have drifted."""

import streamlit as st

from dashboards import drifts, lists, parts, queries, versions
from dashboards.parts import chosen, heading, percent, table
from dashboards.queries import Row

OF_RUN = "SELECT dataset_version AS version FROM runs WHERE run_id = :run AND dataset_version IS NOT NULL"
BAD = """
SELECT field, reason, count(*) AS rows, count(*) OVER () AS n, sum(count(*)) OVER ()::bigint AS n_rows
FROM bad_rows WHERE version = :version
GROUP BY field, reason ORDER BY count(*) DESC, reason LIMIT :most
"""
BAD_ROWS = """
SELECT file, line, field, reason FROM bad_rows WHERE version = :version
ORDER BY file, line NULLS FIRST, field LIMIT :most
"""
REASONS, BAD_LISTED = 200, 5000
"""Reasons and rows that are listed of those that cannot be used."""
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
    after = {**after, **versions.counts(after["version"])}  # one that is large was not counted for the list
    _version(name, after)
    _differences(before, after)
    _bad(after)
    if before is not None:
        drifts.section(name, before, after)


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
    lists.cut(len(found), found[0]["n"], of="versions, here and in the download")
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
        resets = ("run_a", "run_b")
        after = known[chosen("Version", "b", list(known), says=lambda key: _says(known[key]), resets=resets)]
    others = [key for key in known if key != after["version"]]
    if not others:
        with first:
            st.caption("There is no other version to compare it with yet.")
        return None, after
    others.sort(key=lambda key: key != after["before"])  # the one before comes first, the rest stays in its order
    with first:
        return known[chosen("Compared with", "a", others, says=lambda key: _says(known[key]), resets=("run_a",))], after


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
        lists.cut(len(runs), runs[0]["n"], of="runs on this version")
    else:
        st.caption("No run has worked on it.")
    if deliveries:
        columns = {"received_at": "Received (UTC)", "source": "Sender", "delivery": "Delivery", "dataset": "Dataset"}
        table(deliveries, {**columns, "state": "Became", "detail": "Detail"}, name="Deliveries of this version")
        lists.cut(len(deliveries), deliveries[0]["n"], of="deliveries of this version")


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
    found = queries.of_version(BAD, version=row["version"], most=REASONS)
    if not found:
        st.caption(f"None of n = {row['records'] + row['bad_rows']:,} rows.")
        return
    total = row["records"] + row["bad_rows"]
    shown = [{**line, "share": percent(line["rows"] / total, 2)} for line in found]
    columns = {"field": "Field", "reason": "Reason", "rows": "Rows", "share": f"of n = {total:,}"}
    table(shown, columns, name="Reasons of rows that cannot be used")
    lists.cut(len(found), found[0]["n"], of="reasons", first="most frequent")
    every = queries.of_version(BAD_ROWS, version=row["version"], most=BAD_LISTED)
    with st.expander("Where they stand"):
        columns = {"file": "File", "line": "Line", "field": "Field", "reason": "Reason"}
        table(every, columns, name="Rows that cannot be used")
        lists.cut(len(every), found[0]["n_rows"], of="rows by file and line, here and in the download", first="first")
        parts.download(every, "bad-rows")
