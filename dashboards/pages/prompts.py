"""Prompts and promotion: what was compiled, what it gained and cost, and who made which bundle champion."""

import html
import shlex
from collections.abc import Callable

import streamlit as st

from dashboards import prompt_charts, prompts, texts
from dashboards.parts import chart, chosen, download, empty, heading, table, usd, workload
from dashboards.prompt_charts import SAID, and_more, name_of
from dashboards.prompts import MOST, MOST_ACTS
from dashboards.queries import Row

LONGEST = 60_000
"""Characters of a prompt that are shown."""


def show() -> None:
    """The page."""
    heading("Prompts and promotion", "What did each prompt gain and cost, and who made which bundle champion, and why?")
    texts.dress()
    name = workload()
    if name is None:
        return
    versions, entries, bundles = prompts.versions(name), prompts.log(name), prompts.bundles(name)
    if not versions and not bundles:
        empty("Nothing was compiled for this workload yet.", f"headrace run {shlex.quote(name)}")
        return
    if versions:
        _scores(versions)
        _costs(versions)
        _text(versions)
    _bundles(bundles)
    _promote(name, bundles, entries)
    _log(name, entries)


def _scores(versions: list[Row]) -> None:
    st.header("Versions", anchor=False)
    points = [
        {
            "made": row["made"],
            "tier": f"{row['tier']} tier",
            "which": which,
            "version": row["hash"][:12],
            "score": row[key],
            "low": row[f"low_{key}"],
            "high": row[f"high_{key}"],
            "n": row["n"],
            "name": name_of(row),
            "alias": _in_use(row) if which == "best candidate" else "",
        }
        for row in reversed(versions)
        for which, key in (("as written", "before"), ("best candidate", "after"))
    ]
    said = "; ".join(
        f"{row['tier']} {row['hash'][:8]}: {_with(row, 'before')} before, {_with(row, 'after')} after, n = {row['n']}"
        for row in versions[:SAID]
    )
    chart(
        prompt_charts.scores(points),
        f"Quality on the held-out rows of the train split, with 95 % intervals: {said}{and_more(versions)}.",
        height=300,
    )
    st.caption(
        "Intervals are Wilson's, each for itself; for graded metrics they are wider than need be. Whether the "
        "candidate beats the prompt as written is the paired test p, of the same rows."
    )
    _versions(versions)


def _versions(versions: list[Row]) -> None:
    rows = [
        {
            **row,
            "version": row["hash"][:12],
            "was": _with(row, "before"),
            "best": _with(row, "after"),
            "p": "–" if row["p_value"] is None else f"{row['p_value']:.3g}",
            "in_use": "compiled" if row["improved"] else "as written",
        }
        for row in versions
    ]
    columns = {
        "version": "Version",
        "tier": "Tier",
        "made": "Made (UTC)",
        "aliases": "In the bundle of",
        "was": "As written [95 %]",
        "best": "Best candidate [95 %]",
        "n": "n held-out rows",
        "p": "p, paired",
        "in_use": "Prompt",
        "demos": "Demos",
    }
    table(rows, columns, name="Versions")
    _newest(versions, MOST, "versions")
    download([{key: value for key, value in row.items() if key != "body"} for row in versions], "prompt-versions")


def _with(row: Row, key: str) -> str:
    return f"{row[key]:.3f} [{row[f'low_{key}']:.3f}, {row[f'high_{key}']:.3f}]"


def _in_use(row: Row) -> str:
    """The alias that matters most, in short."""
    aliases = row["aliases"] or ""
    return next((alias for alias in ("champion", "challenger") if alias in aliases), "")


def _costs(versions: list[Row]) -> None:
    st.header("Gain against cost", anchor=False)
    prompt_charts.gains([row for row in versions if row["usd"] is not None])
    found = prompts.costs(versions)
    rows = [
        {
            **row,
            "version": row["version"][:12],
            "gain": _gain(row),
            "usd": usd(row["usd"]),
            "spared": usd(row["spared_usd"]),
            "each": usd(row["usd_per_point"]),
            "run": (row["run_id"] or "not here")[:8],
        }
        for row in found
    ]
    columns = {
        "version": "Version",
        "tier": "Tier",
        "gain": "Gain [95 %]",
        "n_held_out_rows": "n held-out rows",
        "calls_made": "Calls made",
        "calls_allowed": "Calls allowed",
        "usd": "USD of these calls",
        "spared": "USD spared",
        "each": "USD per point gained",
        "run": "Run",
    }
    table(rows, columns, name="Gain against cost")
    st.caption(
        "USD at list price; spared is what answers that the ledger knew would have cost. The gain is that of the "
        "prompt in use: 0 where it stayed as written. Its interval is paired, row by row; where none is on record, "
        "the gain stands alone."
    )
    download(found, "prompt-costs")


