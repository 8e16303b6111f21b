"""Alignments: which tokens spell which field of a JSON answer, and what their log-probabilities say about its value."""

import json
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

from domain.confidences import FLOOR


class Sampled(Protocol):
    """One sampled token with the alternatives the server listed for its place (text -> log-probability)."""

    @property
    def text(self) -> str:
        """What it spells."""
        ...

    @property
    def logprob(self) -> float:
        """Its own log-probability."""
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

    @property
    def logprob(self) -> float:
        """Its own log-probability."""
        return self.alternatives[self.text]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the tokens of one field's value say: the sum and the least of their log-probabilities, how many there are,
    and for a closed field the probability, before renormalisation, that was left for its allowed values."""

    logprob: float
    least: float
    tokens: int
    allowed: float | None = None


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields to look for, by the name that stands in the text, and the labels of the closed ones.

    `endings` are the labels as JSON writes them, from the first character to the closing quote.
    """

    names: Mapping[str, str]
    labels: Mapping[str, tuple[str, ...]]
    endings: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, names: Sequence[str], closed: Mapping[str, Sequence[str]]) -> "Fields":
        """Fields to find in characters."""
        labels = {field: tuple(dict.fromkeys(values)) for field, values in closed.items()}
        endings = {field: tuple(map(_ending, values)) for field, values in labels.items()}
        return cls({name: name for name in (*names, *closed)}, labels, endings)

    def in_bytes(self) -> "Fields":
        """The same fields to find in bytes, each of which is written as one character."""
        names = {as_bytes(written): name for written, name in self.names.items()}
        endings = {field: tuple(map(as_bytes, written)) for field, written in self.endings.items()}
        return Fields(dict(self.names) | names, self.labels, endings)


def as_bytes(text: str) -> str:
    """The UTF-8 bytes of a text, each as the character of that number: so offsets in it are offsets in bytes."""
    return text.encode(errors="replace").decode("latin-1")


Read = tuple[dict[str, dict[str, float]], dict[str, Reading]]
"""What was read of an answer: the log-probabilities of each closed field's labels, and a reading of each field."""


def read_fields(tokens: Sequence[Sampled], fields: Fields, *, said: str | None = None) -> Read | None:
    """Align the tokens of an answer with its top-level fields; None when they do not spell what was `said`.

    A token belongs to a value when it spells any character between the value's quotes, whatever punctuation it carries
    as well. Tokens of quotes, colons and braces alone belong to none; an empty string is said by its closing quote.
    Values that are objects or arrays, and such as the answer breaks off in, have no reading.

    The labels of a closed field get log-probabilities, renormalised over them. The value is followed token by token for
    as long as several labels share what is written so far; an alternative counts for the labels it can still become, in
    equal shares. Where the alternatives fit no label at all, the field gets none.
    """
    texts = [token.text for token in tokens]
    text = "".join(texts)
    if said is not None and said not in text:
        return None
    ends = list(accumulate(map(len, texts)))
    labels: dict[str, dict[str, float]] = {}
    readings: dict[str, Reading] = {}
    for field, (start, end, quoted) in _values(text, fields.names).items():
        if start >= len(text):
            continue
        first = bisect_right(ends, start)
        allowed = None
        if quoted and (endings := fields.endings.get(field)):
            mass, allowed = _followed(tokens, first, ends[first] - len(texts[first]), start, endings)
            if any(mass):
                floored = [m if m > FLOOR else FLOOR for m in mass]
                total = sum(floored)
                known = zip(fields.labels[field], floored, strict=True)
                labels[field] = {label: math.log(m / total) for label, m in known}
        if end is not None:
            # What spells nothing is part of what comes after it: half a character, say.
            while first and not texts[first - 1] and ends[first - 1] == start:
                first -= 1
            readings[field] = _reading(tokens, first, bisect_left(ends, max(end, start + 1)), allowed)
    return labels, readings


def _reading(tokens: Sequence[Sampled], first: int, last: int, allowed: float | None) -> Reading:
    if first == last:
        logprob = tokens[first].logprob
        return Reading(logprob, logprob, 1, allowed)
    logprobs = [token.logprob for token in tokens[first : last + 1]]
    return Reading(sum(logprobs), min(logprobs), len(logprobs), allowed)


