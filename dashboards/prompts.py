"""Compiled prompts and acts on champions, out of the views."""

import difflib

import streamlit as st

from dashboards import queries
from dashboards.parts import proportion
from dashboards.queries import Row
from domain.bundle_diffs import prompt_text
from domain.intervals import Interval, mean_interval
from domain.promotions import Act, Move, former_champion
from domain.prompts import PromptVersion

MOST, MOST_ACTS = 100, 1_000
"""Versions and bundles, and acts on champions, that are listed; the newest."""
KEPT_S = 600
_VERSIONS = f"""
SELECT p.*, c.usd, c.spared_usd FROM (
    SELECT * FROM prompt_timeline WHERE workload = :workload ORDER BY created_at DESC, compile_key LIMIT {MOST}
) AS p LEFT JOIN LATERAL (
    SELECT usd, spared_usd FROM compile_costs AS c WHERE c.run_id = p.run_id AND c.tier = p.tier
) AS c ON TRUE
ORDER BY p.created_at DESC, p.compile_key
"""  # noqa: S608
_LOG = f"SELECT * FROM promotion_log WHERE workload = :workload ORDER BY id DESC LIMIT {MOST_ACTS}"  # noqa: S608
_BUNDLES = f"""
SELECT b.hash, b.created_at, b.aliases, b.run_id, b.body->'threshold' AS threshold,
    r.bundle_hash = b.hash AS own, r.summary->'test' AS test
FROM bundle_bodies AS b LEFT JOIN runs AS r ON r.run_id = b.run_id
WHERE b.workload = :workload ORDER BY b.created_at DESC, b.hash LIMIT {MOST}
"""  # noqa: S608


def versions(workload: str) -> list[Row]:
    """The compiled prompts of a workload, newest first.

    `before` and `after` are held-out quality of the prompt as written and of the best candidate, on `n` rows, with 95 %
    intervals as `low_…` and `high_…`; `gain` is that of the prompt in use, which stays as written when no candidate was
    better, with its paired 95 % interval where one is on record, else None; `calls` are those that the search made,
    `usd` what they cost at list price, `spared_usd` what answers that the ledger knew would have cost.
    """
    found: list[Row] = []
    for row in queries.rows(_VERSIONS, workload=workload):
        report: Row = row["report"]
        candidates: list[Row] = report.get("candidates") or []
        n = int(candidates[0]["n"]) if candidates else 0  # as many rows are held out as validate
        line: Row = {
            "tier": row["tier"],
            "hash": row["hash"],
            "made": row["created_at"],
            "aliases": row["aliases"],
            "optimizer": report.get("optimizer"),
            "improved": report.get("improved"),
            "demos": len(row["body"].get("demos", [])),
            "n": n,
            "p_value": report.get("p_value"),
            "calls": report.get("calls"),
            "budget_calls": report.get("budget_calls"),
            "usd": row["usd"],
            "spared_usd": row["spared_usd"],
            "note": report.get("note"),
            "run_id": row["run_id"],
            "key": row["compile_key"],
            "body": row["body"],
        }
        for name, key in (("before", "baseline"), ("after", "best")):
            bounds = proportion(report[key], n)
            line |= {name: report[key], f"low_{name}": bounds.low, f"high_{name}": bounds.high}
        gain = report["best"] - report["baseline"] if report.get("improved") else 0.0
        paired: Row = (report.get("gain") if report.get("improved") else None) or {}
        found.append(line | {"gain": gain, "low_gain": paired.get("low"), "high_gain": paired.get("high")})
    return found


def costs(found: list[Row]) -> list[Row]:
    """What each of these versions gained, in percentage points, and what its search cost, as plain numbers."""
    return [
        {
            "version": row["hash"],
            "tier": row["tier"],
            **{f"gain_points{end}": _times(100, row[key]) for end, key in _GAINS},
            "n_held_out_rows": row["n"],
            "calls_made": row["calls"],
            "calls_allowed": row["budget_calls"],
            "usd": row["usd"],
            "spared_usd": row["spared_usd"],
            "usd_per_point": row["usd"] / (100 * row["gain"]) if row["usd"] and row["gain"] > 0 else None,
            "run_id": row["run_id"],
        }
        for row in found
    ]


_GAINS = (("", "gain"), ("_low_95", "low_gain"), ("_high_95", "high_gain"))


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def text(version: Row) -> str:
    """A version's messages as a text, the row's fields in {{double_braces}}."""
    return prompt_text(PromptVersion.model_validate(version["body"]))


def against(before: Row, after: Row) -> str:
    """Two versions' texts as a unified diff; "" when they are equal."""
    names = before["hash"][:12], after["hash"][:12]
    lines = difflib.unified_diff(text(before).splitlines(), text(after).splitlines(), *names, lineterm="", n=2)
    return "\n".join(lines)


def log(workload: str) -> list[Row]:
    """What was done with a workload's champions, newest first, with what the gate said in words."""
    found = queries.rows(_LOG, workload=workload)
    for row in found:
        row["gate_says"] = _gate(row["gate"])
    return found


def bundles(workload: str) -> list[Row]:
    """The bundles of a workload, newest first, as plain numbers; quality and USD per 1,000 rows are those of the test
    rows where its own run summed them up, with 95 % intervals."""
    return [_bundle(row) for row in queries.rows(_BUNDLES, workload=workload)]


def _bundle(row: Row) -> Row:
    test: Row = row["test"] if row["own"] and row["test"] else {}
    quality: Row = test.get("cascade") or {}
    low, high = _price_interval(row["hash"], quality["n"]) or (None, None) if quality else (None, None)
    return {
        **{key: row[key] for key in ("hash", "created_at", "aliases", "threshold")},
        **{name: quality.get(key) for name, key in _QUALITY},
        "usd_per_1000": _times(1000, test.get("cascade_usd")),
        "usd_per_1000_low_95": _times(1000, low),
        "usd_per_1000_high_95": _times(1000, high),
        "run_id": row["run_id"],
    }


_QUALITY = (("quality", "mean"), ("quality_low_95", "low"), ("quality_high_95", "high"), ("n_test_rows", "n"))


@st.cache_data(ttl=KEPT_S, show_spinner=False, max_entries=500)
def _price_interval(bundle: str, n: int) -> Interval | None:
    """Student's interval of a row's mean price on a bundle's n test rows, USD; None when not all of them are there."""
    found = queries.one("SELECT n, usd, usd_squared FROM bundle_costs WHERE hash = :bundle", bundle=bundle)
    if found is None or found["n"] != n:
        return None
    return mean_interval(found["usd"], found["usd_squared"], n)


def former(entries: list[Row]) -> str | None:
    """The hash that a rollback would make champion; None when there is none."""
    oldest = sorted(entries, key=lambda row: row["id"])
    moves = [Move(Act(row["act"]), row["from_hash"], row["to_hash"]) for row in oldest]
    now = next((move.to_hash for move in reversed(moves) if move.act.moves_champion), None)
    return former_champion(moves, now) if now else None


def _gate(gate: Row | None) -> str | None:
    if gate is None:
        return None
    reasons = "; ".join(gate.get("reasons") or [])
    verdict = "passed" if gate.get("passed") else "refused"
    return f"{verdict}: {reasons}" if reasons else verdict
