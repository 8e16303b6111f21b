"""Many quarantined rows are a few reasons with examples."""

from domain.quarantines import EXAMPLES, Reason, by_reason, kind_of


def test_rows_are_counted_by_stage_and_kind_of_reason_the_most_frequent_first() -> None:
    rows = [
        *(("snapshot", f"a.jsonl:{n}: id", f"'r{n}' was already used at a.jsonl:{n - 1}") for n in range(1, 6)),
        ("snapshot", "a.jsonl:9", "is not JSON: Expecting value: line 1 column 1"),
        ("snapshot", "a.jsonl:12", "is not JSON: Unterminated string starting at: line 1 column 20"),
        ("validate", "a.jsonl:3", "is not JSON: Expecting value"),
    ]
    first, second, third = by_reason(rows)
    assert (first.stage, first.kind, first.rows) == ("snapshot", "… was already used at a.jsonl", 5)
    assert first.examples[0] == "a.jsonl:1: id: 'r1' was already used at a.jsonl:0"
    assert len(first.examples) == EXAMPLES
    assert (second.kind, second.rows) == ("is not JSON", 2)
    assert third == Reason("validate", "is not JSON", 1, ("a.jsonl:3: is not JSON: Expecting value",))
    assert sum(reason.rows for reason in (first, second, third)) == len(rows)


def test_a_reason_of_nothing_but_its_own_words_stays_as_it_is() -> None:
    assert kind_of("is missing") == "is missing"
    assert kind_of(":") == ":"


def test_without_rows_there_are_no_reasons() -> None:
    assert by_reason([]) == []
