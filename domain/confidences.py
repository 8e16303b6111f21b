"""Confidence: what the decisive field's log-probabilities say about the answer, calibrated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

FLOOR = 1e-9
"""Probability given to a label that the server did not list."""


@dataclass(frozen=True, slots=True)
class LabelPrior:
    """Mean probability of each label over unlabelled rows: what the model says before it reads the row."""

    means: Mapping[str, float]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, float]], labels: Sequence[str]) -> "LabelPrior":
        """Estimate from rows of label -> log-probability (batch calibration, arXiv 2309.17249)."""
        if not rows:
            return cls(dict.fromkeys(labels, 1 / len(labels)))
        table = np.array([[math.exp(row[label]) for label in labels] for row in rows])
        return cls({label: float(mean) for label, mean in zip(labels, table.mean(axis=0), strict=True)})

    def apply(self, logprobs: Mapping[str, float]) -> dict[str, float]:
        """Divide each label's probability by its mean and renormalise to 1."""
        weights = {label: math.exp(value) / max(self.means[label], FLOOR) for label, value in logprobs.items()}
        total = math.fsum(weights.values())  # in whatever order they come: the ledger does not keep that of the wire
        return {label: weight / total for label, weight in weights.items()}


@dataclass(frozen=True, slots=True)
class Decision:
    """The label that wins after calibration and its margin over the next one, in [0, 1]."""

    label: str
    confidence: float


def decide(logprobs: Mapping[str, float], prior: LabelPrior) -> Decision:
    """The calibrated answer of the decisive field; confidence is p1 - p2."""
    ranked = sorted(prior.apply(logprobs).items(), key=lambda item: (-item[1], item[0]))
    return Decision(label=ranked[0][0], confidence=ranked[0][1] - ranked[1][1])


def auroc(confidence: FloatArray, right: npt.NDArray[np.bool_]) -> float | None:
    """Chance that a right answer is more confident than a wrong one, ties half; None with one class only."""
    good, bad = confidence[right], confidence[~right]
    if not len(good) or not len(bad):
        return None
    ordered = np.sort(bad)
    below = np.searchsorted(ordered, good, side="left")
    tied = np.searchsorted(ordered, good, side="right") - below
    return float((below + tied / 2).sum() / (len(good) * len(bad)))


def aurc(confidence: FloatArray, loss: FloatArray) -> float | None:
    """Area under the risk-coverage curve (Geifman, Uziel and El-Yaniv, arXiv 1805.08206); None without rows.

    The mean over all rows of the mean loss of those that are at least as confident: equal confidences are accepted
    together, so that the order of the rows does not matter. The lower the better; a confidence that is the same for all
    rows comes to the mean loss.
    """
    if not len(confidence):
        return None
    levels, group = np.unique(-confidence, return_inverse=True)  # the surest first
    rows = np.bincount(group, minlength=len(levels))
    risk = np.cumsum(np.bincount(group, weights=loss, minlength=len(levels))) / np.cumsum(rows)
    return float((rows * risk).sum() / len(confidence))
