"""Records, their identity, and the split a record falls into."""

from dataclasses import dataclass
from enum import StrEnum

from pydantic import JsonValue

from domain.canonical import digest, share
from domain.errors import Place
from domain.workloads import Dataset, Splits


class Split(StrEnum):
    """What a row is used for."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    TEST = "test"
    INCOMING = "incoming"


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


def split_of(record_id: str, splits: Splits) -> Split:
    """The split of a labelled row by hash of its id: adding rows moves no row."""
    position = share(record_id, salt="headrace-split")
    if position < splits.train:
        return Split.TRAIN
    return Split.CALIBRATION if position < splits.train + splits.calibration else Split.TEST


def read_record(raw: RawRow, place: Place, *, dataset: Dataset, labelled: bool) -> Record | BadRow:
    """Turn one parsed row into a Record, or say what is wrong with it."""
    wanted = [dataset.id, *dataset.inputs, *(dataset.gold.values() if labelled else ())]
    for column in wanted:
        problem = _problem(raw.get(column), present=column in raw)
        if problem:
            return BadRow(Place(place.file, place.line, field=column), problem, _excerpt(raw))
    inputs = {column: raw[column] for column in dataset.inputs}
    for column, value in inputs.items():
        size = len(str(value).encode())
        if size > dataset.max_row_bytes:
            reason = f"is {size:,} bytes long; the limit is {dataset.max_row_bytes:,} (dataset.max_row_bytes)"
            return BadRow(Place(place.file, place.line, field=column), reason, _excerpt(raw))
    record_id = str(raw[dataset.id])
    gold = {field: raw[column] for field, column in dataset.gold.items()} if labelled else None
    split = split_of(record_id, dataset.splits) if labelled else Split.INCOMING
    return Record(record_id=record_id, inputs=inputs, gold=gold, split=split, place=place)


def _problem(value: JsonValue, *, present: bool) -> str | None:
    if not present:
        return "is missing"
    if value is None or (isinstance(value, str) and not value.strip()):
        return "is empty"
    if isinstance(value, str):
        if "\0" in value:
            return "holds a NUL character"
        if any("\ud800" <= character <= "\udfff" for character in value):
            return "holds half of a surrogate pair"
    return None


def _excerpt(raw: RawRow) -> str:
    return repr(raw)[:200]


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
