"""Reading: files as people really have them; a bad row is named and stops nothing, a bad file is refused."""

import gzip
import json
import math
import os
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.datasets import BadRow, Reader, Record
from domain.errors import DatasetError, Place
from domain.workloads import Dataset
from infra.reading import LONGEST_LINE, PARQUET_ROWS, ReadRow, read_rows

DATASET = Dataset(uri="x", inputs=("text",), gold={"topic": "topic"}, max_row_bytes=8_000)
GOOD = b'{"id": "good-1", "text": "caf\xc3\xa9", "topic": "card"}\n'
LAST = b'{"id": "good-2", "text": "last", "topic": "loan"}\n'


def records_of(folder: Path, uri: str, *, dataset: Dataset = DATASET) -> tuple[list[Record], list[BadRow]]:
    records: list[Record] = []
    bad: list[BadRow] = []
    reader = Reader(dataset, labelled=True)
    for row in read_rows(uri, folder):
        found = row if isinstance(row, BadRow) else reader.read(row.raw, row.place)
        (bad if isinstance(found, BadRow) else records).append(found)
    return records, bad


def written(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return name


def with_text(value: bytes) -> bytes:
    return b'{"id": "x", "topic": "card", "text": ' + value + b"}"


BAD_LINES: dict[str, tuple[bytes, str | None, str]] = {
    "latin-1": (with_text(b'"caf\xe9"'), None, "not UTF-8 at byte"),
    "raw NUL": (with_text(b'"a\0b"'), None, "not JSON"),
    "escaped NUL": (with_text(b'"a\\u0000b"'), "text", "NUL"),
    "lone surrogate": (with_text(b'"\\ud800"'), "text", "surrogate"),
    "lone surrogate inside": (with_text(b'["\\udfff"]'), "text", "surrogate"),
    "NUL inside": (with_text(b'{"a": ["\\u0000"]}'), "text", "NUL"),
    "NaN": (with_text(b"NaN"), None, "NaN is not allowed"),
    "Infinity": (with_text(b"-Infinity"), None, "-Infinity is not allowed"),
    "1e400": (with_text(b"1e400"), None, "too large"),
    "-1e400": (with_text(b"[-1e400]"), None, "too large"),
    "5,000 digits": (with_text(b"9" * 5000), None, "not JSON"),
    "1,100 deep": (with_text(b"[" * 1100 + b"]" * 1100), None, "not JSON"),
    "500 deep": (with_text(b"[" * 500 + b"]" * 500), "text", "nested"),
    "duplicate key": (b'{"id": "x", "text": "a", "text": "b", "topic": "card"}', None, "'text' stands twice"),
    "inner duplicate key": (with_text(b'{"k": 1, "k": 2}'), None, "'k' stands twice"),
    "missing id": (b'{"text": "a", "topic": "card"}', "id", "is missing"),
    "empty id": (b'{"id": " ", "text": "a", "topic": "card"}', "id", "is empty"),
    "null id": (b'{"id": null, "text": "a", "topic": "card"}', "id", "is empty"),
    "list id": (b'{"id": ["x"], "text": "a", "topic": "card"}', "id", "text or a number"),
    "object id": (b'{"id": {}, "text": "a", "topic": "card"}', "id", "text or a number"),
    "true id": (b'{"id": true, "text": "a", "topic": "card"}', "id", "text or a number"),
    "9 KB id": (b'{"id": "' + b"i" * 9000 + b'", "text": "a", "topic": "card"}', "id", "the limit is 8,000"),
    "long text": (with_text(b'"' + b"t" * 9000 + b'"'), "text", "the limit is 8,000"),
    "missing text": (b'{"id": "x", "topic": "card"}', "text", "is missing"),
    "missing gold": (b'{"id": "x", "text": "a"}', "topic", "is missing"),
    "a list": (b'["x", "a", "card"]', None, "a JSON list"),
    "a number": (b"7", None, "a JSON int"),
    "cut off": (b'{"id": "x", "text": "a', None, "not JSON"),
    "two objects": (b"{}{}", None, "not JSON"),
    "plain words": (b"hello", None, "not JSON"),
    "single quotes": (b"{'id': 'x'}", None, "not JSON"),
    "007": (with_text(b"007"), None, "not JSON"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_by_file_line_field_and_reason_and_its_neighbours_survive(
    tmp_path: Path, name: str
) -> None:
    line, field, reason = BAD_LINES[name]
    records, bad = records_of(tmp_path, written(tmp_path, "rows.jsonl", GOOD + line + b"\n" + LAST))
    assert [record.record_id for record in records] == ["good-1", "good-2"]
    assert [record.place.line for record in records] == [1, 3]
    (row,) = bad
    assert row.place == Place("rows.jsonl", 2, field=field)
    assert reason in row.reason
    assert len(row.reason) <= 300
    assert len(row.key) == 64
    assert row.excerpt.isprintable()
    assert len(row.excerpt) <= 200


def test_all_bad_lines_in_one_file_are_named_and_no_good_one_is_lost(tmp_path: Path) -> None:
    content = b"".join(
        line + b"\n" + GOOD.replace(b"good-1", b"good-%d" % number)
        for number, (line, _, _) in enumerate(BAD_LINES.values())
    )
    records, bad = records_of(tmp_path, written(tmp_path, "rows.jsonl", content))
    assert len(records) == len(bad) == len(BAD_LINES)
    assert [row.place.line for row in bad] == list(range(1, 2 * len(BAD_LINES), 2))


def test_a_line_longer_than_any_row_is_one_bad_line_and_the_count_goes_on(tmp_path: Path) -> None:
    giant = with_text(b'"' + b"x" * (2 * LONGEST_LINE + 10) + b'"') + b"\n"
    records, bad = records_of(tmp_path, written(tmp_path, "rows.jsonl", GOOD + giant + LAST))
    assert [record.place.line for record in records] == [1, 3]
    assert [(row.place.line, "longer than" in row.reason) for row in bad] == [(2, True)]


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") + b"\r\n  \n" + LAST.rstrip()
    records, bad = records_of(tmp_path, written(tmp_path, "rows.jsonl", content))
    assert [(record.record_id, record.place.line) for record in records] == [("good-1", 1), ("good-2", 4)]
    assert bad == []
    assert records[0].inputs == {"text": "café"}


def test_values_of_mixed_types_are_kept_as_they_are(tmp_path: Path) -> None:
    values = ["a", 1, 1.5, True, [1, None], {"k": "v"}, "007", 10**30]
    lines = [json.dumps({"id": n, "text": value, "topic": "card"}) for n, value in enumerate(values)]
    records, bad = records_of(tmp_path, written(tmp_path, "rows.ndjson", "\n".join(lines).encode()))
    assert [record.inputs["text"] for record in records] == values
    assert bad == []


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_wide_encoding_is_refused_as_a_whole_or_row_by_row_but_never_read_wrongly(
    tmp_path: Path, suffix: str, encoding: str
) -> None:
    text = GOOD.decode() if suffix == "jsonl" else "id,text,topic\n1,hello,card\n"
    uri = written(tmp_path, f"rows.{suffix}", text.encode(encoding))
    if encoding in ("utf-16", "utf-32"):
        with pytest.raises(DatasetError, match=r"rows\.\w+: the file is UTF-16 or UTF-32.*UTF-8"):
            list(read_rows(uri, tmp_path))
    else:
        records, bad = records_of(tmp_path, uri)
        assert records == []
        assert bad


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "empty jsonl": ("rows.jsonl", b"", "holds no rows"),
    "blank jsonl": ("rows.jsonl", b"\n \n\r\n", "holds no rows"),
    "empty csv": ("rows.csv", b"", "no header"),
    "blank csv": ("rows.csv", b"\n", "no header"),
    "header only": ("rows.csv", b"id,text,topic\n", "holds no rows"),
    "header twice": ("rows.csv", b"id,text,text\n1,a,b\n", "'text' stands twice"),
    "header not UTF-8": ("rows.csv", b"id,te\xe9t\n1,a\n", "header is not UTF-8"),
    "open quote in header": ("rows.csv", b'id,"text\n1,a\n', "not CSV"),
    "open quote": ("rows.csv", b'id,text,topic\n1,"a,card\n2,b,card\n3,c,card\n', r"rows\.csv:2: this is not CSV"),
    "empty parquet": ("rows.parquet", b"", "not Parquet"),
    "not parquet": ("rows.parquet", b"id,text\n1,a\n", "not Parquet"),
    "unknown format": ("rows.xlsx", b"PK", "unknown format"),
    "no suffix": ("rows", b"{}", "unknown format"),
    "a zip bomb": ("rows.jsonl.gz", gzip.compress(b" " * 1_000_000), "unknown format"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_bad_as_a_whole_is_refused_by_name(tmp_path: Path, name: str) -> None:
    file, content, reason = REFUSED[name]
    with pytest.raises(DatasetError, match=reason) as refused:
        list(read_rows(written(tmp_path, file, content), tmp_path))
    assert refused.value.place.file == file


@pytest.mark.parametrize("uri", ["absent.csv", "*.csv", "folder", "nowhere://x/y.csv"])
def test_a_uri_that_leads_to_no_file_is_refused(tmp_path: Path, uri: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DatasetError, match=r"no such file|cannot be reached"):
        list(read_rows(uri, tmp_path))


def test_a_glob_reads_its_files_in_order_and_names_each_relative_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("b", "a"):
        written(tmp_path, f"data/{name}.jsonl", GOOD.replace(b"good-1", name.encode()))
    records, _ = records_of(tmp_path, "data/*.jsonl")
    assert [(record.record_id, str(record.place)) for record in records] == [
        ("a", "data/a.jsonl:1"),
        ("b", "data/b.jsonl:1"),
    ]


def test_csv_cells_stay_text_whatever_they_look_like(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfid,text,topic\r\n007,"one, ""two""\r\nthree",card\r\n\r\n1e5,=1+1,NaN\r\n'
    records, bad = records_of(tmp_path, written(tmp_path, "rows.csv", content))
    assert [record.record_id for record in records] == ["007", "1e5"]
    assert records[0].inputs == {"text": 'one, "two"\r\nthree'}
    assert records[1].gold == {"topic": "NaN"}
    assert [record.place.line for record in records] == [2, 5]
    assert bad == []


def test_bad_csv_rows_are_named_and_their_neighbours_survive(tmp_path: Path) -> None:
    rows = [
        b"id,text,topic",
        b"g1,hello,card",
        b"short,row",
        b"a,far,too,long",
        b"x,caf\xe9,card",
        b'y,"quoted"tail,card',
        b"z,a\0b,card",
        b",no id,card",
        b"w,,card",
        b"big," + b"t" * 200_000 + b",card",
        b'g2,5" screen,card',
        b'v,"open at the end',
    ]
    records, bad = records_of(tmp_path, written(tmp_path, "rows.csv", b"\n".join(rows)))
    assert [record.record_id for record in records] == ["g1", "g2"]
    assert records[1].inputs == {"text": '5" screen'}
    named = [(row.place.line, row.place.field) for row in bad]
    assert named == [
        (3, None), (4, None), (5, None), (6, None), (7, "text"), (8, "id"), (9, "text"), (10, "text"), (12, None)
    ]  # fmt: skip
    words = ["2 cells", "4 cells", "UTF-8", "not CSV", "NUL", "is empty", "is empty", "8,000", "not CSV"]
    assert all(word in row.reason for word, row in zip(words, bad, strict=True))
    assert all(row.excerpt.isprintable() for row in bad)


def test_parquet_rows_are_read_with_their_types_and_bad_ones_named(tmp_path: Path) -> None:
    frame = polars.DataFrame(
        {
            "id": ["a", "b", None, "d"],
            "text": ["hello", "", "x", "y\0"],
            "topic": ["card"] * 4,
            "amount": [1.5, math.nan, 2.0, 3.0],
        }
    )
    frame.write_parquet(tmp_path / "rows.parquet")
    records, bad = records_of(tmp_path, "rows.parquet")
    assert [record.record_id for record in records] == ["a"]
    assert [(row.place.line, row.place.field) for row in bad] == [(2, None), (3, "id"), (4, "text")]
    assert "no word for" in bad[0].reason


def test_a_cut_parquet_file_is_refused_as_a_whole(tmp_path: Path) -> None:
    polars.DataFrame({"id": list(range(1000))}).write_parquet(tmp_path / "whole.parquet")
    content = (tmp_path / "whole.parquet").read_bytes()
    with pytest.raises(DatasetError, match="not Parquet"):
        list(read_rows(written(tmp_path, "cut.parquet", content[: len(content) // 2]), tmp_path))


def test_the_same_rows_are_the_same_records_in_every_format(tmp_path: Path) -> None:
    rows = [{"id": "1", "text": "grüße", "topic": "card"}, {"id": "2", "text": "a,b", "topic": "loan"}]
    polars.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    polars.DataFrame(rows).write_csv(tmp_path / "rows.csv")
    written(tmp_path, "rows.jsonl", "\n".join(map(json.dumps, rows)).encode())
    keys = [[r.key for r in records_of(tmp_path, f"rows.{kind}")[0]] for kind in ("jsonl", "csv", "parquet")]
    assert keys[0] == keys[1] == keys[2]
    assert len(keys[0]) == 2


TEXTS = st.sampled_from(
    ['"a"', '"b"', '"a:b"', '"\\\\"', '"\\":"', '"x\\\\":"', '" : "', '"{\\"k\\":1}"', '"é :"', '"\\u0061"', '""']
)
SMALL_NUMBERS = ["0", "-0", "1.5", "1e5", "-0.0", "1e30", "1E400", "NaN", "true", "null", "9223372036854775807"]
LONG_NUMBERS = ["9223372036854775808", "-9223372036854775809", "18446744073709551615", "18446744073709551616", "9" * 30]
NUMBERS = st.sampled_from(SMALL_NUMBERS + LONG_NUMBERS)
GAPS = st.sampled_from(["", "", "", " ", "\t", " \r "])


def _object(items: list[tuple[str, str, str, str]]) -> str:
    return "{" + ",".join(f"{key}{before}:{after}{value}" for key, before, after, value in items) + "}"


VALUES = st.recursive(
    TEXTS | NUMBERS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda some: f"[{','.join(some)}]")
        | st.lists(st.tuples(TEXTS, GAPS, GAPS, inner), max_size=4).map(_object)
    ),
    max_leaves=12,
)


@settings(max_examples=600, deadline=None, database=None, derandomize=True)
@given(st.lists(st.tuples(TEXTS, GAPS, GAPS, VALUES), max_size=4).map(_object))
def test_the_fast_parser_says_what_the_strict_one_says(folder_of_one: Path, line: str) -> None:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError
        return dict(pairs)

    def finite(digits: str) -> float:
        if not math.isfinite(number := float(digits)):
            raise ValueError
        return number

    try:
        wanted = json.loads(line, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
    except ValueError:
        wanted = None
    (row,) = read_rows(written(folder_of_one, "rows.jsonl", line.encode()), folder_of_one)
    assert isinstance(row, BadRow if wanted is None else ReadRow)
    if isinstance(row, ReadRow):
        assert repr(row.raw) == repr(wanted)  # also 1 and 1.0, 0.0 and -0.0 differ


@pytest.fixture(scope="module")
def folder_of_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("one")


def test_a_parquet_file_is_read_in_pieces_and_its_rows_are_counted_through(tmp_path: Path) -> None:
    count = 3 * PARQUET_ROWS + 1
    frame = polars.DataFrame({"id": range(count), "text": ["x"] * (count - 1) + [""], "topic": ["card"] * count})
    frame.write_parquet(tmp_path / "rows.parquet")
    records, bad = records_of(tmp_path, "rows.parquet")
    assert [record.place.line for record in records] == list(range(1, count))
    assert [row.place.line for row in bad] == [count]


def test_values_that_json_has_no_type_for_are_read_as_text(tmp_path: Path) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    frame = polars.DataFrame({"id": [1], "text": [moment], "topic": [Decimal("1.50")]})
    frame.write_parquet(tmp_path / "rows.parquet")
    (found,), _ = records_of(tmp_path, "rows.parquet")
    assert (found.inputs, found.gold) == ({"text": "2026-01-02 03:04:05+00:00"}, {"topic": "1.50"})


def test_a_file_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")).write_bytes(GOOD)
    with pytest.raises(DatasetError, match="name is not UTF-8"):
        list(read_rows("*.jsonl", tmp_path))


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    uri = written(tmp_path, "rows.csv", b"id,text,topic\n1,a,card\n2,b\n")
    rows = read_rows(uri, tmp_path)
    assert isinstance(next(rows), ReadRow)
    assert isinstance(next(rows), BadRow)
