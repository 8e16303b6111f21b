"""Summaries: the figures of a run as plain JSON, and as the sentences that people read."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import cast

from pydantic import JsonValue

from domain.cascades import Cascade
from domain.certificates import Certificate, NotCertified
from domain.workloads import SignalName

Json = dict[str, JsonValue]


def tuning_summary(cascade: Cascade) -> Json:
    """What tuning came to: the verdict without its grid, the test figures, how many thresholds passed, each signal."""
    return {
        "verdict": cascade.tuned.verdict.model_dump(mode="json", exclude={"grid"}),
        "test": cast(JsonValue, asdict(cascade.figures)),
        "tested_thresholds": sum(point.passed for point in cascade.tuned.curve),
        "signals": {name.value: _signal(cascade, name) for name in cascade.qualities},
    }


def _signal(cascade: Cascade, name: SignalName) -> Json:
    """A signal's figures on the calibration rows; of a declared one also what a cascade by it was certified to cost."""
    told = cast(Json, asdict(cascade.qualities[name]))
    if (tuned := cascade.signals.get(name)) is None:
        return told
    verdict = tuned.verdict
    certified = isinstance(verdict, Certificate)
    return {**told, "certified": certified, "p_value": verdict.p_value, "usd": verdict.cost if certified else None}


def figure_metrics(cascade: Cascade) -> dict[str, float]:
    """The test figures by name, as numbers a tracking store can plot, and each signal's on the calibration rows; costs
    are USD per 1,000 rows."""
    figures = cascade.figures
    metrics = {
        "test_quality_cheap": figures.cheap.mean,
        "test_quality_strong": figures.strong.mean,
        "test_quality_cascade": figures.cascade.mean,
        "test_valid_rate": figures.valid_rate,
        "test_escalation_rate": figures.escalation_rate,
        "test_usd_per_1000_cheap": 1000 * figures.cheap_usd,
        "test_usd_per_1000_strong": 1000 * figures.strong_usd,
        "test_usd_per_1000_cascade": 1000 * figures.cascade_usd,
    }
    if figures.auroc is not None:
        metrics["test_auroc"] = figures.auroc
    for name, told in cascade.qualities.items():
        given = {"auroc": told.auroc, "aurc": told.aurc, "usd_per_1000": 1000 * told.usd_per_row}
        metrics |= {f"signal_{name}_{figure}": value for figure, value in given.items() if value is not None}
    return metrics


def verdict_line(verdict: Certificate | NotCertified) -> str:
    """The verdict in one sentence."""
    sure = 1 - verdict.delta
    if isinstance(verdict, Certificate):
        return (
            f"Certified: keep the cheap answer when its confidence is at least {verdict.threshold:.3f}; the loss of "
            f"quality is at most {verdict.eps:g} with probability {sure:g} (n = {verdict.n}, {verdict.test}, "
            f"p = {verdict.p_value:.3g})."
        )
    needed = (
        f"about {verdict.rows_needed:,} calibration rows would be needed"
        if verdict.rows_needed
        else ("more rows would not help: no saving threshold comes within the allowed loss")
    )
    return f"Not certified: {verdict.reason}. All rows go to the strong tier; {needed} (there are {verdict.n})."


def void_line(reasons: Sequence[str], workload: str) -> str:
    """A void certificate in one sentence, and what to do."""
    return (
        f"The champion's certificate is void: {'; '.join(reasons)}. Every row goes to the strong tier as the workload "
        f"has it now; make a new bundle with `headrace run {workload}`."
    )


def table(summary: Json) -> list[tuple[str, str, str, str, str, str]]:
    """The test split as lines of (tier, quality, 95 % interval, rows, tokens and USD per 1,000 rows)."""
    test = cast(dict[str, JsonValue], summary["test"])
    lines: list[tuple[str, str, str, str, str, str]] = []
    for name in ("cheap", "strong", "cascade"):
        estimate = cast(dict[str, float], test[name])
        cost = 1000 * cast(float, test[f"{name}_usd"])
        interval = f"[{estimate['low']:.3f}, {estimate['high']:.3f}]"
        tokens = 1000 * cast(float, test[f"{name}_tokens"])
        n = str(int(estimate["n"]))
        lines.append((name, f"{estimate['mean']:.3f}", interval, n, f"{tokens:,.0f}", f"${cost:.4f}"))
    return lines
