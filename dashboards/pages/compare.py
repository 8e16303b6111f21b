"""Compare: two runs or two bundles, on the rows that both answered."""

import shlex
from collections.abc import Callable, Collection, Mapping

import streamlit as st

from dashboards import queries, texts
from dashboards.comparisons import differences, differing_parts, flipped
from dashboards.paired_runs import Pair, Side
from dashboards.parts import chosen, counted, empty, heading, workload
from dashboards.queries import Row
from domain.bundles import Bundle
from domain.run_diffs import Rule

MOST = 200
"""Runs, and bundles, that can be chosen; the newest."""
RUNS = f"""
SELECT r.run_id, r.kind, r.state, r.started_at, r.dataset_version, r.bundle_hash, m.metric, m.void
FROM runs AS r JOIN run_measures AS m ON m.run_id = r.run_id
WHERE r.workload = :workload AND r.kind IN ('optimize', 'route') AND r.dataset_version IS NOT NULL
ORDER BY r.started_at DESC LIMIT {MOST}
"""  # noqa: S608
BUNDLES = f"""
SELECT b.hash, b.run_id, b.body, b.created_at, b.aliases, r.dataset_version, m.metric
FROM bundle_bodies AS b LEFT JOIN runs AS r ON r.run_id = b.run_id LEFT JOIN run_measures AS m ON m.run_id = b.run_id
WHERE b.workload = :workload ORDER BY b.created_at DESC, b.hash LIMIT {MOST}
"""  # noqa: S608
BODIES = "SELECT hash, body FROM bundle_bodies WHERE hash IN (:a, :b)"


def show() -> None:
    """The page."""
    heading("Compare", "What became better or worse from one run or bundle (A) to another (B), row by row?")
    texts.dress()
    name = workload()
    if name is None:
        return
    runs = {row["run_id"]: row for row in queries.rows(RUNS, workload=name)}
    bundles = {row["hash"]: row for row in queries.rows(BUNDLES, workload=name)}
    asked = st.query_params.get("a", "")
    if asked and any(key.startswith(asked) for key in bundles) and not any(key.startswith(asked) for key in runs):
        st.query_params.setdefault("of", "bundles")
    of = chosen("Compare two", "of", ["runs", "bundles"])
    given = runs if of == "runs" else bundles
    if len(given) < 2:
        again = f"headrace run {shlex.quote(name)}"
        there = counted(len(given), of.removesuffix("s"))
        empty(f"This workload has {there} with rows; a comparison needs two.", again)
        return
    if len(given) == MOST:
        st.caption(f"The newest {MOST} {of} can be chosen.")
    sides = _sides(given, {*runs, *bundles}, _run_says if of == "runs" else _bundle_says)
    if sides is None:
        return
    a, b = sides
    if of == "runs":
        _compare_runs(a, b)
    else:
        _compare_bundles(a, b)


def _sides(given: Mapping[str, Row], known: Collection[str], says: Callable[[Row], str]) -> tuple[Row, Row] | None:
    """The two that the address names, or that are chosen; None when they are one and the same. `known` are all."""
    keys = list(given)
    # Runs of one kind answer the same rows; an optimisation and a batch have none in common.
    alike = [key for key in keys[1:] if given[key].get("kind") == given[keys[0]].get("kind")]
    for key, default in (("a", (alike or keys[1:])[0]), ("b", keys[0])):
        asked = st.query_params.get(key)
        begun = [full for full in keys if asked and full.startswith(asked)]
        st.query_params[key] = begun[0] if len(begun) == 1 else default
        if asked and len(begun) != 1 and asked not in known:
            st.warning(f"Nothing of this workload, or more than one, begins with what the address gives as {key}.")
    left, right = st.columns(2)
    with left:
        a = chosen("A, before", "a", keys, says=lambda key: says(given[key]))
    with right:
        b = chosen("B, after", "b", keys, says=lambda key: says(given[key]))
    if a == b:
        st.info("A and B are the same. Choose another one to see what differs.")
        return None
    return given[a], given[b]


def _run_says(row: Row) -> str:
    return f"{row['run_id'][:8]} {row['kind']} {row['started_at']:%Y-%m-%d %H:%M} {row['state']}"


def _bundle_says(row: Row) -> str:
    aliases = f" ({row['aliases']})" if row["aliases"] else ""
    return f"{row['hash'][:12]} {row['created_at']:%Y-%m-%d %H:%M}{aliases}"


def _compare_runs(a: Row, b: Row) -> None:
    one, two = (Side(run["run_id"], run["dataset_version"], run["metric"] or "") for run in (a, b))
    pair = Pair(one, two)
    given = {side: run["bundle_hash"] or "" for side, run in (("a", a), ("b", b))}
    bodies = {row["hash"]: row for row in queries.rows(BODIES, **given)}
    deployed = [bodies.get(bundle) for bundle in given.values()]
    rules = _rule(a, deployed[0]), _rule(b, deployed[1])
    st.code(f"headrace diff {a['run_id'][:8]} {b['run_id'][:8]}", language="console", wrap_lines=True)
    pair, found = differences(pair, ended=all(run["state"] == "completed" for run in (a, b)))
    flipped(pair, found, rules=rules)
    st.header("What was deployed", anchor=False)
    if deployed[0] is None or deployed[1] is None:
        st.info("A run without a bundle is among the two: prompts are compared where both runs have one.")
    else:
        differing_parts(Bundle.model_validate(deployed[0]["body"]), Bundle.model_validate(deployed[1]["body"]))


def _compare_bundles(a: Row, b: Row) -> None:
    st.code(f"headrace bundle diff {a['hash'][:12]} {b['hash'][:12]}", language="console", wrap_lines=True)
    if all(row["run_id"] and row["dataset_version"] for row in (a, b)):
        one, two = (Side(row["run_id"], row["dataset_version"], row["metric"] or "", row["hash"]) for row in (a, b))
        pair = Pair(one, two)
        pair, found = differences(pair, ended=True)
        flipped(pair, found, rules=(_rule(None, a), _rule(None, b)))
    else:
        st.info("A bundle that was imported from a folder has no run here, hence no rows: only its parts are compared.")
    st.header("What differs between the bundles", anchor=False)
    differing_parts(Bundle.model_validate(a["body"]), Bundle.model_validate(b["body"]))


def _rule(run: Row | None, bundle: Row | None) -> Rule:
    """How a run's rows were settled; without a run, those that the bundle was made of."""
    kind, void = (run["kind"], run["void"]) if run else ("optimize", False)
    return Rule.of(Bundle.model_validate(bundle["body"]) if bundle else None, kind=kind, void=void)
