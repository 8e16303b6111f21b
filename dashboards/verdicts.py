"""A workload's verdict as people read it: quality against the promise, cost against the strong tier alone, rates."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlencode

import streamlit as st

from dashboards import queries
from dashboards.parts import empty, figure, interval, percent, proportion, usd, usd_interval
from dashboards.queries import Row
from domain.intervals import mean_interval
from domain.scores import Estimate

COSTS = "SELECT n, usd, usd_squared FROM tier_costs WHERE run_id = :run AND tier = 'strong' AND split = 'calibration'"


def said(row: Row) -> tuple[str, str]:
    """A workload's verdict in two or three words, and why."""
    made: Mapping[str, Any] = row["certificate"] or {}
    batch: Mapping[str, Any] = row["batched"] or {}
    if not made:
        return "No verdict yet", "no run has come to one"
    if not made["certified"]:
        return "Not certified", f"{made['reason']}; all rows go to the strong tier"
    if row["champion"] is None:
        why = "; ".join(row["gate"] or []) or "`headrace promote` makes one so"
        return "Certified, not deployed", f"no bundle is champion: {why}"
    if row["alarmed"]:
        return "Void", "an audit refuted the promise; see `headrace audits`"
    if row["batch_bundle"] == row["champion"] and (void := batch.get("void")):
        return "Void", "the last batch found: " + "; ".join(cast(list[str], void))
    return "Certified", f"loses at most {_promised(made)} with probability {1 - made['delta']:g}"


def _promised(made: Mapping[str, Any]) -> str:
    return f"{made['eps']:g}" + (" of the strong tier's quality" if made["kind"] == "relative" else "")


@dataclass(frozen=True, slots=True)
class Rates:
    """The escalated among the answered rows and the answered among all rows, of a batch or of the test rows; None where
    there is no such row, or the ledger does not say how many."""

    of: str
    escalated: Estimate | None
    valid: Estimate | None


def batch_rates(row: Row) -> Rates | None:
    """The last batch's, which is named by its bundle when that is not the champion; None without a batch."""
    batch: Mapping[str, Any] = row["batched"] or {}
    if "answered" not in batch:
        return None
    answered, valid = batch["answered"], batch.get("valid_rate")
    unanswered = batch.get("unanswered")
    if unanswered is None:  # a run of before that was written down
        unanswered = round(answered / valid) - answered if valid else -answered
    by = row["batch_bundle"]
    other = f", by bundle {by[:8]}" if by and by != row["champion"] else ""
    return Rates(
        f"last batch{other}", _share(batch.get("escalation_rate"), answered), _share(valid, answered + unanswered)
    )


def tested_rates(row: Row) -> Rates | None:
    """Those of the test rows; None without a run that judged the verdict's bundle."""
    test: Mapping[str, Any] = row["test"] or {}
    if not test:
        return None
    n = test["cascade"]["n"]
    return Rates("test rows", _share(test["escalation_rate"], n), _share(test["valid_rate"], n))


def _share(rate: float | None, n: int) -> Estimate | None:
    return proportion(rate, n) if rate is not None and n else None


def line(row: Row) -> Row:
    """A workload as a line of the table; rates are those of the last batch, else of the test rows."""
    told = numbers(row)
    made: Mapping[str, Any] = row["certificate"] or {}
    rates = batch_rates(row) or tested_rates(row)
    price = usd(told["usd_per_1000"]) + (
        f" {usd_interval(ends, times=1000)}" if (ends := made.get("cost_interval")) else ""
    )
    return {
        "Workload": row["workload"],
        "Verdict": told["verdict"],
        "Loss allowed": _promised(made) if made else None,
        "Loss, 95 % interval": f"{told['loss']:+.3f}, {interval(made.get('gap_interval'))}"
        if made.get("certified")
        else None,
        "n": told["n"],
        "USD / 1,000 rows": price,
        "all strong": usd(told["usd_per_1000_all_strong"]),
        "Escalated": _says(rates.escalated if rates else None),
        "of answered": told["escalated_n"],
        "Valid": _says(rates.valid if rates else None),
        "of rows": told["valid_n"],
        "Rates of": told["rates_of"],
        "address": "?" + urlencode({"workload": row["workload"]}),
    }


def numbers(row: Row) -> Row:
    """The same as plain numbers, for a spreadsheet: shares of 1, USD at list price, ends of 95 % intervals."""
    made: Mapping[str, Any] = row["certificate"] or {}
    rates = batch_rates(row) or tested_rates(row)
    certified = bool(made.get("certified"))
    return {
        "workload": row["workload"],
        "verdict": said(row)[0],
        "champion": row["champion"],
        "kind": made.get("kind"),
        "loss_allowed": made.get("eps"),
        "delta": made.get("delta"),
        **_columns("loss", made.get("gap") if certified else None, made.get("gap_interval") if certified else None),
        "n": made.get("n"),
        **_columns("usd_per_1000", made.get("cost"), made.get("cost_interval"), times=1000),
        "usd_per_1000_all_strong": _times(made.get("cost_all_strong", made.get("cost")), 1000),
        "rates_of": rates.of if rates else None,
        **_share_columns("escalated", rates.escalated if rates else None),
        **_share_columns("valid", rates.valid if rates else None),
    }


