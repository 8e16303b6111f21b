"""Rows that ended in another way in a second run: a page of them, and what each flip is put down to."""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboards import queries
from dashboards.paired_runs import FLIPPED, KEPT_S, Overall, Pair, Side
from dashboards.queries import Row
from domain.canonical import canonical
from domain.requests import Frame
from domain.run_diffs import Ended, Rule, Said, behind

PAGE = 10
"""Rows shown at once."""
MOST = 1_000
"""Rows that can be leafed through; the filters choose which."""

KINDS = {
    "all": "All that ended in another way",
    "fixed": "Fixed: quality rose",
    "broken": "Broken: quality fell",
    "same": "Another answer, quality equal or not known",
}
MOVES = {
    "any": "Any tiers",
    "cheap-cheap": "cheap, then cheap",
    "cheap-strong": "cheap, then strong",
    "strong-cheap": "strong, then cheap",
    "strong-strong": "strong, then strong",
    "lost": "answered, then quarantined",
    "gained": "quarantined, then answered",
}
_MOVED = {
    "any": "TRUE",
    "lost": "a.tier IS NOT NULL AND b.tier IS NULL",
    "gained": "a.tier IS NULL AND b.tier IS NOT NULL",
    **{
        f"{one}-{other}": f"a.tier = '{one}' AND b.tier = '{other}'"
        for one in ("cheap", "strong")
        for other in ("cheap", "strong")
    },
}


def count(pair: Pair, found: Overall, kind: str, move: str) -> int:
    """How many flips are of a kind and a move. Raises KeyError for names that are in neither table."""
    if move == "any":
        known = {"all": found.flips, "fixed": found.fixed, "broken": found.broken}
        return known.get(kind, found.flips - found.fixed - found.broken)
    return _counted(pair, kind, move)


@st.cache_data(ttl=KEPT_S, show_spinner=False, max_entries=200)
def _counted(pair: Pair, kind: str, move: str) -> int:
    found = queries.one(f"SELECT count(*) AS rows {_chosen(pair, kind, move)}", **pair.given)
    return int(found["rows"]) if found else 0


def page(pair: Pair, kind: str, move: str, number: int, *, rules: tuple[Rule, Rule]) -> list[Row]:
    """The flips of one page (from 0), in the order of the rows' keys, with both ends, input, gold and `parts`."""
    x, y = pair.scores
    shown = ("tier", "output", "confidence", "escalated", "usd", "reason")
    ends = ", ".join(f"{side}.{name} AS {name}_{side}" for side in ("a", "b") for name in ("record_key", *shown))
    query = f"""
    SELECT p.*, {x} AS quality_a, {y} AS quality_b,
        t.record_id, t.inputs, t.gold, t.file, t.line, t.split, u.inputs AS inputs_b
    FROM (
        SELECT {ends} {_chosen(pair, kind, move)} ORDER BY a.record_key LIMIT {PAGE} OFFSET :skipped
    ) AS p
    JOIN row_texts AS t ON t.dataset_version = :text_a AND t.record_key = p.record_key_a
    JOIN row_texts AS u ON u.dataset_version = :text_b AND u.record_key = p.record_key_b
    LEFT JOIN row_scores AS qa ON qa.run_id = :run_a AND qa.record_key = p.record_key_a
        AND qa.tier = p.tier_a AND qa.metric = :metric_a
    LEFT JOIN row_scores AS qb ON qb.run_id = :run_b AND qb.record_key = p.record_key_b
        AND qb.tier = p.tier_b AND qb.metric = :metric_b
    ORDER BY p.record_key_a"""  # noqa: S608 - made of this module's own words
    given = {**pair.given, "skipped": number * PAGE, "text_a": pair.a.version, "text_b": pair.b.version}
    found = queries.rows(query, **given)
    said_a = _said(pair.a, [row["record_key_a"] for row in found])
    said_b = _said(pair.b, [row["record_key_b"] for row in found])
    for row in found:
        one, two = _ended(row, "a", said_a), _ended(row, "b", said_b)
        row["parts"] = " + ".join(behind(one, two, rules=rules)) or "not on record"
        row["kind"] = _kind(row["quality_a"], row["quality_b"]) if pair.one_metric else _kind(None, None)
    return found


def _chosen(pair: Pair, kind: str, move: str) -> str:
    x, y = pair.quality
    kinds = {
        "all": "TRUE",
        "fixed": f"{y} > {x}",
        "broken": f"{y} < {x}",
        "same": f"({y} <> {x}) IS NOT TRUE",
    }
    return f"{pair.source} AND {FLIPPED} AND {kinds[kind]} AND {_MOVED[move]}"


def _kind(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "another answer, quality not known"
    return "fixed" if after > before else "broken" if after < before else "another answer of equal quality"


def _said(side: Side, keys: Sequence[str]) -> Mapping[str, Mapping[str, Said]]:
    """What each tier said to these rows, by key and tier."""
    names = {f"key_{number}": key for number, key in enumerate(keys)}
    if not names:
        return {}
    query = f"""
    SELECT a.record_key, a.tier, a.request_hash, a.reasks, a.output, a.confidence, r.body, r.revision
    FROM row_answers AS a LEFT JOIN row_requests AS r ON r.request_hash = a.request_hash
    WHERE a.run_id = :run AND a.tier IN ('cheap', 'strong') AND a.record_key IN ({", ".join(f":{n}" for n in names)})
    """  # noqa: S608
    found: dict[str, dict[str, Said]] = {}
    for row in queries.rows(query, run=side.run_id, **names):
        frame = Frame(row["body"], row["revision"]) if row["body"] is not None else None
        said = Said(row["request_hash"], frame, row["reasks"], row["output"], row["confidence"])
        found.setdefault(row["record_key"], {})[row["tier"]] = said
    return found


def _ended(row: Row, side: str, said: Mapping[str, Mapping[str, Said]]) -> Ended:
    def of(name: str) -> Any:
        return row[f"{name}_{side}"]

    return Ended(
        row=row["record_id"],
        key=of("record_key"),
        inputs=canonical(row["inputs" if side == "a" else "inputs_b"]).decode(),
        output=of("output"),
        tier=of("tier"),
        escalated=of("escalated"),
        usd=of("usd"),
        quality=of("quality"),
        said=said.get(of("record_key"), {}),
    )
