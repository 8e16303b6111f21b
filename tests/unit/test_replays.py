"""Comparing decisions with those on record; and that a decision depends on nothing that the ledger does not keep."""

import json
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, JsonValue

from domain.answers import fit_prior
from domain.confidences import LabelPrior, decide
from domain.datasets import cut_train
from domain.errors import Place
from domain.replays import Cause, Comparison, Kind, as_stored
from domain.reproductions import agreement, beside
from domain.requests import Completion, Usage
from domain.schemas import OutputSchema
from domain.scores import exact_match, grade

LABELS = ("a", "bb", "ccc")
PRIOR = LabelPrior(dict.fromkeys(LABELS, 1 / 3))


class Answer(BaseModel):
    """An answer with a word of its own."""

    label: str
    why: str = ""

    model_config = {"json_schema_extra": lambda schema: schema["properties"]["label"].update(enum=list(LABELS))}


SCHEMA = OutputSchema.of(Answer, decisive="label", place=Place("here"))


def completion(label: str, *, why: str = "", finish: str = "stop", **logprobs: float) -> Completion:
    text = json.dumps({"label": label, "why": why})
    return Completion("0" * 64, text, finish, Usage(1, 1), {"label": logprobs} if logprobs else {})


def test_nothing_compared_is_identical_and_the_first_divergence_is_the_one_that_others_follow_from() -> None:
    seen = Comparison()
    assert (seen.identical, seen.first) == (True, None)
    assert seen.same(Kind.SCORES, "row 1", 1.0, 1.0, cause=Cause.LEDGER)
    assert seen.identical
    assert not seen.same(Kind.OUTCOMES, "row 1", "x", "y", cause=Cause.LEDGER)
    assert not seen.same(Kind.RECORDS, "row 2", "x", "z", cause=Cause.DATA)
    assert not seen.same(Kind.RECORDS, "row 3", "x", "z", cause=Cause.DATA)
    assert not seen.identical
    first = seen.first
    assert first
    assert (first.kind, first.what, first.cause) == (Kind.RECORDS, "row 2", Cause.DATA)
    assert (first.recorded, first.replayed) == ('"x"', '"z"')
    assert seen.compared == {Kind.SCORES: 1, Kind.OUTCOMES: 1, Kind.RECORDS: 2}
    assert seen.diverging == {Kind.OUTCOMES: 1, Kind.RECORDS: 2}


@pytest.mark.parametrize(
    ("written", "read"), [(1e16, 10**16), (-2.5e20, -25 * 10**19), (-0.0, 0.0), ({"a": [1e17]}, {"a": [10**17]})]
)
def test_a_number_is_compared_as_postgres_gives_it_back(written: JsonValue, read: JsonValue) -> None:
    assert as_stored(written) == as_stored(read)


@pytest.mark.parametrize(("left", "right"), [(0.1, 0.1 + 1e-16), (1, True), (None, 0), ("1", 1), ([1, 2], [2, 1])])
def test_values_that_differ_in_the_least_are_different(left: JsonValue, right: JsonValue) -> None:
    assert as_stored(left) != as_stored(right)


@given(st.lists(st.floats(min_value=-30, max_value=0), min_size=3, max_size=3))
def test_a_confidence_does_not_depend_on_the_order_in_which_labels_are_kept(logprobs: list[float]) -> None:
    # Postgres keeps the keys of an object by length, the wire by the schema.
    by_label = dict(zip(LABELS, logprobs, strict=True))
    prior = LabelPrior({"a": 0.2, "bb": 0.5, "ccc": 0.3})
    decisions = {decide({label: by_label[label] for label in order}, prior) for order in permutations(LABELS)}
    assert len(decisions) == 1


def test_the_train_split_is_cut_in_three_with_no_row_twice() -> None:
    validation, held_out, demos = cut_train(list(range(10)), 2)
    assert (validation, held_out, demos) == ([0, 1], [2, 3], [4, 5, 6, 7, 8, 9])
    assert [len(part) for part in cut_train(list(range(7)), 60)] == [2, 2, 3]


def test_a_prior_is_fitted_on_answers_with_log_probabilities_only() -> None:
    sure = completion("a", a=np.log(0.8), bb=np.log(0.1), ccc=np.log(0.1))
    assert fit_prior([sure, completion("bb")], SCHEMA).means == pytest.approx({"a": 0.8, "bb": 0.1, "ccc": 0.1})


def test_a_grade_says_what_it_looked_at() -> None:
    right, wrong, none = (grade(exact_match, {"x": 1}, output) for output in ({"x": 1}, {"x": 2}, None))
    assert (right.value, right.label, right.explanation) == (1.0, "right", 'expected {"x":1}, got {"x":1}')
    assert (wrong.value, wrong.label) == (0.0, "wrong")
    assert (none.value, none.explanation) == (0.0, 'expected {"x":1}, got no valid answer')


def test_the_same_answer_agrees_in_everything() -> None:
    one = completion("a", a=-0.1, bb=-3.0, ccc=-4.0)
    same = beside(one, one, SCHEMA, PRIOR)
    assert (same.same_text, same.same_output, same.same_label) == (True, True, True)
    assert (same.logprob_gap, same.confidence_drift) == (0.0, 0.0)


def test_other_words_other_output_and_another_label_are_told_apart() -> None:
    then = completion("a", why="x", a=np.log(0.8), bb=np.log(0.1), ccc=np.log(0.1))
    word = completion("a", why="y", a=np.log(0.6), bb=np.log(0.2), ccc=np.log(0.2))
    label = completion("bb", why="x", a=np.log(0.1), bb=np.log(0.8), ccc=np.log(0.1))
    cut = completion("a", why="x", finish="length")
    first, second, third = (beside(then, now, SCHEMA, PRIOR) for now in (word, label, cut))
    assert (first.same_text, first.same_output, first.same_label) == (False, False, True)
    assert first.confidence_drift == pytest.approx(-0.3)
    assert (second.same_output, second.same_label) == (False, False)
    assert (third.same_text, third.same_label, third.logprob_gap, third.confidence_drift) == (False, False, None, None)
    total = agreement([first, second, third])
    assert (total.text.mean, total.label.mean, total.label.n) == (0.0, pytest.approx(1 / 3), 3)
    assert total.largest_drift == first.confidence_drift


def test_no_answer_at_all_agrees_in_nothing_that_is_known() -> None:
    nothing = agreement([])
    assert (nothing.text.n, nothing.text.low, nothing.text.high) == (0, 0.0, 1.0)
    assert (nothing.logprob_gap, nothing.confidence_drift, nothing.largest_drift) == (None, None, None)
