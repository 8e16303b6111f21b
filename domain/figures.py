"""Figures: from paired rows to the numbers that people read."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from domain.bundles import CascadeFigures, keeps
from domain.certificates import PairedRows
from domain.comparisons import Difference, paired_difference
from domain.confidences import FloatArray, auroc
from domain.datasets import Split
from domain.learned_scores import Features, FeatureTable
from domain.outcomes import TierAnswer, skipped
from domain.routers import Routing
from domain.scores import estimate
from domain.workloads import SignalName, Target


@dataclass(frozen=True, slots=True)
class Row:
    """One row with both tiers' answers and their qualities in [0, 1]; its length as it stands in the prompt, in
    characters, and the digest of its inputs."""

    key: str
    split: Split
    cheap: TierAnswer
    strong: TierAnswer
    cheap_quality: float
    strong_quality: float
    chars: int = 0
    inputs: str = ""


def routed(rows: Sequence[Row], routing: Routing, *, decisive: str) -> list[Row]:
    """The rows as a router reads them: its signal is the confidence, and the only one whose calls are paid.

    An answer that is not valid has no confidence. Rows that are long enough skip the cheap tier.
    """
    read = list(_confidences(rows, routing, decisive))
    return [_read(row, value, routing) for row, value in zip(rows, read, strict=True)]


def _confidences(rows: Sequence[Row], routing: Routing, decisive: str) -> Iterator[float | None]:
    if routing.score is None:
        yield from (routing.confidence(row.cheap.confidence, row.cheap.signals, label=None, chars=0) for row in rows)
    elif rows:
        found = routing.score.confidences(feature_table(rows, decisive))
        yield from (None if math.isnan(value) else float(value) for value in found)


def feature_table(rows: Sequence[Row], decisive: str) -> FeatureTable:
    """What a learned score may look at, of rows in their order."""
    return FeatureTable.of(
        [
            Features(
                row.key,
                {SignalName(name): value for name, value in row.cheap.signals.items()},
                None if row.cheap.output is None else str(row.cheap.output.get(decisive)),
                row.chars,
            )
            for row in rows
        ]
    )


def usd_by(answer: TierAnswer, signal: SignalName) -> float:
    """What an answer costs where the calls of this signal alone are paid; USD at list price."""
    return answer.usd - math.fsum(answer.signal_usd.values()) + answer.signal_usd.get(signal, 0.0)


def _read(row: Row, value: float | None, routing: Routing) -> Row:
    cheap, longest = row.cheap, routing.straight_from
    if longest is not None and row.chars >= longest:
        return replace(row, cheap=skipped())
    confidence = None if cheap.output is None else value
    return replace(row, cheap=replace(cheap, confidence=confidence, usd=usd_by(cheap, routing.signal)))


def paired_rows(rows: Sequence[Row]) -> PairedRows:
    """The rows as arrays, ordered by key: a hash, so the order knows nothing of the labels."""
    ordered = sorted(rows, key=lambda row: row.key)
    confidences = [-np.inf if row.cheap.confidence is None else row.cheap.confidence for row in ordered]
    return PairedRows(
        confidence=np.array(confidences, dtype=np.float64),
        cheap=np.array([row.cheap_quality for row in ordered], dtype=np.float64),
        strong=np.array([row.strong_quality for row in ordered], dtype=np.float64),
        cheap_usd=np.array([row.cheap.usd for row in ordered], dtype=np.float64),
        strong_usd=np.array([row.strong.usd for row in ordered], dtype=np.float64),
    )


def figures_of(rows: Sequence[Row], threshold: float | None) -> CascadeFigures:
    """Cheap, strong and cascade on the test rows; costs are tokens and USD per row at list price."""
    pairs = paired_rows(rows)
    kept = np.array([keeps(float(c), threshold) for c in pairs.confidence], dtype=np.bool_)
    quality = np.where(kept, pairs.cheap, pairs.strong)
    asked = float(threshold is not None)
    ordered = sorted(rows, key=lambda row: row.key)
    cheap_tokens = np.array([row.cheap.tokens for row in ordered], dtype=np.float64)
    strong_tokens = np.array([row.strong.tokens for row in ordered], dtype=np.float64)
    valid = [(row.cheap if keeps(row.cheap.confidence, threshold) else row.strong).output is not None for row in rows]
    return CascadeFigures(
        cheap=estimate(pairs.cheap),
        strong=estimate(pairs.strong),
        cascade=estimate(quality),
        valid_rate=float(np.mean(valid)) if rows else 0.0,
        escalation_rate=float(1 - kept.mean()) if rows else 1.0,
        auroc=auroc(pairs.confidence, pairs.cheap >= 1.0),
        cheap_usd=_mean(pairs.cheap_usd),
        strong_usd=_mean(pairs.strong_usd),
        cascade_usd=_mean(asked * pairs.cheap_usd + ~kept * pairs.strong_usd),
        cheap_tokens=_mean(cheap_tokens),
        strong_tokens=_mean(strong_tokens),
        cascade_tokens=_mean(asked * cheap_tokens + ~kept * strong_tokens),
    )


def loss_of(rows: Sequence[Row], threshold: float | None, target: Target) -> Difference:
    """What the cascade loses row by row against the strong tier, or against the share of it that the target asks."""
    pairs = paired_rows(rows)
    kept = np.array([keeps(float(c), threshold) for c in pairs.confidence], dtype=np.bool_)
    cascade = np.where(kept, pairs.cheap, pairs.strong)
    return paired_difference(cascade, target.asked * pairs.strong)


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else 0.0
