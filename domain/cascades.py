"""Cascades: from both tiers' answers to a threshold, the test figures, every row's outcome, and the bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from domain.bundles import Bundle, BundledTier, CascadeFigures, Lineage
from domain.certificates import Certificate, Tuned, grid_of, tune
from domain.comparisons import Difference
from domain.datasets import Split
from domain.figures import Row, figures_of, loss_of, paired_rows
from domain.outcomes import Outcome, Unanswered, settle_row
from domain.schemas import OutputSchema
from domain.workloads import Target, TierName, Workload


@dataclass(frozen=True, slots=True)
class Cascade:
    """What the judged rows came to: the verdict, its threshold (None: all strong), the test figures, the loss on the
    test rows, the outcomes."""

    tuned: Tuned
    threshold: float | None
    figures: CascadeFigures
    loss: Difference
    settled: list[Outcome | Unanswered]


def decide_cascade(rows: Sequence[Row], target: Target) -> Cascade:
    """Choose the threshold on the calibration rows, look at it on the test rows, and settle every row by it."""
    calibration = paired_rows([row for row in rows if row.split is Split.CALIBRATION])
    tuned = tune(calibration, target, grid=grid_of(calibration.confidence))
    threshold = tuned.verdict.threshold if isinstance(tuned.verdict, Certificate) else None
    test = [row for row in rows if row.split is Split.TEST]
    figures, loss = figures_of(test, threshold), loss_of(test, threshold, target)
    settled = [settle_row(row.key, row.cheap, row.strong, threshold) for row in rows]
    return Cascade(tuned, threshold, figures, loss, settled)


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
        threshold=cascade.threshold,
        certificate=cascade.tuned.verdict,
        lineage=lineage,
    )