def _columns(name: str, value: float | None, ends: Any, *, times: float = 1.0) -> Row:
    low, high = ends or (None, None)
    return {name: _times(value, times), f"{name}_low": _times(low, times), f"{name}_high": _times(high, times)}


def _share_columns(name: str, known: Estimate | None) -> Row:
    if known is None:
        return {**_columns(name, None, None), f"{name}_n": None}
    return {**_columns(name, known.mean, (known.low, known.high)), f"{name}_n": known.n}


def _times(value: float | None, times: float) -> float | None:
    return None if value is None else times * value


def _says(known: Estimate | None) -> str | None:
    return f"{percent(known.mean)} [{100 * known.low:.1f}, {100 * known.high:.1f}]" if known else None


def show(row: Row) -> None:
    """A verdict with its figures: quality against the promise, cost against all-strong, rates."""
    short, why = said(row)
    st.header("Verdict", anchor=False)
    figure("Promise", short, why)
    made: Mapping[str, Any] | None = row["certificate"]
    if made is None:
        empty("No run of this workload has come to a verdict.", f"headrace run {shlex.quote(row['workload'])}")
        return
    left, right = st.columns(2)
    with left:
        _quality(row, made)
    with right:
        _cost(row, made)
    if promise := made.get("promise"):
        with st.expander("The promise, word for word"):
            st.text(promise)


def _quality(row: Row, made: Mapping[str, Any]) -> None:
    if made["certified"]:
        level = made.get("level") or made["delta"]
        detail = (
            f"95 % interval {interval(made.get('gap_interval'))}, allowed {_promised(made)}; n = {made['n']:,} "
            f"calibration rows, {made['test']}, p = {made['p_value']:.3g} at level {level:g}"
        )
        figure("Quality lost against all-strong", f"{made['gap']:+.3f}", detail)
    else:
        needed = f"about {made['rows_needed']:,} would do" if made["rows_needed"] else "more rows would not help"
        figure("Quality lost against all-strong", "none", f"every row is strong; n = {made['n']:,}, {needed}")
    if row["kept"] and (again := row["looked_at"]) and again["certified"]:
        figure(
            "Looked at again on newer rows",
            f"{again['gap']:+.3f}",
            f"95 % interval {interval(again.get('gap_interval'))}, n = {again['n']:,}, p = {again['p_value']:.3g}",
        )
    test: Mapping[str, Any] = row["test"] or {}
    for tier in ("cascade", "strong", "cheap") if test else ():
        of = test[tier]
        if not of["n"]:
            figure(f"Quality, {tier}", "not known", "n = 0 test rows")
            continue
        figure(
            f"Quality, {tier}",
            f"{of['mean']:.3f}",
            f"95 % interval {interval((of['low'], of['high']))}, n = {of['n']:,} test rows",
        )


def _cost(row: Row, made: Mapping[str, Any]) -> None:
    per_row, n = made.get("cost"), made["n"]
    if per_row is not None:
        figure(
            "Cost of 1,000 rows, " + ("cascade" if made["certified"] else "all strong"),
            usd(1000 * per_row),
            f"USD at list price, 95 % interval {usd_interval(made.get('cost_interval'), times=1000)}, n = {n:,} "
            "calibration rows",
        )
    if made["certified"]:
        sums = queries.one(COSTS, run=row["made_by"])
        told = mean_interval(sums["usd"], sums["usd_squared"], sums["n"]) if sums else None
        saved = f"the cascade saves {1 - made['cost'] / made['cost_all_strong']:.1%}" if made["cost_all_strong"] else ""
        figure(
            "Cost of 1,000 rows, all strong",
            usd(1000 * made["cost_all_strong"]),
            f"USD at list price, 95 % interval {usd_interval(told, times=1000)}, n = {n:,} calibration rows; {saved}",
        )
    _rates(row)


def _rates(row: Row) -> None:
    if test := tested_rates(row):
        _rate("Escalated, test rows", test.escalated, "test rows")
        _rate("Valid answers, test rows", test.valid, "test rows")
    if batch := batch_rates(row):
        held = queries.one("SELECT quarantined FROM quarantine_counts WHERE run_id = :run", run=row["batch"])
        quarantined = held["quarantined"] if held else 0
        _rate(f"Escalated, {batch.of}", batch.escalated, "answered rows")
        more = f"; {quarantined:,} of the run's rows are in quarantine"
        _rate(f"Valid answers, {batch.of}", batch.valid, "rows", more)


def _rate(label: str, known: Estimate | None, rows: str, more: str = "") -> None:
    if known is None:
        figure(label, "not known", f"no {rows} are on record{more}")
        return
    detail = f"95 % interval {percent(known.low)} to {percent(known.high)}, n = {known.n:,} {rows}"
    figure(label, percent(known.mean), detail + more)
