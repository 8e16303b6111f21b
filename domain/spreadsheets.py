"""Tables as CSV that a spreadsheet may open: no cell of theirs is taken for a formula.

Spreadsheets run a cell that begins with one of = + - @, a tab or a line's end (OWASP, CSV injection), in headers as in
values. Rows are data of strangers: such text gets one apostrophe in front, which spreadsheets show as text. Text that
begins with apostrophes before such a sign gets one more, so that taking one away gives the original back, always.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence

# What a reader may drop or fold before it looks for a formula: white space, controls, byte-order and zero-width marks.
_DROPPED = r"[\s\x00-\x1f\x7f-\x9f\u00ad\u180e\u200b-\u200f\u2028-\u202f\u2060-\u2064\ufeff]*"
_UNSEEN = r"[ \x00-\x08\x0b\x0c\x0e-\x1f\x7f-\xa0\u00ad\u180e\u200b-\u200f\u2028-\u202f\u2060-\u2064\ufeff]*"
# The second half are the full-width forms, which some locales' spreadsheets take for the plain ones.
_FORMULA = re.compile(rf"'*(?:{_UNSEEN}[\t\r\n]|{_DROPPED}[=+\-@\uff1d\uff0b\uff0d\uff20])")


def neutralised(text: str) -> str:
    """Give text as a cell that no spreadsheet runs; `restored` is its inverse."""
    return f"'{text}" if _FORMULA.match(text) else text


def restored(cell: str) -> str:
    """Give the text that `neutralised` made this cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def csv_lines(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Write a table as lines of CSV, each with its line end; every text is quoted and neutralised, the header's too.

    Finite numbers stay bare numbers, None is an empty cell, truth values are `true` and `false`, and anything else is
    its `str`. Nothing is kept but one line, so that a large table can be streamed. Raises ValueError when a row is not
    as wide as the header.
    """
    line = io.StringIO()
    # A separator inside a text cannot begin a cell of its own: all text stands in quotes.
    writer = csv.writer(line, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n")
    for row in _with_header(header, rows):
        writer.writerow([_cell(value) for value in row])
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table as one CSV text; see `csv_lines`."""
    return "".join(csv_lines(header, rows))


def read_back(text: str) -> tuple[list[str], list[list[str]]]:
    """Read such a CSV again: its header and its rows, every cell as text with the apostrophe taken away.

    Raises csv.Error for a text that is no CSV, or a cell above the reader's limit (131,072 characters).
    """
    read = csv.reader(io.StringIO(text, newline=""), strict=True)
    table = [[restored(cell) for cell in row] for row in read]
    return (table[0], table[1:]) if table else ([], [])


def _with_header(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[Sequence[object]]:
    yield header
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells, the header {len(header)}")
        yield row


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return neutralised(str(value))
