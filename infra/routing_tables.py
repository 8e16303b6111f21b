"""Routing tables: a csv file with both models' quality and cost of every row, and confidences, checked cell by cell."""

import csv
import hashlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from domain.confidences import FloatArray
from domain.datasets import excerpt
from domain.errors import DatasetError, Place
from domain.losses import BETTING_ROWS
from domain.tallies import PairedRows

pyarrow: Any = importlib.import_module("pyarrow")
arrow_csv: Any = importlib.import_module("pyarrow.csv")
compute: Any = importlib.import_module("pyarrow.compute")

SALT = b"headrace certify\0"
"""Rows are ordered by the hash of this and their id, which knows nothing of the labels."""
LONGEST_ROW = 8 * 1024 * 1024
"""Bytes: a table may hold prompts too."""
NOTHING = ["", "NA", "N/A", "n/a", "na", "NaN", "nan", "-nan", "null", "NULL", "None", "none"]
"""Spellings of a confidence that is not there."""
QUALITY_HINT = "Write a quality from 0 to 1; 0 where there is no valid answer, and leave its confidence empty."
COST_HINT = "Write what the answer cost, 0 or more, in any one currency."


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column of a header holds what; agreement stands in for the two qualities."""

    id: str
    cheap_cost: str
    strong_cost: str
    cheap_quality: str | None
    strong_quality: str | None
    agreement: str | None
    signals: tuple[str, ...]
    declared: bool

    @property
    def qualities(self) -> list[str]:
        """The columns of quality or agreement."""
        return [name for name in (self.cheap_quality, self.strong_quality, self.agreement) if name]

    @property
    def costs(self) -> list[str]:
        """The columns of cost."""
        return [self.cheap_cost, self.strong_cost]


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """The rows in an order free of labels, and an array of confidences a signal; `rows.confidence` means nothing."""

    rows: PairedRows
    signals: dict[str, FloatArray]
    ignored: tuple[str, ...]
    sha256: str


def read_table(file: Path, *, signals: Sequence[str] = (), agreement: bool = False) -> RoutingTable:
    """Read and check a table; every complaint is a DatasetError with file, line, column and fix."""
    try:
        first = [record for _, record in islice(_records(file), 2)]
        header = first[0] if first else []
        columns = _columns_of(file, header, signals, agreement=agreement)
        if not signals and len(first) > 1:
            columns = _without_text(columns, dict(zip(header, first[1], strict=False)))
        table = _load(file, columns)
        sha256 = _sha256(file)
    except OSError as error:
        raise DatasetError(Place(str(file)), f"it cannot be read: {error.strerror}", hint="Check the path.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        hint = "Save the file as comma-separated text in UTF-8."
        raise DatasetError(Place(str(file)), f"it is no csv file: {error}", hint=hint) from error
    names = _numeric(table, columns)
    if not names:
        hint = "Add a column `conf` with the cheap answer's confidence; the higher, the surer."
        raise DatasetError(Place(str(file), 1), "no column holds confidences", hint=hint)
    _check(file, table, columns)
    order = _order(table[columns.id].to_pylist()) if len(table) <= BETTING_ROWS else slice(None)

    def values(name: str) -> FloatArray:
        return np.asarray(table[name].cast(pyarrow.float64()).to_numpy(), dtype=np.float64)[order]

    strong_cost = values(columns.strong_cost)
    cheap = values(columns.agreement or columns.cheap_quality or "")
    strong = values(columns.strong_quality) if columns.strong_quality else np.ones(len(cheap))
    rows = PairedRows(np.full(len(cheap), -np.inf), cheap, strong, values(columns.cheap_cost), strong_cost)
    used = {columns.id, *columns.qualities, *columns.costs, *names}
    return RoutingTable(
        rows, {name: values(name) for name in names}, tuple(name for name in header if name not in used), sha256
    )


def _columns_of(file: Path, header: list[str], signals: Sequence[str], *, agreement: bool) -> Columns:
    """Find the columns by name: `row_id` is an id, `cheap_cost_usd` a cost, whatever is called conf… a confidence."""
    place = Place(str(file), 1)
    if not header:
        raise DatasetError(place, "the file is empty", hint="Write a header and a row for every request.")
    if double := sorted({name for name in header if header.count(name) > 1}):
        raise DatasetError(place, f"two columns are called {double[0]!r}", hint="Rename one of them.")

    def find(*beginnings: str, exact: bool = False) -> str:
        same = [name for name in header if name.strip().casefold() in beginnings]
        begun = [] if exact else [name for name in header if name.strip().casefold().startswith(beginnings)]
        found = same or begun
        if len(found) == 1:
            return found[0]
        what = "several columns could be" if found else "there is no column"
        hint = f"Call one column {beginnings[0]!r}; columns are separated by commas."
        raise DatasetError(place, f"{what} {beginnings[0]!r} in: {', '.join(found or header)[:300]}", hint=hint)

    fixed = Columns(
        id=find("id", "row_id", exact=True),
        cheap_cost=find("cheap_cost"),
        strong_cost=find("strong_cost"),
        cheap_quality=None if agreement else find("cheap_quality", exact=True),
        strong_quality=None if agreement else find("strong_quality", exact=True),
        agreement=find("agreement", "agrees", exact=True) if agreement else None,
        signals=(),
        declared=False,
    )
    taken = {fixed.id, *fixed.qualities, *fixed.costs}
    free = [name for name in header if name not in taken]
    if unknown := [name for name in signals if name not in free]:
        hint = f"Name one of: {', '.join(free) or 'there is no other column'}."
        raise DatasetError(place, f"no column of confidences is called {unknown[0]!r}", hint=hint)
    named = tuple(dict.fromkeys(signals)) or tuple(name for name in free if "conf" in name.casefold())
    return replace(fixed, signals=named or tuple(free), declared=bool(named))


def _without_text(columns: Columns, first: Mapping[str, str]) -> Columns:
    """Leave out a `config` or another text that only sounds like a confidence, by its first row."""
    numbers = tuple(name for name in columns.signals if _number(first.get(name, "")) is not None)
    return replace(columns, signals=numbers) if columns.declared and numbers else columns


def _number(text: str) -> float | None:
    try:
        return float("nan" if text.strip() in NOTHING else text)
    except ValueError:
        return None


def _load(file: Path, columns: Columns) -> Any:
    """The columns that count, as Arrow's; what stands in the file and is no number is looked for line by line."""
    numbers = [*columns.qualities, *columns.costs, *(columns.signals if columns.declared else ())]
    types = {columns.id: pyarrow.string(), **dict.fromkeys(numbers, pyarrow.float64())}
    options = arrow_csv.ConvertOptions(
        column_types=types,
        null_values=NOTHING,
        include_columns=[columns.id, *columns.qualities, *columns.costs, *columns.signals],
    )
    try:
        table = arrow_csv.read_csv(
            str(file),
            convert_options=options,
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            read_options=arrow_csv.ReadOptions(block_size=LONGEST_ROW),
        )
    except pyarrow.ArrowInvalid as error:
        _find_damage(file, numbers)
        raise DatasetError(Place(str(file)), f"it is no table: {excerpt(str(error))}") from error
    if not len(table):
        raise DatasetError(Place(str(file), 1), "there is no row below the header", hint="Write a row a request.")
    return table


