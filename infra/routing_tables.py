"""Routing tables: a csv file with both models' quality and cost of every row, and confidences, checked cell by cell."""

import csv
import hashlib
import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
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
from infra.table_cells import (
    FALSE,
    LONGEST_ROW,
    NOTHING,
    QUALITY_HINT,
    TRUE,
    find_damage,
    line_of,
    names_of,
    number,
    records,
    wrong,
)

pyarrow: Any = importlib.import_module("pyarrow")
arrow_csv: Any = importlib.import_module("pyarrow.csv")
compute: Any = importlib.import_module("pyarrow.compute")

SALT = b"headrace certify\0"
"""Rows are ordered by the hash of this, of all ids and of their own, which knows nothing of the labels."""
FIRST_ROWS = 20
"""Rows by which a column of text is told from one of confidences."""
HIGHEST_COST = 1e100
"""The squares of no more rows than a file can hold add up to a number."""
COST_HINT = "Write what the answer cost, from 0 to 1e100, in any one currency."


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
    """The rows in an order free of labels, and an array of confidences a signal; `rows.confidence` means nothing.

    `repeated` rows say word for word what another one says: they count as drawn again (a bootstrap's draw has such).
    """

    rows: PairedRows
    signals: dict[str, FloatArray]
    ignored: tuple[str, ...]
    sha256: str
    repeated: int = 0


def read_table(file: Path, *, signals: Sequence[str] = (), agreement: bool = False) -> RoutingTable:
    """Read and check a table; every complaint is a DatasetError with file, line, column and fix."""
    try:
        first = [record for _, record in islice(records(file), 1 + FIRST_ROWS)]
        header = names_of(first[0]) if first else []
        columns = _columns_of(file, header, signals, agreement=agreement)
        if len(first) == 1:
            raise _no_row(file)
        rows = [dict(zip(header, record, strict=False)) for record in first[1:]]
        table = _load(file, columns if signals else _without_text(columns, rows), first[0], _booleans(columns, rows))
        sha256 = _sha256(file)
    except OSError as error:
        raise DatasetError(Place(str(file)), f"it cannot be read: {error.strerror}", hint="Check the path.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        hint = "Save the file as comma-separated text in UTF-8."
        raise DatasetError(Place(str(file)), f"it is no csv file: {error}", hint=hint) from error
    names = [name for name in table.column_names if name in columns.signals and _is_numeric(table[name].type)]
    if not names:
        hint = "Add a column `conf` with the cheap answer's confidence; the higher, the surer."
        raise DatasetError(Place(str(file), 1), "no column holds confidences", hint=hint)
    _check(file, table, columns)
    order = _order(table[columns.id].to_pylist()) if len(table) <= BETTING_ROWS else slice(None)

    def values(name: str) -> FloatArray:
        return _floats(table, name)[order]

    strong_cost = values(columns.strong_cost)
    cheap = values(columns.agreement or columns.cheap_quality or "")
    strong = values(columns.strong_quality) if columns.strong_quality else np.ones(len(cheap))
    rows = PairedRows(np.full(len(cheap), -np.inf), cheap, strong, values(columns.cheap_cost), strong_cost)
    used = {columns.id, *columns.qualities, *columns.costs, *names}
    ignored = tuple(name for name in header if name not in used)
    return RoutingTable(rows, {name: values(name) for name in names}, ignored, sha256, _repeated(table, columns))


def _columns_of(file: Path, header: list[str], signals: Sequence[str], *, agreement: bool) -> Columns:
    """Find the columns by name: `row_id` is an id, `cheap_cost_usd` a cost, whatever is called conf… a confidence."""
    place = Place(str(file), 1)
    if not header:
        raise DatasetError(place, "the file is empty", hint="Write a header and a row for every request.")
    if double := sorted({name for name in header if header.count(name) > 1}):
        raise DatasetError(place, f"two columns are called {double[0]!r}", hint="Rename one of them.")

    def find(*beginnings: str, exact: bool = False) -> str:
        same = [[name for name in header if name.casefold() == beginning] for beginning in beginnings]
        begun = [] if exact else [name for name in header if name.casefold().startswith(beginnings)]
        found = next(filter(None, same), begun)
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
    before = [name for name in free if not name.casefold().startswith("strong")]  # what is known without a strong call
    named = tuple(dict.fromkeys(signals)) or tuple(name for name in before if "conf" in name.casefold())
    return replace(fixed, signals=named or tuple(before), declared=bool(named))


def _without_text(columns: Columns, first: Sequence[Mapping[str, str]]) -> Columns:
    """Leave out a `config` or another text that only sounds like a confidence: none of the first rows has a number."""
    numbers = tuple(
        name
        for name in columns.signals
        if all(row.get(name, "") in NOTHING for row in first)
        or any(row.get(name, "") not in NOTHING and number(row.get(name, "")) is not None for row in first)
    )
    return replace(columns, signals=numbers) if columns.declared and numbers else columns


def _booleans(columns: Columns, first: Sequence[Mapping[str, str]]) -> frozenset[str]:
    """The qualities that are written as words for true and false."""
    words = {word for word in TRUE + FALSE if word.isalpha()}
    return frozenset(name for name in columns.qualities if first[0].get(name) in words)


def _load(file: Path, columns: Columns, written: Sequence[str], booleans: frozenset[str]) -> Any:
    """The columns that count, as Arrow's; what stands in the file and is no number is looked for line by line."""
    numbers = [*columns.qualities, *columns.costs, *(columns.signals if columns.declared else ())]
    types = {columns.id: pyarrow.string(), **dict.fromkeys(numbers, pyarrow.float64())}
    types |= dict.fromkeys(booleans, pyarrow.bool_())
    wanted = dict.fromkeys([columns.id, *columns.qualities, *columns.costs, *columns.signals])
    as_written = dict(zip(names_of(written), written, strict=True))
    options = arrow_csv.ConvertOptions(
        column_types={as_written[name]: kind for name, kind in types.items()},
        null_values=NOTHING,
        true_values=TRUE,
        false_values=FALSE,
        include_columns=[as_written[name] for name in wanted],
    )
    try:
        table = arrow_csv.read_csv(
            str(file),
            convert_options=options,
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            read_options=arrow_csv.ReadOptions(block_size=LONGEST_ROW),
        )
    except pyarrow.ArrowInvalid as error:
        find_damage(file, numbers, booleans)
        hint = "Name the column of confidences with --signal."
        raise DatasetError(Place(str(file)), f"it is no table: {excerpt(str(error))}", hint=hint) from error
    if not len(table):
        raise _no_row(file)
    return table.rename_columns(list(wanted))


def _no_row(file: Path) -> DatasetError:
    return DatasetError(Place(str(file), 1), "there is no row below the header", hint="Write a row a request.")


def _is_numeric(kind: Any) -> bool:
    """Where no signal was named, every other column of numbers is one."""
    return bool(pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind))


