"""Records, their identity, and the split a record falls into."""

import hashlib
import math
import re
import reprlib
from collections.abc import Iterable
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
    """One row: `record_id` is the name the user gave it, `key` the identity of what it says.

    The key is the sha256 over id, inputs and gold; who has it already may hand it over.
    """

    record_id: str
    inputs: dict[str, JsonValue]
    gold: dict[str, JsonValue] | None
    split: Split
    place: Place
    key: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            key = digest({"id": self.record_id, "inputs": self.inputs, "gold": self.gold})
            object.__setattr__(self, "key", key)


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


class Reader:
    """Turns parsed rows into records; everything about a row is encoded once."""

    def __init__(self, dataset: Dataset, *, labelled: bool) -> None:
        gold = dataset.gold if labelled else {}
        self._dataset = dataset
        self._labelled = labelled
        self._gold = gold
        self._wanted = tuple(dict.fromkeys((dataset.id, *dataset.inputs, *gold.values())))
        # What canonical JSON puts before each value: sorted names.
        self._input_marks = tuple((column, canonical(column) + b":") for column in sorted(set(dataset.inputs)))
        self._gold_marks = tuple((gold[field], canonical(field) + b":") for field in sorted(gold))

    def read(self, raw: RawRow, place: Place) -> Record | BadRow:
        """A parsed row as a Record, or what is wrong with it."""
        dataset = self._dataset
        encoded: dict[str, bytes] = {}
        for column in self._wanted:
            problem = _problem(raw[column]) if column in raw else "is missing"
            if problem is None and column == dataset.id and isinstance(raw[column], bool | list | dict):
                problem = f"names the row, so it must be text or a number, not a {type(raw[column]).__name__}"
            if problem is not None:
                return BadRow(Place(place.file, place.line, field=column), problem, excerpt(raw))
            encoded[column] = canonical(raw[column])
        if (size := sum(map(len, encoded.values()))) > dataset.max_row_bytes:
            longest = max(encoded, key=lambda column: len(encoded[column]))
            reason = (
                f"makes the row {size:,} bytes long; the limit is {dataset.max_row_bytes:,} (dataset.max_row_bytes)"
            )
            return BadRow(Place(place.file, place.line, field=longest), reason, excerpt(raw))
        record_id = str(raw[dataset.id])
        return Record(
            record_id=record_id,
            inputs={column: raw[column] for column in dataset.inputs},
            gold={field: raw[column] for field, column in self._gold.items()} if self._labelled else None,
            split=split_of(record_id, dataset.splits) if self._labelled else Split.INCOMING,
            place=place,
            key=self._key(record_id, encoded),
        )

    def _key(self, record_id: str, encoded: dict[str, bytes]) -> str:
        """`Record.key` out of the parts that are encoded already."""
        inputs = b",".join([mark + encoded[column] for column, mark in self._input_marks])
        gold = b",".join([mark + encoded[column] for column, mark in self._gold_marks])
        said = b"{%s}" % gold if self._labelled else b"null"
        whole = b'{"gold":%s,"id":%s,"inputs":{%s}}' % (said, canonical(record_id), inputs)
        return hashlib.sha256(whole).hexdigest()


def _problem(value: JsonValue) -> str | None:
    if isinstance(value, str):
        return _unstorable(value) if value and not value.isspace() else "is empty"
    if value is None:
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
    return "holds half of a surrogate pair" if not text.isascii() and _SURROGATE.search(text) else None


def excerpt(raw: object) -> str:
    """The beginning of anything bad, printable and short whatever it is."""
    return _SHORT.repr(raw)[:200]


def version_hash(records: Iterable[str], bad: Iterable[str]) -> str:
    """sha256 of a DatasetVersion: the same rows in the same order and the same splits give the same version.

    It runs over the bytes `records`, then for each record in its order the key (64 hex digits) and the name of its
    split, `bad`, and the bad rows' keys in theirs, nothing between them. They are taken one at a time.
    """
    running = hashlib.sha256(b"records")
    for key_and_split in records:
        running.update(key_and_split.encode())
    running.update(b"bad")
    for key in bad:
        running.update(key.encode())
    return running.hexdigest()


def duplicate(record_id: str, place: Place, *, first: Place) -> BadRow:
    """What a row is whose id another row, at `first`, has used before it."""
    named = Place(place.file, place.line, field="id")
    return BadRow(named, f"{excerpt(record_id)} was already used at {first}", "")