_ENTRY = re.compile(
    r'\s*,?\s*"([^"\\]*(?:\\.[^"\\]*)*)"\s*:\s*(?:"([^"\\]*(?:\\.[^"\\]*)*)("?)|([^\s,"{}\[\]]+)(\s*[,}])?|([{\[]))',
    re.DOTALL,
)
"""A key; then a string and its closing quote, or a bare value and what closes it, or the opening of a nested one."""
_LEXEME = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|([{\[])|([}\]])', re.DOTALL)

Place = tuple[int, int | None, bool]
"""Where a value begins and ends (None: the text breaks off in it), quotes not counted, and whether it has any."""


def _values(text: str, names: Mapping[str, str]) -> dict[str, Place]:
    """The places of the values of these top-level keys; what values quote is no key, and the last of a name counts."""
    found: dict[str, Place] = {}
    at = text.find("{") + 1
    while at and (entry := _ENTRY.match(text, at)):
        at = entry.end()
        key = entry[1]
        field = names.get(_unescaped(key) if "\\" in key else key)
        kind = entry.lastindex or 0
        if kind == 3:
            start, end = entry.span(2)
            place: Place = (start, end if entry[3] else None, True)
        elif kind == 6:
            at = _behind(text, at)
            continue
        else:
            start, end = entry.span(4)
            place = (start, end if kind == 5 else None, False)
            at = end
        if field is not None:
            found[field] = place
    return found


def _unescaped(key: str) -> str:
    try:
        return json.loads(f'"{key}"', strict=False)
    except ValueError:
        return key


def _behind(text: str, at: int) -> int:
    """Where the nested value ends that was opened just before; 0 when it does not."""
    depth = 1
    for lexeme in _LEXEME.finditer(text, at):
        depth += (lexeme[1] is not None) - (lexeme[2] is not None)
        if not depth:
            return lexeme.end()
    return 0


def _followed(
    tokens: Sequence[Sampled], first: int, begin: int, start: int, endings: tuple[str, ...]
) -> tuple[list[float], float | None]:
    """The probability of each label by the tokens from `first` on, which begins at `begin`, and what was left for all
    of them together where the first of these tokens was sampled."""
    mass: dict[str, float] = dict.fromkeys(endings, 0.0)
    written, reached, allowed = "", 1.0, None
    heirs = endings
    for token in tokens[first:]:
        sampled, offset = token.text, begin
        begin += len(sampled)
        if not sampled:
            continue
        if len(heirs) < 2:
            break  # one label is left: what follows changes nothing
        before = sampled[: start - offset] if offset < start else ""
        alternatives = token.alternatives
        for text, logprob in alternatives.items():
            if text != sampled and (others := _heirs(text, before, written, endings)):
                part = reached * math.exp(logprob) / len(others)
                for label in others:
                    mass[label] += part
        heirs = _heirs(sampled, before, written, endings)
        reached *= math.exp(alternatives.get(sampled, -math.inf))
        written += sampled[len(before) :]
        if allowed is None:
            allowed = sum(mass.values()) + (reached if heirs else 0.0)
            if before:  # a token that ends before the value begins decides against no label either
                allowed += sum([math.exp(p) for text, p in alternatives.items() if text and before.startswith(text)])
            allowed = min(allowed, 1.0)
    for label in heirs if written else ():
        mass[label] += reached / len(heirs)
    return list(mass.values()), allowed


@lru_cache(maxsize=65_536)  # a vocabulary offers the same few tokens in the same place, row after row
def _heirs(text: str, before: str, written: str, endings: tuple[str, ...]) -> tuple[str, ...]:
    """The labels that a value can still become once a token of this text follows what is written of it."""
    if not text.startswith(before) or text == before:
        return ()
    value = written + text[len(before) :]
    return tuple(end for end in endings if end.startswith(value) or value.startswith(end))


def _ending(label: str) -> str:
    return json.dumps(label, ensure_ascii=False)[1:]