def _check(file: Path, table: Any, columns: Columns) -> None:
    """Refuse what no certificate can be computed from, the first row first of the first column that is wrong."""
    ids = table[columns.id]
    for row in np.flatnonzero(compute.equal(ids, "").to_numpy(zero_copy_only=False))[:1]:
        raise wrong(file, int(row), columns.id, "the id is missing", "Give each row an id of its own.")
    if _repeated(table, columns):
        seen: dict[str, tuple[int, str]] = {}
        whole = zip(ids.to_pylist(), *(column.to_pylist() for column in table.columns), strict=True)
        for row, (name, *values) in enumerate(whole):
            first, before = seen.setdefault(name, (row, repr(values)))
            if before != repr(values):
                said = f"the id {excerpt(name)} stands in line {line_of(file, first)} too, with other values"
                raise wrong(file, row, columns.id, said, "Give each row an id of its own.")
    for name in columns.qualities:
        value = _floats(table, name)
        low_or_high = ~((value >= 0) & (value <= 1))
        if columns.agreement:
            low_or_high |= (value != 0) & (value != 1)
        for row in np.flatnonzero(low_or_high)[:1]:
            hint = "Write 1 where the two answers are the same, else 0." if columns.agreement else QUALITY_HINT
            raise wrong(file, int(row), name, _said(float(value[row]), "a quality in [0, 1]"), hint)
    for name in columns.costs:
        value = _floats(table, name)
        for row in np.flatnonzero(~((value >= 0) & (value <= HIGHEST_COST)))[:1]:
            raise wrong(file, int(row), name, _said(float(value[row]), "a cost"), COST_HINT)


def _repeated(table: Any, columns: Columns) -> int:
    """Rows whose id stands above them already."""
    return len(table) - int(compute.count_distinct(table[columns.id]).as_py())


def _floats(table: Any, name: str) -> FloatArray:
    return np.asarray(table[name].cast(pyarrow.float64(), safe=False).to_numpy(), dtype=np.float64)


def _said(value: float, wanted: str) -> str:
    return f"{wanted} is missing" if np.isnan(value) else f"{value:g} is not {wanted}"


def _order(ids: Sequence[str]) -> list[int]:
    """An order of its own for every set of ids: samples of one population do not share theirs."""
    together = hashlib.blake2b(SALT)
    for name in sorted(ids):
        together.update(hashlib.blake2b(name.encode(), digest_size=16).digest())
    salt = together.digest()
    keys: list[bytes] = []
    times: Counter[str] = Counter()
    for name in ids:  # a row that was drawn again has a place of its own
        keys.append(hashlib.blake2b(salt + name.encode() + b"\0%d" % times[name], digest_size=16).digest())
        times[name] += 1
    return sorted(range(len(keys)), key=keys.__getitem__)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
