"""Reading data files through fsspec: csv, jsonl and parquet, row by row, bad rows by themselves."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]
import polars
from pydantic import JsonValue

from domain.datasets import BadRow, RawRow
from domain.errors import DatasetError, Place

LONGEST_LINE = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row that could be parsed, and where it stands."""

    raw: RawRow
    place: Place


def read_rows(uri: str, folder: Path) -> Iterator[ReadRow | BadRow]:
    """Rows of every file a uri names, in the files' order; a local uri is relative to the workload's folder.

    Raises DatasetError when no file matches, a format is unknown, or a file as a whole is unreadable.
    """
    address = uri if "://" in uri else str(folder / uri)
    fs, path = cast("tuple[Any, str]", fsspec.core.url_to_fs(address))
    files = cast(list[str], sorted(fs.glob(path)) if any(c in path for c in "*?[") else [path])
    if not files or not all(fs.isfile(file) for file in files):
        raise DatasetError(Place(uri), "no such file", hint="Check dataset.uri in workload.yaml.")
    for file in files:
        name = str(Path(file).relative_to(folder)) if "://" not in uri and Path(file).is_relative_to(folder) else file
        read = _READERS.get(Path(file).suffix.lower())
        if read is None:
            raise DatasetError(Place(name), "unknown format", hint=f"Use one of: {', '.join(_READERS)}.")
        with cast(BinaryIO, fs.open(file, "rb")) as stream:
            yield from read(stream, name)


def _refuse_wide_encodings(start: bytes, name: str) -> None:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DatasetError(Place(name), "the file is UTF-16", hint="Save it as UTF-8.")


def _read_jsonl(stream: BinaryIO, name: str) -> Iterator[ReadRow | BadRow]:
    for number, read in enumerate(iter(lambda: stream.readline(LONGEST_LINE), b""), start=1):
        if number == 1:
            _refuse_wide_encodings(read, name)
        line = read.removeprefix(b"\xef\xbb\xbf") if number == 1 else read
        if not line.strip():
            continue
        place = Place(name, number)
        try:
            parsed = cast(
                JsonValue,
                json.loads(line.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys),
            )
        except UnicodeDecodeError as error:
            yield BadRow(place, f"is not UTF-8 at byte {error.start}", repr(line[:200]))
        except (ValueError, RecursionError) as error:
            yield BadRow(place, f"is not JSON: {error}"[:300], line[:200].decode(errors="replace"))
        else:
            if isinstance(parsed, dict):
                yield ReadRow(parsed, place)
            else:
                yield BadRow(place, f"is a JSON {type(parsed).__name__}, not an object", repr(parsed)[:200])


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
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise DatasetError(Place(name), "the file is empty")
        for cells in reader:
            place = Place(name, reader.line_num)
            if len(cells) != len(header):
                yield BadRow(place, f"has {len(cells)} cells; the header has {len(header)}", repr(cells)[:200])
            elif any("\udc80" <= c <= "\udcff" for cell in cells for c in cell):
                yield BadRow(place, "is not UTF-8", repr(cells)[:200])
            elif cells:
                yield ReadRow(dict(zip(header, cells, strict=True)), place)
    except csv.Error as error:
        raise DatasetError(Place(name, reader.line_num), f"this is not CSV: {error}") from error


def _read_parquet(stream: BinaryIO, name: str) -> Iterator[ReadRow | BadRow]:
    try:
        frame = polars.read_parquet(stream)
    except polars.exceptions.PolarsError as error:
        raise DatasetError(Place(name), f"this is not Parquet: {error}"[:300]) from error
    for number, raw in enumerate(frame.iter_rows(named=True), start=1):
        try:
            yield ReadRow(cast(RawRow, json.loads(json.dumps(raw, allow_nan=False, default=str))), Place(name, number))
        except ValueError as error:
            yield BadRow(Place(name, number), f"holds a value JSON has no word for: {error}", repr(raw)[:200])


_READERS: dict[str, Callable[[BinaryIO, str], Iterator[ReadRow | BadRow]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
