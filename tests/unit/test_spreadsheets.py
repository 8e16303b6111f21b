"""S4: what a spreadsheet opens is text and numbers, never a formula, and comes back as it was."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.spreadsheets import csv_lines, csv_text, neutralised, read_back, restored

FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\ufeff=1",
    "\x00=1",
    "\u200b@x",
    "\u200b\r",
    "\ufeff\t1",
    "\uff1d1+1",
]
DANGEROUS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")

hostile = st.text(alphabet=st.sampled_from("='+-@\t\r\n \"\ufeff\u200b,;a1\uff1d"), max_size=12)
texts = st.one_of(hostile, st.text(alphabet=st.characters(exclude_categories=("Cs",))))


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_formula_becomes_text_in_values_and_in_headers(formula: str) -> None:
    header, (row,) = _raw(csv_text([formula], [[formula]]))

    assert header == row == [f"'{formula}"]


@given(texts)
def test_no_text_begins_as_a_formula_and_every_text_comes_back(text: str) -> None:
    cell = neutralised(text)

    assert not cell.lstrip("\ufeff\u200b ").startswith(DANGEROUS)
    assert restored(cell) == text


@given(st.lists(texts, min_size=1, max_size=4), st.data())
def test_a_table_comes_back_as_it_was(header: list[str], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(texts, min_size=len(header), max_size=len(header)), max_size=5))

    assert read_back(csv_text(header, rows)) == (header, rows)


@given(st.lists(st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False)), min_size=1))
def test_numbers_stay_numbers_also_below_zero(numbers: list[int | float]) -> None:
    text = csv_text(["n"], [[number] for number in numbers])

    read = list(csv.reader(io.StringIO(text, newline=""), quoting=csv.QUOTE_NONNUMERIC))
    assert read[1:] == [[number] for number in numbers]


def test_what_is_no_finite_number_is_text() -> None:
    text = csv_text(["a", "b", "c", "d", "e"], [[None, True, float("-inf"), float("nan"), "-5"]])

    assert text.splitlines()[1] == '"","true","\'-inf","nan","\'-5"'


def test_a_separator_in_a_text_begins_no_cell_of_its_own() -> None:
    assert csv_text(["a"], [['x";=1+1,=2']]) == '"a"\r\n"x"";=1+1,=2"\r\n'


def test_a_row_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="row 2 has 1 cells, the header 2"):
        csv_text(["a", "b"], [[1, 2], [3]])


def test_a_large_table_is_written_line_by_line() -> None:
    lines = csv_lines(["n"], ([number] for number in iter(int, 1)))

    assert [next(lines) for _ in range(3)] == ['"n"\r\n', "0\r\n", "0\r\n"]


def _raw(text: str) -> tuple[list[str], list[list[str]]]:
    table = list(csv.reader(io.StringIO(text, newline="")))
    return table[0], table[1:]
