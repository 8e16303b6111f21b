"""Confidence: what the decisive token's log-probabilities say about the answer."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

FLOOR = 1e-9
"""Probability given to a label that the server did not list."""


@dataclass(frozen=True, slots=True)
class Token:
    """One sampled token with the alternatives the server listed for its place (text -> log-probability)."""

    text: str
    alternatives: Mapping[str, float]


def label_logprobs(tokens: Sequence[Token], fields: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Log-probabilities over the allowed values of each closed field, renormalised.

    The token that holds the first character of a value decides; an alternative counts for the labels
    it can still become, in equal shares. Alignment is by character offset, so a token that carries the
    opening quote or the colon as well is read right. A field that the text does not reach is left out.
    """
    text = "".join(token.text for token in tokens)
    found: dict[str, dict[str, float]] = {}
    for field, labels in fields.items():
        start = _value_start(text, field)
        if start is not None and (chances := _chances(tokens, start, labels)):
            found[field] = chances
    return found


def _value_start(text: str, field: str) -> int | None:
    """Offset of the first character inside the string value of a top-level key."""
    key = json.dumps(field, ensure_ascii=False)
    at = text.find(key)
    if at < 0:
        return None
    rest = text[at + len(key) :]
    after_colon = rest.lstrip()
    if not after_colon.startswith(":"):
        return None
    value = after_colon[1:].lstrip()
    return len(text) - len(value) + 1 if value.startswith('"') and len(value) > 1 else None


def _chances(tokens: Sequence[Token], start: int, labels: Sequence[str]) -> dict[str, float]:
    begin = 0
    for token in tokens:
        if begin <= start < begin + len(token.text):
            return _spread(token, token.text[: start - begin], labels)
        begin += len(token.text)
    return {}


def _spread(token: Token, prefix: str, labels: Sequence[str]) -> dict[str, float]:
    mass = dict.fromkeys(labels, 0.0)
    for alternative, logprob in token.alternatives.items():
        if not alternative.startswith(prefix):
            continue
        piece = alternative[len(prefix) :].split('"')[0]
        heirs = [label for label in labels if piece and label.startswith(piece)]
        for heir in heirs:
            mass[heir] += math.exp(logprob) / len(heirs)
    total = sum(max(m, FLOOR) for m in mass.values())
    return {label: math.log(max(m, FLOOR) / total) for label, m in mass.items()}


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
        total = sum(weights.values())
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