def _numeric(table: Any, columns: Columns) -> list[str]:
    """The signals; where none was named, every other column of numbers."""
    if columns.declared:
        return list(columns.signals)
    return [
        name
        for name in columns.signals
        if pyarrow.types.is_integer(table[name].type) or pyarrow.types.is_floating(table[name].type)
    ]


def _check(file: Path, table: Any, columns: Columns) -> None:
    """Refuse what no certificate can be computed from, the first row first of the first column that is wrong."""
    ids = table[columns.id]
    for row in np.flatnonzero(compute.equal(ids, "").to_numpy(zero_copy_only=False))[:1]:
        raise _wrong(file, int(row), columns.id, "the id is missing", "Give each row an id of its own.")
    if compute.count_distinct(ids).as_py() != len(table):
        seen: dict[str, int] = {}
        for row, name in enumerate(ids.to_pylist()):
            if (first := seen.setdefault(name, row)) != row:
                said = f"the id {excerpt(name)} stands in line {_line_of(file, first)} too"
                raise _wrong(file, row, columns.id, said, "Give each row an id of its own.")
    for name in columns.qualities:
        value = _floats(table, name)
        low_or_high = ~((value >= 0) & (value <= 1))
        if columns.agreement:
            low_or_high |= (value != 0) & (value != 1)
        for row in np.flatnonzero(low_or_high)[:1]:
            hint = "Write 1 where the two answers are the same, else 0." if columns.agreement else QUALITY_HINT
            raise _wrong(file, int(row), name, _said(float(value[row]), "a quality in [0, 1]"), hint)
    for name in columns.costs:
        value = _floats(table, name)
        for row in np.flatnonzero(~((value >= 0) & np.isfinite(value)))[:1]:
            raise _wrong(file, int(row), name, _said(float(value[row]), "a cost"), COST_HINT)


def _floats(table: Any, name: str) -> FloatArray:
    return np.asarray(table[name].to_numpy(), dtype=np.float64)


def _said(value: float, wanted: str) -> str:
    return f"{wanted} is missing" if np.isnan(value) else f"{value:g} is not {wanted}"


def _order(ids: Sequence[str]) -> list[int]:
    keys = [hashlib.blake2b(SALT + name.encode(), digest_size=16).digest() for name in ids]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---- where it is wrong: the file is read again, record by record


def _records(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Every record with the line it begins in, empty lines left out as Arrow leaves them out."""
    csv.field_size_limit(LONGEST_ROW)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader, line = csv.reader(stream), 1
        for record in reader:
            if record:
                yield line, record
            line = reader.line_num + 1


def _line_of(file: Path, row: int) -> int:
    return next(line for number, (line, _) in enumerate(_records(file)) if number == row + 1)


def _wrong(file: Path, row: int, name: str, message: str, hint: str) -> DatasetError:
    _, header = next(_records(file))
    place = Place(str(file), _line_of(file, row), header.index(name) + 1, name)
    return DatasetError(place, message, hint=hint)


def _find_damage(file: Path, numbers: Sequence[str]) -> None:
    """Raise DatasetError for the first record of another width than the header's, or with a word for a number."""
    records = _records(file)
    _, header = next(records)
    places = {name: header.index(name) for name in numbers}
    for line, record in records:
        if len(record) != len(header):
            said = f"the line has {len(record)} fields, the header {len(header)}"
            raise DatasetError(Place(str(file), line, min(len(record), len(header))), said, hint="Mend the line.")
        for name, at in places.items():
            if _number(record[at]) is None:
                hint = "Write a number with a decimal point; leave a confidence that is not there empty."
                raise DatasetError(
                    Place(str(file), line, at + 1, name), f"{excerpt(record[at])} is no number", hint=hint
                )
