"""Reading data files through fsspec: csv, jsonl and parquet, row by row, bad rows by themselves."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]
import httpx
import orjson
from pydantic import JsonValue

from domain.datasets import BadRow, RawRow, excerpt
from domain.errors import DatasetError, Place
from domain.permits import shown
from domain.triggers import Permitted
from infra.permits import permitted_files

LONGEST_LINE = 16 * 1024 * 1024
PARQUET_ROWS, PARQUET_BYTES = 1_000, 1_000_000
"""At most so many rows of a Parquet file are decoded at once, and fewer where rows are long."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_READ_AHEAD = 1 << 20
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row that could be parsed, and where it stands."""

    raw: RawRow
    place: Place


def read_rows(uri: str, folder: Path, permitted: Permitted | None = None) -> Iterator[ReadRow | BadRow]:
    """Rows of every file a uri names, in the files' order; a local uri is relative to the workload's folder.

    Rows are read while they are asked for. A folder, a line or a file too large for memory does no harm, a Parquet
    file's row groups are taken in pieces. With `permitted` nothing is opened but through its guard (`infra.permits`).

    Raises DatasetError when no file matches, a format is unknown, or a file as a whole is unreadable or holds no row;
    NotPermitted for what may not be opened.
    """
    if permitted is None:
        files = _any_files(uri, folder)
    else:
        files = [(file.name, file.open) for file in permitted_files(uri, folder, permitted)]
    if not files:
        raise DatasetError(Place(shown(uri)), "no such file", hint="Check dataset.uri in workload.yaml.")
    for name, open_file in files:
        if _ESCAPED_BYTE.search(name):
            raise DatasetError(Place(excerpt(name)), "the file's name is not UTF-8", hint="Rename the file.")
        yield from _read_file(open_file, name)


def _any_files(uri: str, folder: Path) -> list[tuple[str, Callable[[], BinaryIO]]]:
    """The files that a uri of somebody who may open anything names, none when one of them is not there."""
    address = uri if "://" in uri else str(folder / uri)
    try:
        fs, path = cast("tuple[Any, str]", fsspec.core.url_to_fs(address))
        files = cast(list[str], sorted(fs.glob(path)) if any(c in path for c in "*?[") else [path])
        if not all(fs.isfile(file) for file in files):
            return []
    except (OSError, ValueError, ImportError, httpx.HTTPError) as error:  # the last one is what hf:// raises
        raise DatasetError(Place(shown(uri)), f"it cannot be reached: {error}"[:300]) from error

    def name(file: str) -> str:
        relative = "://" not in uri and Path(file).is_relative_to(folder)
        return str(Path(file).relative_to(folder)) if relative else file

    return [(name(file), partial(fs.open, file, "rb")) for file in files]


def _read_file(open_file: Callable[[], BinaryIO], name: str) -> Iterator[ReadRow | BadRow]:
    read = _READERS.get(Path(name).suffix.lower())
    if read is None:
        raise DatasetError(Place(name), "unknown format", hint=f"Use one of: {', '.join(_READERS)}.")
    rows = 0
    try:
        # Buffered here, whatever the file system: its own readline may be slow.
        with io.BufferedReader(cast(Any, open_file()), _READ_AHEAD) as stream:
            _refuse_wide_encodings(stream, name)
            for row in read(stream, name):
                rows += 1
                yield row
    except (OSError, httpx.HTTPError) as error:
        raise DatasetError(Place(name), f"it cannot be read: {error}"[:300]) from error
    if not rows:
        raise DatasetError(Place(name), "the file holds no rows")


def _refuse_wide_encodings(stream: BinaryIO, name: str) -> None:
    start = stream.read(4)
    stream.seek(0)
    if start.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        raise DatasetError(Place(name), "the file is UTF-16 or UTF-32", hint="Save it as UTF-8.")


def _read_jsonl(stream: BinaryIO, name: str) -> Iterator[ReadRow | BadRow]:
    for number, line in enumerate(_lines(stream), start=1):
        if line.strip():
            yield _parse_line(line, Place(name, number))


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Whole lines without the mark that may open a file; of one longer than LONGEST_LINE only the beginning."""
    if stream.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
        stream.seek(0)
    while line := stream.readline(LONGEST_LINE):
        rest = line
        while len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(LONGEST_LINE)
        yield line


def _parse_line(line: bytes, place: Place) -> ReadRow | BadRow:
    """A line by orjson where that is certain to be right, and by the strict parser otherwise."""
    try:
        row = orjson.loads(line)
    except ValueError:
        return _parse_strictly(line, place)
    if isinstance(row, dict) and _is_faithful(cast(RawRow, row), line):
        return ReadRow(cast(RawRow, row), place)
    return _parse_strictly(line, place)


