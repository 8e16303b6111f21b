"""Records, their identity, and the split a record falls into."""

import math
import re
import reprlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from pydantic import JsonValue

from domain.canonical import canonical, digest, share
from domain.errors import Place
from domain.workloads import Dataset, Splits

T = TypeVar("T")


class Split(StrEnum):
    """What a row is used for."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    TEST = "test"
    INCOMING = "incoming"


JUDGED = (Split.CALIBRATION, Split.TEST)
"""The rows that both tiers answer while a bundle is made."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row: `key` is the identity of what it says, `record_id` is the name the user gave it."""

    record_id: str
    inputs: dict[str, JsonValue]
    gold: dict[str, JsonValue] | None
    split: Split
    place: Place

    @property
    def key(self) -> str:
        """sha256 over id, inputs and gold."""
        return digest({"id": self.record_id, "inputs": self.inputs, "gold": self.gold})


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, with the reason; it goes to quarantine, never away."""

    place: Place
    reason: str
    excerpt: str

    @property
    def key(self) -> str:
        """sha256 over where it stands and what is wrong."""
        return digest({"place": str(self.place), "reason": self.reason})


RawRow = dict[str, JsonValue]

DEEPEST = 100
"""Levels of lists and objects in one value; far below what Python's own recursion stands."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 160


def split_of(record_id: str, splits: Splits) -> Split:
    """The split of a labelled row by hash of its id: adding rows moves no row."""
    position = share(record_id, salt="headrace-split")
    if position < splits.train:
        return Split.TRAIN
    return Split.CALIBRATION if position < splits.train + splits.calibration else Split.TEST


def cut_train(train: list[T], validation_rows: int) -> tuple[list[T], list[T], list[T]]:
    """The train split in three: validation and held-out rows, at most so many of each, and the rest for demos."""
    judged = min(validation_rows, len(train) // 3)
    return train[:judged], train[judged : 2 * judged], train[2 * judged :]


def read_record(raw: RawRow, place: Place, *, dataset: Dataset, labelled: bool) -> Record | BadRow:
    """Turn one parsed row into a Record, or say what is wrong with it."""
    wanted = [dataset.id, *dataset.inputs, *(dataset.gold.values() if labelled else ())]
    for column in wanted:
        problem = _problem(raw[column]) if column in raw else "is missing"
        if problem is None and column == dataset.id and isinstance(raw[column], bool | list | dict):
            problem = f"names the row, so it must be text or a number, not a {type(raw[column]).__name__}"
        if problem is not None:
            return BadRow(Place(place.file, place.line, field=column), problem, excerpt(raw))
    sizes = {column: len(canonical(raw[column])) for column in wanted}
    if (size := sum(sizes.values())) > dataset.max_row_bytes:
        longest = max(sizes, key=sizes.__getitem__)
        reason = f"makes the row {size:,} bytes long; the limit is {dataset.max_row_bytes:,} (dataset.max_row_bytes)"
        return BadRow(Place(place.file, place.line, field=longest), reason, excerpt(raw))
    record_id = str(raw[dataset.id])
    inputs = {column: raw[column] for column in dataset.inputs}
    gold = {field: raw[column] for field, column in dataset.gold.items()} if labelled else None
    split = split_of(record_id, dataset.splits) if labelled else Split.INCOMING
    return Record(record_id=record_id, inputs=inputs, gold=gold, split=split, place=place)


def _problem(value: JsonValue) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return "is empty"
    inside: list[tuple[JsonValue, int]] = [(value, 1)]
    while inside:  # a loop: what is nested deep enough breaks everything that recurses, json included
        part, depth = inside.pop()
        if depth > DEEPEST:
            return f"is nested more than {DEEPEST} deep"
        if isinstance(part, dict):
            inside += [(item, depth + 1) for pair in part.items() for item in pair]
        elif isinstance(part, list):
            inside += [(item, depth + 1) for item in part]
        elif isinstance(part, float) and not math.isfinite(part):
            return f"holds {part}, which is no number in JSON"
        elif isinstance(part, str) and (problem := _unstorable(part)):
            return problem
    return None


def _unstorable(text: str) -> str | None:
    if "\0" in text:
        return "holds a NUL character"
    return "holds half of a surrogate pair" if _SURROGATE.search(text) else None


def excerpt(raw: object) -> str:
    """The beginning of anything bad, printable and short whatever it is."""
    return _SHORT.repr(raw)[:200]


def version_hash(records: list[Record], bad: list[BadRow]) -> str:
    """sha256 of a DatasetVersion: the same rows in the same order give the same version."""
    return digest({"records": [r.key for r in records], "bad": [b.key for b in bad]})


def separate_duplicates(records: list[Record]) -> tuple[list[Record], list[BadRow]]:
    """Keep the first row of every id; the others are bad rows that name the first."""
    first: dict[str, Record] = {}
    bad: list[BadRow] = []
    for record in records:
        earlier = first.setdefault(record.record_id, record)
        if earlier is not record:
            place = Place(record.place.file, record.place.line, field="id")
            bad.append(BadRow(place, f"{record.record_id!r} was already used at {earlier.place}", ""))
    return list(first.values()), bad
