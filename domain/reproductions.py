"""Reproductions: recorded answers beside today's answers to the same requests, and how far the two agree."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from domain.answers import settle
from domain.confidences import LabelPrior
from domain.requests import Completion
from domain.schemas import OutputSchema
from domain.scores import Estimate, estimate


@dataclass(frozen=True, slots=True)
class Again:
    """One request's recorded answer against today's; the gaps are None where a side has no figure."""

    same_text: bool
    same_output: bool
    same_label: bool
    logprob_gap: float | None
    confidence_drift: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Shares that agree with their 95 % intervals; mean absolute gap of the decisive labels' log-probabilities;
    mean and largest change of the confidence (today's minus the recorded one)."""

    text: Estimate
    output: Estimate
    label: Estimate
    logprob_gap: float | None
    confidence_drift: float | None
    largest_drift: float | None


def beside(recorded: Completion, today: Completion, schema: OutputSchema, prior: LabelPrior) -> Again:
    """Compare two answers to one request, as texts and as what the row path makes of them."""
    before, now = settle(recorded, schema, prior), settle(today, schema, prior)
    left, right = before.output or {}, now.output or {}
    old, new = (c.label_logprobs.get(schema.decisive) for c in (recorded, today))
    gaps = [abs(new[label] - old[label]) for label in schema.labels] if old and new else []
    drift = None if before.confidence is None or now.confidence is None else now.confidence - before.confidence
    return Again(
        same_text=(recorded.text, recorded.finish_reason) == (today.text, today.finish_reason),
        same_output=before.output == now.output,
        same_label=left.get(schema.decisive) == right.get(schema.decisive),
        logprob_gap=sum(gaps) / len(gaps) if gaps else None,
        confidence_drift=drift,
    )


def agreement(pairs: Sequence[Again]) -> Agreement:
    """What many comparisons come to; no comparison gives shares of which nothing is known."""
    drifts = [pair.confidence_drift for pair in pairs if pair.confidence_drift is not None]
    gaps = [pair.logprob_gap for pair in pairs if pair.logprob_gap is not None]
    return Agreement(
        text=_share([pair.same_text for pair in pairs]),
        output=_share([pair.same_output for pair in pairs]),
        label=_share([pair.same_label for pair in pairs]),
        logprob_gap=sum(gaps) / len(gaps) if gaps else None,
        confidence_drift=sum(drifts) / len(drifts) if drifts else None,
        largest_drift=max(drifts, key=abs) if drifts else None,
    )


def _share(same: Sequence[bool]) -> Estimate:
    return estimate(np.array(same, dtype=np.float64))