def _is_faithful(row: RawRow, line: bytes) -> bool:
    """Whether orjson has certainly lost nothing: it keeps the last of equal keys, and makes floats of long integers."""
    keys = 0
    inside: list[JsonValue] = [row]
    while inside:
        part = inside.pop()
        for value in part.values() if isinstance(part, dict) else cast(list[JsonValue], part):
            if isinstance(value, dict | list):
                inside.append(value)
            elif isinstance(value, float) and abs(value) >= 2**63:
                return False
        keys += len(part) if isinstance(part, dict) else 0
    # The line has at least as many colons between keys and values as keys were found, and more if keys stand twice.
    if line.count(b":") == keys:
        return True  # no colon stands anywhere else
    # Where a quote comes right before each of them, those in texts can be told apart: there the quote is escaped.
    spaced = b" :" in line or b"\t:" in line or b"\r:" in line
    return not spaced and b'\\":' not in line and line.count(b'":') == keys


def _parse_strictly(line: bytes, place: Place) -> ReadRow | BadRow:
    start = excerpt(line[:200].decode(errors="replace"))
    if len(line) >= LONGEST_LINE:
        return BadRow(place, f"is longer than {LONGEST_LINE:,} bytes", start)
    try:
        parsed = cast(
            JsonValue,
            json.loads(
                line.decode("utf-8"),
                parse_constant=_refuse_constant,
                parse_float=_finite,
                object_pairs_hook=_unique_keys,
            ),
        )
    except UnicodeDecodeError as error:
        return BadRow(place, f"is not UTF-8 at byte {error.start}", start)
    except (ValueError, RecursionError) as error:
        return BadRow(place, f"is not JSON: {error}"[:300], start)
    if isinstance(parsed, dict):
        return ReadRow(parsed, place)
    return BadRow(place, f"is a JSON {type(parsed).__name__}, not an object", start)


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def _unique_keys(pairs: list[tuple[str, JsonValue]]) -> RawRow:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return row


def _read_csv(stream: BinaryIO, name: str) -> Iterator[ReadRow | BadRow]:
    csv.field_size_limit(LONGEST_LINE)
    # Undecodable bytes come through as lone surrogates, so that one bad row does not stop the file.
    reader = csv.reader((line.decode("utf-8", "surrogateescape") for line in _lines(stream)), strict=True)
    header = _header(reader, name)
    while True:
        place = Place(name, reader.line_num + 1)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if reader.line_num > cast(int, place.line):
                hint = "A quoted cell begins in that line and swallows the following ones: close or double its quotes."
                raise DatasetError(place, f"this is not CSV: {error}", hint=hint) from error
            yield BadRow(place, f"is not CSV: {error}", "")
            continue
        if cells is None:
            return
        if cells:
            yield _check_cells(cells, header, place)


def _header(reader: Iterator[list[str]], name: str) -> list[str]:
    place = Place(name, 1)
    try:
        header = next(reader, list[str]())
    except csv.Error as error:
        raise DatasetError(place, f"this is not CSV: {error}") from error
    if not header:
        raise DatasetError(place, "the file has no header")
    if any(_ESCAPED_BYTE.search(column) for column in header):
        raise DatasetError(place, "the header is not UTF-8")
    if twice := sorted({column for column in header if header.count(column) > 1}):
        raise DatasetError(place, f"the column {twice[0]!r} stands twice")
    return header


def _check_cells(cells: list[str], header: list[str], place: Place) -> ReadRow | BadRow:
    if len(cells) != len(header):
        return BadRow(place, f"has {len(cells)} cells; the header has {len(header)}", excerpt(cells))
    if any(not cell.isascii() and _ESCAPED_BYTE.search(cell) for cell in cells):
        return BadRow(place, "is not UTF-8", excerpt(cells))
    return ReadRow(dict(zip(header, cells, strict=True)), place)


def _read_parquet(stream: BinaryIO, name: str) -> Iterator[ReadRow | BadRow]:
    import pyarrow  # pyright: ignore[reportMissingTypeStubs]
    from pyarrow import parquet  # pyright: ignore[reportMissingTypeStubs]

    broken = cast("type[Exception]", cast(Any, pyarrow).ArrowException)
    number = 0
    try:
        file = cast(Any, parquet).ParquetFile(stream, buffer_size=_READ_AHEAD, pre_buffer=False)
        groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
        row_bytes = sum(group.total_byte_size for group in groups) // max(1, file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=max(1, min(PARQUET_ROWS, PARQUET_BYTES // max(1, row_bytes)))):
            names = cast(list[str], batch.schema.names)
            for values in zip(*batch.columns, strict=True):
                number += 1
                raw = {column: value.as_py() for column, value in zip(names, values, strict=True)}
                yield _check_values(raw, Place(name, number))
    except (broken, OSError) as error:
        raise DatasetError(Place(name), f"this is not Parquet: {error}"[:300]) from error


def _check_values(raw: dict[str, Any], place: Place) -> ReadRow | BadRow:
    """A row with values that JSON has no type for as text; without a word for one, a bad row."""
    if all(value is None or isinstance(value, str | int) for value in raw.values()):
        return ReadRow(raw, place)
    try:
        return ReadRow(cast(RawRow, json.loads(json.dumps(raw, allow_nan=False, default=str))), place)
    except ValueError as error:
        return BadRow(place, f"holds a value JSON has no word for: {error}", excerpt(raw))


_READERS: dict[str, Callable[[BinaryIO, str], Iterator[ReadRow | BadRow]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
