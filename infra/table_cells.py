"""Table cells: what counts as a number in a csv file, and where a cell stands that does not.

The file is read again, record by record, once something is wrong with it.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from domain.datasets import excerpt
from domain.errors import DatasetError, Place

LONGEST_ROW = 8 * 1024 * 1024
"""Bytes: a table may hold prompts too."""
NOTHING = ["", "NA", "N/A", "n/a", "na", "NaN", "nan", "-nan", "null", "NULL", "None", "none"]
"""Spellings of a confidence that is not there."""
TRUE, FALSE = ["True", "true", "TRUE", "1"], ["False", "false", "FALSE", "0"]
"""Spellings of a quality of 1 and of 0 where a column begins with a word."""
QUALITY_HINT = "Write a quality from 0 to 1; 0 where there is no valid answer, and leave its confidence empty."


def names_of(header: Sequence[str]) -> list[str]:
    """The names of a header's columns, without blanks about them."""
    return [name.strip() for name in header]


def number(text: str) -> float | None:
    """The number that Arrow reads in a cell, which takes less than Python does; NaN where there is none."""
    if text in NOTHING:
        return float("nan")
    bare = text.strip(" \t")
    if "_" in bare or not bare.isascii() or bare != bare.strip():
        return None
    try:
        return float(bare)
    except ValueError:
        return None


def records(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Every record with the line it begins in, empty lines left out as Arrow leaves them out."""
    csv.field_size_limit(LONGEST_ROW)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader, line = csv.reader(stream), 1
        for record in reader:
            if record:
                yield line, record
            line = reader.line_num + 1


def line_of(file: Path, row: int) -> int:
    """The line that a row, counted from 0 below the header, begins in."""
    return next(line for at, (line, _) in enumerate(records(file)) if at == row + 1)


def wrong(file: Path, row: int, name: str, message: str, hint: str) -> DatasetError:
    """An error that names the line and the column of one cell."""
    _, header = next(records(file))
    place = Place(str(file), line_of(file, row), names_of(header).index(name) + 1, name)
    return DatasetError(place, message, hint=hint)


def find_damage(file: Path, numbers: Sequence[str], booleans: frozenset[str]) -> None:
    """Raise DatasetError for the first record of another width than the header's, or with a word for a number."""
    lines, known = records(file), {*TRUE, *FALSE, *NOTHING}
    _, header = next(lines)
    places = {name: names_of(header).index(name) for name in numbers}
    for line, record in lines:
        if len(record) != len(header):
            said = f"the line has {len(record)} fields, the header {len(header)}"
            raise DatasetError(Place(str(file), line, min(len(record), len(header))), said, hint="Mend the line.")
        for name, at in places.items():
            if name in booleans and record[at] not in known:
                said, hint = f"{excerpt(record[at])} is neither True nor False", QUALITY_HINT
            elif name not in booleans and number(record[at]) is None:
                said = f"{excerpt(record[at])} is no number"
                hint = "Write a number with a decimal point; leave a confidence that is not there empty."
            else:
                continue
            raise DatasetError(Place(str(file), line, at + 1, name), said, hint=hint)
