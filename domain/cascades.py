"""Cascades: from both tiers' answers to a threshold, the test figures, every row's outcome, and the bundle."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from pydantic import JsonValue

from domain.bundles import Bundle, BundledTier, CascadeFigures, Lineage
from domain.canonical import digest
from domain.certificates import FIRST_USE, Certificate, Tuned, Use, cheapest, grid_of, tune
from domain.comparisons import Difference
from domain.confidences import FloatArray
from domain.datasets import Split
from domain.figures import Row, figures_of, loss_of, paired_rows, routed
from domain.outcomes import Outcome, Unanswered, settle_row
from domain.routers import Routing
from domain.schemas import OutputSchema
from domain.signals import Quality, qualities
from domain.workloads import SignalName, Target, TierName, Workload

MARGIN = {SignalName.MARGIN: Routing()}
"""The one signal of a workload that declares none."""


@dataclass(frozen=True, slots=True)
class Cascade:
    """What the judged rows came to: how a row is routed and the verdict on it, the threshold (None: all strong), the
    test figures, the loss on the test rows, the outcomes; the verdict on each declared signal; how well each known
    signal tells right from wrong on the calibration rows."""

    routing: Routing
    tuned: Tuned
    threshold: float | None
    figures: CascadeFigures
    loss: Difference
    settled: list[Outcome | Unanswered]
    signals: dict[SignalName, Tuned]
    qualities: dict[SignalName, Quality]


def decide_cascade(
    rows: Sequence[Row],
    target: Target,
    *,
    decisive: str,
    routings: Mapping[SignalName, Routing] = MARGIN,
    use: Use = FIRST_USE,
) -> Cascade:
    """Choose signal and threshold on the calibration rows, look at them on the test rows, and settle every row by them.

    `routings` are the signals that were declared; what is learned of them was learned on other rows.
    """
    read = {name: routed(rows, way, decisive=decisive) for name, way in routings.items()}
    calibration = {name: [row for row in given if row.split is Split.CALIBRATION] for name, given in read.items()}
    tuned = {
        name: _tune(given, name, target, grid=None, declared=len(read), use=use) for name, given in calibration.items()
    }
    chosen = SignalName(cheapest(tuned))
    verdict = tuned[chosen].verdict
    threshold = verdict.threshold if isinstance(verdict, Certificate) else None
    told = _qualities([row for row in rows if row.split is Split.CALIBRATION], calibration)
    return _looked_at(read[chosen], target, routings[chosen], threshold, tuned=tuned, told=told)


def recheck_cascade(
    rows: Sequence[Row], target: Target, *, decisive: str, routing: Routing, threshold: float
) -> Cascade:
    """The same look at a threshold that was certified on other rows, or on some of these: nothing is chosen.

    There is one hypothesis, tested once at level delta on the calibration rows as they are now; it can only be kept or
    lost. Should the rows come from where those of the certificate came from, its promise needs no new test; should they
    not, the chance that this one passes a threshold that loses more than eps is at most delta, as far as the rows are
    new: those that the threshold was chosen on speak for it.
    """
    read = routed(rows, routing, decisive=decisive)
    calibration = [row for row in read if row.split is Split.CALIBRATION]
    grid = np.array([threshold], dtype=np.float64)
    tuned = _tune(calibration, routing.signal, target, grid=grid, declared=1, use=FIRST_USE)
    told = _qualities([row for row in rows if row.split is Split.CALIBRATION], {routing.signal: calibration})
    return _looked_at(read, target, routing, threshold, tuned={routing.signal: tuned}, told=told)


def holds(cascade: Cascade, target: Target) -> bool:
    """Whether a threshold that was looked at again keeps its promise: by its test, and unrefuted by the test rows."""
    return isinstance(cascade.tuned.verdict, Certificate) and cascade.loss.low <= target.allowed


def _looked_at(
    read: Sequence[Row],
    target: Target,
    routing: Routing,
    threshold: float | None,
    *,
    tuned: dict[SignalName, Tuned],
    told: dict[SignalName, Quality],
) -> Cascade:
    """The figures on the test rows, and what becomes of every row."""
    test = [row for row in read if row.split is Split.TEST]
    figures, loss = figures_of(test, threshold), loss_of(test, threshold, target)
    settled = [settle_row(row.key, row.cheap, row.strong, threshold) for row in read]
    return Cascade(routing, tuned[routing.signal], threshold, figures, loss, settled, tuned, told)


def _qualities(rows: Sequence[Row], read: Mapping[SignalName, Sequence[Row]]) -> dict[SignalName, Quality]:
    """The figures of every signal that some row has, declared or not; of declared ones as the router reads them."""
    names = {SignalName(name) for row in rows for name in row.cheap.signals}
    ways = {name: routed(rows, Routing(signal=name), decisive="") for name in names - read.keys()} | dict(read)
    paid = {
        name: np.array([row.cheap.signal_usd.get(name, 0.0) for row in rows], dtype=np.float64) for name in sorted(ways)
    }
    values = {name: _values(ways[name]) for name in sorted(ways)}
    return qualities(values, np.array([row.cheap_quality for row in rows], dtype=np.float64), usd=paid)


def _values(rows: Sequence[Row]) -> FloatArray:
    return np.array([-np.inf if row.cheap.confidence is None else row.cheap.confidence for row in rows])


def evidence_of(rows: Sequence[Row], target: Target, routings: Mapping[SignalName, Routing], *, decisive: str) -> str:
    """sha256 of all that a certificate looks at: the calibration rows' confidences, qualities and costs, the target,
    and how the declared signals are read."""
    seen: list[JsonValue] = [cast(JsonValue, target.model_dump(mode="json"))]
    for way in sorted(routings.values(), key=lambda way: way.signal):
        read = routed(rows, way, decisive=decisive)
        seen.append(cast(JsonValue, way.model_dump(mode="json")))
        for row in sorted((row for row in read if row.split is Split.CALIBRATION), key=lambda row: row.key):
            quality, usd = [row.cheap_quality, row.strong_quality], [row.cheap.usd, row.strong.usd]
            seen.append([row.key, row.cheap.confidence, *quality, *usd])
    return digest(seen)


def _tune(
    rows: Sequence[Row], signal: SignalName, target: Target, *, grid: FloatArray | None, declared: int, use: Use
) -> Tuned:
    pairs = paired_rows(rows)
    twins = Counter(row.inputs or row.key for row in rows)
    effective_n = len(rows) ** 2 / sum(n * n for n in twins.values()) if rows else 0.0
    return tune(
        pairs,
        target,
        grid=grid_of(pairs.confidence) if grid is None else grid,
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