def _gain(row: Row) -> str:
    low, high = row["gain_points_low_95"], row["gain_points_high_95"]
    ends = f" [{low:+.1f}, {high:+.1f}]" if low is not None else ""
    return f"{row['gain_points']:+.1f} points{ends}"


def _newest(found: list[Row], most: int, what: str) -> None:
    """Say so where no more than these are listed."""
    if len(found) >= most:
        st.caption(f"The newest {most:,} {what} are listed.")


def _text(versions: list[Row]) -> None:
    st.header("Text of a version", anchor=False)
    known = {row["key"]: row for row in versions}
    key = chosen("Version", "version", list(known), says=lambda key: _says(known[key]))
    version = known[key]
    if version["note"]:
        st.html(f'<p class="hr-says">{html.escape(version["note"][:1000])}</p>')
    st.html(texts.block(prompts.text(version), name="Text of the version", most=LONGEST))
    older = [row for row in versions if row["tier"] == version["tier"] and row["made"] < version["made"]]
    if older:
        changed = prompts.against(older[0], version)
        st.html(f"<h3>Against the version before, {html.escape(older[0]['hash'][:12])}</h3>")
        st.html(texts.unified(changed, name="Against the version before") if changed else "<p>equal</p>")


def _says(row: Row) -> str:
    return f"{row['tier']} {row['hash'][:12]} {row['made']:%Y-%m-%d %H:%M}"


def _bundles(bundles: list[Row]) -> None:
    st.header("Bundles", anchor=False)
    rows = [
        {
            **row,
            "bundle": row["hash"][:12],
            "threshold": "all strong" if row["threshold"] is None else f"{row['threshold']:.4f}",
            "quality": "–" if row["quality"] is None else _bounded(row, "quality", "{:.3f}".format),
            "usd": "–" if row["usd_per_1000"] is None else _bounded(row, "usd_per_1000", usd),
            "run": (row["run_id"] or "imported")[:8],
        }
        for row in bundles
    ]
    columns = {
        "bundle": "Bundle",
        "created_at": "Made (UTC)",
        "aliases": "Alias",
        "threshold": "Threshold",
        "quality": "Quality [95 %]",
        "n_test_rows": "n test rows",
        "usd": "USD / 1,000 rows [95 %]",
        "run": "Run",
    }
    table(rows, columns, name="Bundles")
    _newest(bundles, MOST, "bundles")
    download(bundles, "bundles")


def _bounded(row: Row, key: str, says: Callable[[float], str]) -> str:
    """A figure with its interval, if that is known."""
    low, high = row[f"{key}_low_95"], row[f"{key}_high_95"]
    return says(row[key]) if low is None else f"{says(row[key])} [{says(low)}, {says(high)}]"


def _promote(name: str, bundles: list[Row], entries: list[Row]) -> None:
    if not bundles:
        return
    st.header("Promote or roll back", anchor=False)
    known = {row["hash"]: row for row in bundles}
    most = ["challenger" in (row["aliases"] or "") and "champion" not in row["aliases"] for row in bundles]
    order = [key for _, key in sorted(zip(most, known, strict=True), key=lambda each: not each[0])]
    picked = chosen("Bundle", "bundle", order, says=lambda key: f"{key[:12]} {known[key]['aliases'] or ''}".strip())
    st.caption("Nothing is changed from here. In a terminal, through the gate, or past it with a reason:")
    short = picked[:12]
    st.code(
        f"headrace bundle show {short}\nheadrace promote {short}\nheadrace promote {short} --force --reason 'why'",
        language="console",
        wrap_lines=True,
    )
    before = prompts.former(entries)
    if before is None:
        st.caption("There was no champion before this one, so that there is nothing to roll back to.")
        return
    st.caption(f"Back to the champion before, {before[:12]}:")
    st.code(f"headrace rollback {shlex.quote(name)} --reason 'why'", language="console", wrap_lines=True)


def _log(name: str, entries: list[Row]) -> None:
    st.header("Audit log of promotions", anchor=False)
    if not entries:
        empty("No bundle of this workload was promoted or refused yet.", f"headrace run {shlex.quote(name)}")
        return
    rows = [
        {
            **row,
            "from": (row["from_hash"] or "none")[:12],
            "to": row["to_hash"][:12],
            "run": (row["run_id"] or "by hand")[:8],
        }
        for row in entries
    ]
    columns = {
        "at": "When (UTC)",
        "who": "Who",
        "act": "Act",
        "from": "Champion before",
        "to": "Bundle",
        "reason": "Reason given",
        "gate_says": "Gate",
        "run": "Run",
    }
    table(rows, columns, name="Audit log")
    _newest(entries, MOST_ACTS, "acts")
    download(entries, "promotion-log")
