"""A certificate for a table, as people read it and as JSON."""

import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from domain.certificates import Certificate, NotCertified, Tuned
from domain.certificates import promise as words_of
from domain.intervals import Interval
from infra.certifying import METRIC, Certified
from infra.routing_tables import RoutingTable
from infra.versions import code_version

Json = dict[str, Any]


def show_certified(console: Console, found: Certified, *, as_json: bool) -> None:
    """The verdict in one line, both models and the cascade, each signal, and the promise; JSON is never coloured."""
    if as_json:
        _write(json.dumps(facts(found), indent=2, allow_nan=False) + "\n")
        return
    with console.capture() as text:
        console.print(_verdict_line(found))
        console.print(_figures(found))
        if len(found.tuned) > 1:
            console.print(_signals(found))
        if isinstance(found.verdict, Certificate):
            console.print(f"[dim]{escape(found.verdict.promise)}[/]")
        if found.table.repeated:
            console.print(
                f"{found.table.repeated:,} rows repeat another one, id and all, and count as drawn again. "
                "If they are copies, leave them out: copies make a promise look better founded than it is."
            )
    _write(text.get())


def _write(text: str) -> None:
    """Write to standard output in any encoding; that nobody reads it is no other verdict."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.replace("≥", ">=").encode(encoding, "replace").decode(encoding)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # Python flushes once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def facts(found: Certified) -> Json:
    """Everything about the verdict as one object of plain JSON; costs are a row's, in the table's own currency."""
    verdict, tuned = found.verdict, found.chosen
    strong = tuned.strong
    point = _point(tuned)
    shared: Json = {
        "certified": verdict.certified,
        "threshold": point.threshold if point else None,
        "signal": found.signal,
        "kind": verdict.kind,
        "rho" if verdict.kind == "relative" else "eps": verdict.eps,
        "delta": verdict.delta,
        "declared_signals": verdict.declared,
        "level": verdict.level,
        "n": verdict.n,
        "test": verdict.test,
        "p_value": verdict.p_value,
        "gap": point.gap if point else 0.0,
        "gap_interval": list(verdict.gap_interval or ()) if isinstance(verdict, Certificate) else [0.0, 0.0],
        "worse": point.worse if point else 0,
        "better": point.better if point else 0,
        "kept": point.kept if point else 0.0,
        "quality": point.quality if point else strong.quality,
        "quality_all_cheap": tuned.cheap.quality,
        "quality_all_strong": strong.quality,
        "cost": verdict.cost,
        "cost_interval": list(verdict.cost_interval) if verdict.cost_interval else None,
        "cost_all_strong": strong.cost,
        "saving": 1 - (point.cost / strong.cost) if point else 0.0,
        "rows_needed": None if isinstance(verdict, Certificate) else verdict.rows_needed,
        "reason": None if isinstance(verdict, Certificate) else verdict.reason,
        "promise": words_of(found.bound, n=verdict.n, metric=METRIC),
    }
    return shared | {
        "signals": {name: _signal(one.verdict) for name, one in found.tuned.items()},
        **_of_table(found.table),
        "grid_hash": verdict.grid_hash,
        "code": code_version(),
    }


def _of_table(table: RoutingTable) -> Json:
    return {
        "repeated_rows": table.repeated,
        "ignored_columns": list(table.ignored),
        "table_sha256": table.sha256,
    }


def _signal(verdict: Certificate | NotCertified) -> Json:
    certified = isinstance(verdict, Certificate)
    return {
        "certified": certified,
        "threshold": verdict.threshold if certified else None,
        "p_value": verdict.p_value,
        "cost": verdict.cost,
        "grid_hash": verdict.grid_hash,
    }


def _point(tuned: Tuned) -> Any:
    verdict = tuned.verdict
    if isinstance(verdict, NotCertified):
        return None
    return next(point for point in tuned.curve if point.threshold == verdict.threshold)


def _verdict_line(found: Certified) -> str:
    verdict, sure = found.verdict, f"with probability {1 - found.bound.delta:g}"
    if isinstance(verdict, Certificate):
        lost = {
            "absolute": f"at most {verdict.eps:g} of quality is lost",
            "relative": f"at most {verdict.eps:.2%} of the strong model's quality is lost",
            "agreement": f"at most {verdict.eps:.2%} of the answers differ from the strong model's",
        }[verdict.kind]
        return (
            f"[bold green]certified[/]  keep the cheap answer when {escape(found.signal)} ≥ {verdict.threshold!r}: "
            f"{lost}, {sure}, and {1 - verdict.cost / verdict.cost_all_strong:.1%} of the cost is saved"
        )
    if verdict.rows_needed:
        needed = f"about {verdict.rows_needed:,} rows would be needed (there are {verdict.n:,})"
    else:
        needed = f"more rows than these {verdict.n:,} would not help"
    return (
        f"[bold yellow]not certified[/]  {escape(verdict.reason)}: route every row to the strong model and do not ask "
        f"the cheap one; {needed}"
    )


def _figures(found: Certified) -> Table:
    tuned, verdict = found.chosen, found.verdict
    table = Table(box=None, pad_edge=False)
    for heading in ("", "quality", "gap", "95 % interval", "cost / 1,000 rows", "95 % interval", "kept on cheap"):
        table.add_column(heading, justify="left" if not heading else "right")
    cheap, strong = tuned.cheap, tuned.strong
    gap = strong.quality - cheap.quality
    table.add_row("cheap alone", f"{cheap.quality:.4f}", f"{gap:.4f}", "", f"{1000 * cheap.cost:.5g}", "", "100.0%")
    table.add_row("strong alone", f"{strong.quality:.4f}", "0", "", f"{1000 * strong.cost:.5g}", "", "0.0%")
    if isinstance(verdict, Certificate):
        point = _point(tuned)
        table.add_row(
            "cascade",
            f"{point.quality:.4f}",
            f"{point.gap:.4f}",
            _interval(verdict.gap_interval, ".4f"),
            f"{1000 * point.cost:.5g}",
            _interval(verdict.cost_interval, ".5g", times=1000),
            f"{point.kept:.1%}",
        )
        changed = f"{verdict.worse:,} kept rows worse, {verdict.better:,} better, n = {verdict.n:,}"
        level = f"p = {verdict.p_value:.3g} at level {verdict.level:g}"
        table.caption, table.caption_justify = f"{verdict.test}: {level}; {changed}", "left"
    return table


def _interval(interval: Interval | None, form: str, *, times: float = 1.0) -> str:
    return f"[{interval[0] * times:{form}}, {interval[1] * times:{form}}]".replace("[", r"\[") if interval else ""


def _signals(found: Certified) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in (f"{len(found.tuned)} declared signals", "threshold", "p", "cost / 1,000 rows"):
        table.add_column(heading, justify="left" if "signals" in heading else "right")
    for name, tuned in found.tuned.items():
        verdict = tuned.verdict
        mark = "  (chosen)" if name == found.signal and verdict.certified else ""
        p = "" if verdict.p_value is None else f"{verdict.p_value:.3g}"
        threshold = repr(verdict.threshold) if isinstance(verdict, Certificate) else "not certified"
        cost = f"{1000 * verdict.cost:.5g}" if isinstance(verdict, Certificate) else ""
        table.add_row(escape(name) + mark, threshold, p, cost)
    return table
