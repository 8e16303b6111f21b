"""Cascades: from both tiers' answers to a threshold, the test figures, every row's outcome, and the bundle."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import JsonValue

from domain.bundles import Bundle, BundledTier, CascadeFigures, Lineage
from domain.canonical import digest
from domain.certificates import FIRST_USE, Certificate, Tuned, Use, cheapest, grid_of, tune
from domain.comparisons import Difference
from domain.datasets import Split
from domain.figures import Row, by_signal, figures_of, loss_of, paired_rows
from domain.outcomes import Outcome, Unanswered, settle_row
from domain.routers import Routing
from domain.schemas import OutputSchema
from domain.shortcuts import straight_from
from domain.workloads import SignalName, Target, TierName, Workload

MARGIN = {SignalName.MARGIN: Routing()}
"""The one signal of a workload that declares none."""


@dataclass(frozen=True, slots=True)
class Cascade:
    """What the judged rows came to: how a row is routed and the verdict on it, the threshold (None: all strong), the
    test figures, the loss on the test rows, the outcomes; the verdict on each declared signal."""

    routing: Routing
    tuned: Tuned
    threshold: float | None
    figures: CascadeFigures
    loss: Difference
    settled: list[Outcome | Unanswered]
    signals: dict[SignalName, Tuned]


def decide_cascade(
    rows: Sequence[Row],
    target: Target,
    *,
    routings: Mapping[SignalName, Routing] = MARGIN,
    use: Use = FIRST_USE,
) -> Cascade:
    """Choose signal and threshold on the calibration rows, look at them on the test rows, and settle every row by them.

    `routings` are the signals that were declared; rows carry the values of those that are learned already.
    """
    read = {name: by_signal(rows, name, straight_from=way.straight_from) for name, way in routings.items()}
    calibration = {name: [row for row in given if row.split is Split.CALIBRATION] for name, given in read.items()}
    tuned = {name: _tune(given, name, target, declared=len(read), use=use) for name, given in calibration.items()}
    chosen = SignalName(cheapest(tuned))
    verdict = tuned[chosen].verdict
    threshold = verdict.threshold if isinstance(verdict, Certificate) else None
    test = [row for row in read[chosen] if row.split is Split.TEST]
    figures, loss = figures_of(test, threshold), loss_of(test, threshold, target)
    settled = [settle_row(row.key, row.cheap, row.strong, threshold) for row in read[chosen]]
    return Cascade(routings[chosen], tuned[chosen], threshold, figures, loss, settled, tuned)


def routings_of(workload: Workload, fit: Sequence[Row]) -> dict[SignalName, Routing]:
    """How each declared signal is read; what there is to learn is learned on rows that no certificate looks at."""
    return {
        name: Routing(signal=name, straight_from=_shortcut(workload, fit, name)) for name in workload.router.signals
    }


def _shortcut(workload: Workload, fit: Sequence[Row], name: SignalName) -> int | None:
    return straight_from(by_signal(fit, name), workload.target) if fit else None


def evidence_of(rows: Sequence[Row], target: Target, routings: Mapping[SignalName, Routing]) -> str:
    """sha256 of all that a certificate looks at: the calibration rows' confidences, qualities and costs, the target,
    and how the declared signals are read."""
    seen: list[JsonValue] = [cast(JsonValue, target.model_dump(mode="json"))]
    for name, way in sorted(routings.items()):
        read = by_signal(rows, name, straight_from=way.straight_from)
        seen.append(cast(JsonValue, way.model_dump(mode="json")))
        for row in sorted((row for row in read if row.split is Split.CALIBRATION), key=lambda row: row.key):
            quality, usd = [row.cheap_quality, row.strong_quality], [row.cheap.usd, row.strong.usd]
            seen.append([row.key, row.cheap.confidence, *quality, *usd])
    return digest(seen)


def _tune(rows: Sequence[Row], signal: SignalName, target: Target, *, declared: int, use: Use) -> Tuned:
    pairs = paired_rows(rows)
    twins = Counter(row.inputs or row.key for row in rows)
    effective_n = len(rows) ** 2 / sum(n * n for n in twins.values()) if rows else 0.0
    return tune(
        pairs,
        target,
        grid=grid_of(pairs.confidence),
        signal=signal.value,
        declared=declared,
        use=use,
        effective_n=effective_n,
    )


def bundle_of(
    cascade: Cascade,
    workload: Workload,
    schema: OutputSchema,
    tiers: Mapping[TierName, BundledTier],
    lineage: Lineage,
) -> Bundle:
    """The bundle that deploys a cascade."""
    return Bundle(
        workload=workload.name,
        cheap=tiers[TierName.CHEAP],
        strong=tiers[TierName.STRONG],
        json_schema=schema.json_schema,
        decisive=schema.decisive,
        max_reasks=workload.max_reasks,
        routing=cascade.routing,
        threshold=cascade.threshold,
        certificate=cascade.tuned.verdict,
        lineage=lineage,
    )
