"""Confidence: what the decisive token's log-probabilities say about the answer."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

FLOOR = 1e-9
"""Probability given to a label that the server did not list."""


class Sampled(Protocol):
    """One sampled token with the alternatives the server listed for its place (text -> log-probability)."""

    @property
    def text(self) -> str:
        """What it spells."""
        ...

    @property
    def alternatives(self) -> Mapping[str, float]:
        """Itself and others; asked for only where it matters."""
        ...


@dataclass(frozen=True, slots=True)
class Token:
    """A sampled token that is all there."""

    text: str
    alternatives: Mapping[str, float]


def label_logprobs(tokens: Sequence[Sampled], fields: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Log-probabilities over the allowed values of each closed field, renormalised.

    A value is followed token by token for as long as several labels share what is written so far; an
    alternative counts for the labels it can still become, in equal shares. Alignment is by character offset,
    so a token that carries the opening quote or the colon as well is read right. A field that the text does
    not reach, or whose alternatives fit no label, is left out.
    """
    text = "".join(token.text for token in tokens)
    found: dict[str, dict[str, float]] = {}
    for field, labels in fields.items():
        start = _value_start(text, field)
        if start is not None and (chances := _chances(tokens, start, labels)):
            found[field] = chances
    return found


_LEXEME = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)
_TO_VALUE = re.compile(r'\s*:\s*"(?=.)', re.DOTALL)


def _value_start(text: str, field: str) -> int | None:
    """Offset of the first character inside the string value of a top-level key; what rows quote is no key."""
    spellings = _spellings(field)
    if text.startswith(first := f'{{{spellings[0]}:"') and len(text) > len(first):
        return len(first)
    depth = 0
    for lexeme in _LEXEME.finditer(text):
        if lexeme[0] in spellings and depth == 1 and (value := _TO_VALUE.match(text, lexeme.end())):
            return value.end()
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(lexeme[0], 0)
    return None


@cache
def _spellings(field: str) -> tuple[str, str]:
    return json.dumps(field, ensure_ascii=False), json.dumps(field)


def _chances(tokens: Sequence[Sampled], start: int, labels: Sequence[str]) -> dict[str, float]:
    known = tuple(labels)
    mass: dict[str, float] = dict.fromkeys(known, 0.0)
    written, reached, begin = "", 1.0, 0
    heirs = known
    for token in tokens:
        sampled, offset = token.text, begin
        begin += len(sampled)
        if begin <= start or not sampled:
            continue
        if len(heirs) < 2:
            break  # one label is left: what follows changes nothing
        before = sampled[: max(start - offset, 0)]
        alternatives = token.alternatives
        for text, logprob in alternatives.items():
            if text != sampled and (others := _heirs(text, before, written, known)):
                part = reached * math.exp(logprob) / len(others)
                for label in others:
                    mass[label] += part
        heirs = _heirs(sampled, before, written, known)
        reached *= math.exp(alternatives.get(sampled, -math.inf))
        written += sampled[len(before) :]
    for label in heirs if written else ():
        mass[label] += reached / len(heirs)
    total = sum(max(m, FLOOR) for m in mass.values())
    return {label: math.log(max(m, FLOOR) / total) for label, m in mass.items()} if any(mass.values()) else {}


@lru_cache(maxsize=65_536)  # a vocabulary offers the same few tokens in the same place, row after row
def _heirs(text: str, before: str, written: str, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The labels that a value can still become once a token of this text follows what is written of it."""
    if not text.startswith(before) or text == before:
        return ()
    value = written + text[len(before) :]
    # As a label stands in JSON, from its first character to the closing quote.
    spelt = ((label, json.dumps(label, ensure_ascii=False)[1:]) for label in labels)
    return tuple(label for label, end in spelt if end.startswith(value) or value.startswith(end))


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
