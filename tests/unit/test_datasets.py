"""Datasets: what a record is, which split it falls into, and why a row is refused."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from domain.canonical import digest
from domain.datasets import (
    DEEPEST,
    BadRow,
    Reader,
    Record,
    Split,
    duplicate,
    split_of,
    version_hash,
)
from domain.errors import Place
from domain.workloads import Dataset, Splits

EXAMPLES = settings(max_examples=60, deadline=None, database=None, derandomize=True)
DATASET = Dataset(uri="x.jsonl", inputs=("text", "extra"), gold={"topic": "label"}, max_row_bytes=100)
PLACE = Place("x.jsonl", 7)
GOOD = {"id": "a", "text": "hello", "extra": 1, "label": "card"}


def read(**changes: object) -> Record | BadRow:
    return Reader(DATASET, labelled=True).read(GOOD | changes, PLACE)


def record(record_id: str, *, line: int = 1, text: str = "t") -> Record:
    return Record(record_id, {"text": text}, {"topic": "card"}, Split.TRAIN, Place("x.jsonl", line))


def nested(depth: int) -> object:
    value: object = "leaf"
    for _ in range(depth - 1):
        value = [value]
    return value


def test_a_good_row_becomes_a_record_with_inputs_and_gold_by_output_field() -> None:
    found = read(unused="x")
    assert isinstance(found, Record)
    assert (found.record_id, found.inputs, found.gold) == ("a", {"text": "hello", "extra": 1}, {"topic": "card"})
    assert found.place == PLACE


def test_an_incoming_row_needs_no_gold_and_belongs_to_no_labelled_split() -> None:
    raw = {"id": 3, "text": "hello", "extra": None, "label": None}
    refused = Reader(DATASET, labelled=False).read(raw, PLACE)
    assert isinstance(refused, BadRow)
    found = Reader(DATASET, labelled=False).read(raw | {"extra": 0}, PLACE)
    assert isinstance(found, Record)
    assert (found.record_id, found.gold, found.split) == ("3", None, Split.INCOMING)


@pytest.mark.parametrize("column", ["id", "text", "label"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "is empty"),
        ("", "is empty"),
        (" \n\t", "is empty"),
        ("a\0b", "NUL"),
        ("a\ud800b", "surrogate"),
        ("\udc80", "surrogate"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_field_and_reason(column: str, value: object, reason: str) -> None:
    found = read(**{column: value})
    assert isinstance(found, BadRow)
    assert found.place == Place("x.jsonl", 7, field=column)
    assert reason in found.reason


@pytest.mark.parametrize("column", ["id", "text", "extra", "label"])
def test_a_missing_column_is_refused_by_name(column: str) -> None:
    raw = {key: value for key, value in GOOD.items() if key != column}
    found = Reader(DATASET, labelled=True).read(raw, PLACE)
    assert isinstance(found, BadRow)
    assert (found.place.field, found.reason) == (column, "is missing")


@pytest.mark.parametrize("value", [["x\0"], {"a": [{"b": "\0"}]}, {"\0": 1}, ["\udfff"], [[float("-inf")]]])
def test_what_the_ledger_cannot_store_is_found_inside_lists_and_objects_too(value: object) -> None:
    found = read(extra=value)
    assert isinstance(found, BadRow)
    assert found.place.field == "extra"


@pytest.mark.parametrize("value", [True, ["a"], {"a": 1}, []])
def test_an_id_is_text_or_a_number(value: object) -> None:
    found = read(id=value)
    assert isinstance(found, BadRow)
    assert found.place.field == "id"
    assert "text or a number" in found.reason


@pytest.mark.parametrize(("value", "text"), [(7, "7"), ("007", "007"), (1.5, "1.5"), (0, "0"), (" x ", " x ")])
def test_an_id_is_read_as_text_and_never_changed(value: object, text: str) -> None:
    found = read(id=value)
    assert isinstance(found, Record)
    assert found.record_id == text


def test_nesting_is_refused_before_it_can_break_anything_that_recurses() -> None:
    roomy = DATASET.model_copy(update={"max_row_bytes": 100_000})
    raw = {depth: GOOD | {"extra": nested(depth)} for depth in (DEEPEST, DEEPEST + 1, 100_000)}
    deepest = Reader(roomy, labelled=True).read(raw[DEEPEST], PLACE)
    assert isinstance(deepest, Record)
    assert len(deepest.key) == 64
    for depth in (DEEPEST + 1, 100_000):
        found = Reader(roomy, labelled=True).read(raw[depth], PLACE)
        assert isinstance(found, BadRow)
        assert "nested" in found.reason
        assert len(found.excerpt) <= 200
    while isinstance(value := raw[100_000]["extra"], list):  # Python's own clean-up recurses as well
        raw[100_000]["extra"] = value[0]


@pytest.mark.parametrize("letter", ["x", "é", "\N{GRINNING FACE}", "\n"])
def test_the_size_of_a_row_is_that_of_its_canonical_bytes(letter: str) -> None:
    written = {"x": 1, "é": 2, "\N{GRINNING FACE}": 4, "\n": 2}[letter]
    room = 100 - len('"a"') - len("1") - len('"card"') - len('""')
    assert isinstance(read(text="x" + letter * ((room - 1) // written)), Record)
    found = read(text="x" + letter * ((room - 1) // written + 1))
    assert isinstance(found, BadRow)
    assert found.place.field == "text"
    assert "the limit is 100" in found.reason


def test_a_long_id_counts_against_the_limit_too() -> None:
    found = read(id="i" * 9000)
    assert isinstance(found, BadRow)
    assert found.place.field == "id"
    assert len(found.excerpt) <= 200


def test_a_row_whose_id_was_used_names_the_row_that_used_it_and_stays_short() -> None:
    bad = duplicate("a", PLACE, first=Place("x.jsonl", 1))
    assert (bad.place, bad.reason) == (Place("x.jsonl", 7, field="id"), "'a' was already used at x.jsonl:1")
    assert len(duplicate("a" * 100_000, PLACE, first=PLACE).reason) < 300


VALUES = st.recursive(
    st.integers(-(10**30), 10**30) | st.floats(-1e300, 1e300) | st.text(min_size=1, max_size=9) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@EXAMPLES
@given(st.text(min_size=1), VALUES, VALUES, VALUES, st.booleans())
def test_the_key_made_while_reading_is_that_of_the_record(
    record_id: str, text: object, extra: object, label: object, labelled: bool
) -> None:
    wide = Dataset(
        uri="x", inputs=("text", 'b"é', "a"), gold={"z": "label", "c": "text", "é": "label"}, max_row_bytes=100_000
    )
    raw = {"id": record_id, "text": text, 'b"é': extra, "a": extra, "label": label}
    found = Reader(wide, labelled=labelled).read(raw, PLACE)
    assume(isinstance(found, Record))
    assert isinstance(found, Record)
    assert found.key == Record(found.record_id, found.inputs, found.gold, found.split, found.place).key
    assert found.key == digest({"id": found.record_id, "inputs": found.inputs, "gold": found.gold})


ids = st.lists(st.text(min_size=1, max_size=12), max_size=40, unique=True)


@EXAMPLES
@given(ids, ids)
def test_adding_rows_moves_no_row_to_another_split(before: list[str], added: list[str]) -> None:
    first = {name: split_of(name, Splits()) for name in before}
    later = {name: split_of(name, Splits()) for name in [*added, *before]}
    assert {name: later[name] for name in first} == first


@pytest.mark.parametrize("splits", [Splits(), Splits(train=0.1, calibration=0.8, test=0.1)])
def test_splits_have_about_the_shares_that_were_asked_for(splits: Splits) -> None:
    found = [split_of(f"row-{number}", splits) for number in range(4000)]
    shares = {Split.TRAIN: splits.train, Split.CALIBRATION: splits.calibration, Split.TEST: splits.test}
    for split, wanted in shares.items():
        assert found.count(split) / 4000 == pytest.approx(wanted, abs=0.03)


def test_growing_the_test_split_takes_rows_from_calibration_and_leaves_train_alone() -> None:
    names = [f"row-{number}" for number in range(500)]
    less = [split_of(name, Splits(train=0.25, calibration=0.45, test=0.30)) for name in names]
    more = [split_of(name, Splits(train=0.25, calibration=0.25, test=0.50)) for name in names]
    assert [s is Split.TRAIN for s in less] == [s is Split.TRAIN for s in more]
    assert all(after is Split.TEST for before, after in zip(less, more, strict=True) if before is Split.TEST)


def test_a_record_is_named_by_what_it_says_and_not_by_where_it_stands() -> None:
    here = record("a", line=1)
    assert here.key == record("a", line=9).key
    assert len({here.key, record("b").key, record("a", text="other").key}) == 3


def test_a_version_is_named_by_its_rows_in_their_order_and_by_its_bad_rows() -> None:
    a, b, bad = record("a"), record("b"), BadRow(PLACE, "is empty", "")
    rows = (([a, b], []), ([b, a], []), ([a], []), ([a, b], [bad]), ([a], [b]), ([], [a, b]))
    versions = {version_hash((r.key for r in good), (w.key for w in wrong)) for good, wrong in rows}
    assert len(versions) == 6
    assert version_hash([a.key, b.key], [bad.key]) == version_hash([record("a", line=5).key, b.key], [bad.key])
