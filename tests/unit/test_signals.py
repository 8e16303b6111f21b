"""Signals: their values against hand computations, what leaves one out, and how well they tell right from wrong."""

import json
import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from domain.answers import Answer, settle
from domain.confidences import Decision, LabelPrior, aurc, auroc
from domain.errors import Place
from domain.prompts import baseline
from domain.requests import Completion, Reading, Request, Usage, row_frame
from domain.schemas import OutputSchema
from domain.signals import (
    FREE,
    PAID,
    Quality,
    asked_signals,
    asks_further,
    consistency,
    free_signals,
    qualities,
    sample_frames,
    truth,
    truth_request,
)
from domain.workloads import Prices, Router, SignalName, Tier, TierName

EXAMPLES = settings(max_examples=100, deadline=None, database=None, derandomize=True)
S = SignalName


class Triage(BaseModel):
    """A decisive field, another closed one, and open ones."""

    topic: Literal["card", "cash", "loan"]
    urgent: Literal["yes", "no"]
    note: str = ""
    tags: list[str] = []


SCHEMA = OutputSchema.of(Triage, decisive="topic", place=Place("here"))
EVEN = LabelPrior(dict.fromkeys(SCHEMA.labels, 1 / 3))
TOPIC = {"card": 0.7, "cash": 0.2, "loan": 0.1}
ANSWER: dict[str, Any] = {"topic": "card", "urgent": "no", "note": "lost", "tags": ["a"]}
READINGS = {
    "topic": Reading(math.log(0.4), math.log(0.5), 2, allowed=0.8),
    "urgent": Reading(math.log(0.6), math.log(0.6), 1, allowed=0.9),
    "note": Reading(math.log(0.3), math.log(0.5), 2),
}


def logs(odds: Mapping[str, float]) -> dict[str, float]:
    return {label: math.log(p) for label, p in odds.items()}


def said(answer: Mapping[str, Any] = ANSWER, *, finish: str = "stop", **more: Any) -> Completion:
    labels = {"topic": logs(TOPIC), "urgent": logs({"yes": 0.25, "no": 0.75})}
    given = {"label_logprobs": labels, "readings": READINGS} | more
    return Completion("0" * 64, json.dumps(answer), finish, Usage(1, 1), **given)


def signals(completion: Completion, prior: LabelPrior = EVEN) -> dict[SignalName, float]:
    answer = settle(completion, SCHEMA, prior)
    assert answer.output is not None
    assert answer.confidence is not None
    decision = Decision(cast(str, answer.output["topic"]), answer.confidence)
    return free_signals(completion, SCHEMA, prior, decision)


def test_every_free_signal_of_an_answer_is_what_its_definition_says() -> None:
    entropy = -sum(p * math.log(p) for p in TOPIC.values())
    assert signals(said()) == pytest.approx(
        {
            S.MARGIN: 0.5,
            S.PROBABILITY: 0.7,
            S.ENTROPY: 1 - entropy / math.log(3),
            S.MINIMUM: 0.5,
            S.ALLOWED_MASS: 0.8,
            S.JOINT: 0.7 * 0.75 * 0.3,
            S.WORST_FIELD: 0.3,
        }
    )
    assert set(signals(said())) == set(FREE)


def test_calibration_moves_margin_probability_and_entropy_and_leaves_the_fields_probabilities() -> None:
    prior = LabelPrior({"card": 0.5, "cash": 0.25, "loan": 0.25})
    weights = {"card": 1.4, "cash": 0.8, "loan": 0.4}
    chances = [weight / 2.6 for weight in weights.values()]
    found = signals(said(), prior)
    assert found[S.PROBABILITY] == pytest.approx(1.4 / 2.6)
    assert found[S.MARGIN] == pytest.approx(0.6 / 2.6)
    assert found[S.ENTROPY] == pytest.approx(1 + sum(p * math.log(p) for p in chances) / math.log(3))
    assert found[S.JOINT] == signals(said())[S.JOINT]


def test_a_label_that_calibration_put_there_has_no_token_and_its_own_probability() -> None:
    prior = LabelPrior({"card": 0.9, "cash": 0.05, "loan": 0.05})
    found = signals(said(), prior)
    assert S.MINIMUM not in found
    assert found[S.JOINT] == pytest.approx(0.2 * 0.75 * 0.3)
    assert found[S.WORST_FIELD] == pytest.approx(0.2)
    assert found[S.ALLOWED_MASS] == 0.8


def test_without_readings_what_needs_them_is_left_out() -> None:
    assert signals(said(readings=None)).keys() == {S.MARGIN, S.PROBABILITY, S.ENTROPY}
    closed = said({"topic": "card", "urgent": "no"}, readings=None)
    assert signals(closed)[S.JOINT] == pytest.approx(0.7 * 0.75)


def test_a_field_without_a_reading_leaves_joint_out_and_objects_and_lists_are_passed_over() -> None:
    some = {name: reading for name, reading in READINGS.items() if name != "note"}
    assert signals(said(readings=some)).keys() == {S.MARGIN, S.PROBABILITY, S.ENTROPY, S.MINIMUM, S.ALLOWED_MASS}
    assert signals(said({**ANSWER, "tags": []}))[S.JOINT] == signals(said())[S.JOINT]


def test_a_closed_field_that_was_not_read_by_labels_counts_by_its_tokens() -> None:
    found = signals(said(label_logprobs={"topic": logs(TOPIC)}))
    assert found[S.JOINT] == pytest.approx(0.7 * 0.6 * 0.3)


def test_a_long_open_field_of_many_unlikely_tokens_is_worth_nothing_and_not_an_error() -> None:
    readings = {**READINGS, "note": Reading(-9999.0 * 40, -9999.0, 40), "topic": Reading(-9999.0, -9999.0, 1, 0.0)}
    found = signals(said(readings=readings))
    assert (found[S.JOINT], found[S.WORST_FIELD], found[S.MINIMUM], found[S.ALLOWED_MASS]) == (0.0, 0.0, 0.0, 0.0)


logprobs = st.floats(-60, 1e-6)
readings = st.builds(Reading, logprobs, logprobs, st.integers(1, 9), st.none() | st.floats(0, 1.0000001))


@EXAMPLES
@given(
    st.lists(st.floats(1e-9, 1), min_size=3, max_size=3),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.dictionaries(st.sampled_from(["topic", "urgent", "note"]), readings),
)
def test_a_signal_is_a_number_from_0_to_1_whatever_the_tokens_say(
    weights: list[float], means: list[float], read: dict[str, Reading]
) -> None:
    odds = {label: weight / sum(weights) for label, weight in zip(SCHEMA.labels, weights, strict=True)}
    completion = said(label_logprobs={"topic": logs(odds)}, readings=read)
    found = signals(completion, LabelPrior(dict(zip(SCHEMA.labels, means, strict=True))))
    assert all(0 <= value <= 1 for value in found.values()), found


def test_the_cheap_tier_is_asked_for_all_that_is_free_and_for_what_is_declared_of_the_rest() -> None:
    declared = Router(signals=(S.P_TRUE, S.MARGIN, S.ISOTONIC))
    assert asked_signals(declared, TierName.CHEAP) == (*FREE, S.P_TRUE)
    assert asked_signals(Router(), TierName.CHEAP) == FREE
    assert asked_signals(declared, TierName.STRONG) == ()
    assert {*FREE, *PAID, S.ISOTONIC, S.REGRET} == set(SignalName)


def tier(**more: Any) -> Tier:
    return Tier(model="m", seed=7, max_tokens=40, usd_per_million=Prices(input=1, output=1), **more)


def test_further_answers_are_asked_as_the_row_was_but_warm_and_each_with_its_own_seed() -> None:
    frame = row_frame(baseline("Go.", input_fields=("x",), schema=SCHEMA).opening(), tier=tier(), schema=SCHEMA)
    frames = sample_frames(frame, Router(samples=3, temperature=0.9))
    assert [body["seed"] for body in (f.body for f in frames)] == [8, 9, 10]
    for sample in frames:
        assert sample.body["temperature"] == 0.9
        changed = {name for name in frame.body if frame.body[name] != sample.body.get(name)}
        assert changed == {"seed", "temperature", "logprobs", "top_logprobs"}
    assert len({f.hash for f in (frame, *frames)}) == 4


def test_the_question_whether_an_answer_is_right_follows_the_rows_own_messages() -> None:
    prompt = baseline("Go.", input_fields=("x",), schema=SCHEMA)
    frame = row_frame(prompt.opening(), tier=tier(temperature=0.3, revision="r"), schema=SCHEMA)
    request = Request(frame, prompt.question({"x": "my card"}))
    asked = truth_request(request, prompt.answer(ANSWER))
    messages = cast(list[dict[str, str]], asked.body["messages"])
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[:2] == request.body["messages"]
    assert messages[2]["content"] == '{"topic":"card","urgent":"no","note":"lost","tags":["a"]}'
    assert asked.frame.fields.labels == {"right": ("true", "false")}
    assert (asked.body["temperature"], asked.body["logprobs"], asked.revision) == (0.0, True, "r")


def test_the_share_of_agreeing_answers_counts_invalid_and_cut_ones_as_disagreeing() -> None:
    samples = [said(), said({**ANSWER, "note": "x"}), said({**ANSWER, "topic": "loan"}), said({"topic": "card"})]
    assert consistency(samples, "card", SCHEMA) == 0.5
    assert consistency([*samples, said(finish="length")], "card", SCHEMA) == 0.4
    assert consistency(samples, "cash", SCHEMA) == 0.0
    assert consistency([], "card", SCHEMA) is None


def test_a_further_answer_is_taken_as_it_was_written_whatever_its_log_probabilities_prefer() -> None:
    assert consistency([said({**ANSWER, "topic": "loan"})], "loan", SCHEMA) == 1.0


def test_the_chance_of_true_is_that_of_the_two_words() -> None:
    verdict = said(label_logprobs={"right": logs({"true": 0.8, "false": 0.2})})
    assert truth(verdict) == pytest.approx(0.8)
    assert truth(said(label_logprobs={})) is None


def test_nothing_further_is_asked_of_an_answer_that_escalates_anyway() -> None:
    sure, blind = said(), said(label_logprobs={})
    assert asks_further(sure, settle(sure, SCHEMA, EVEN), SCHEMA)
    assert asks_further(blind, settle(blind, SCHEMA, EVEN), SCHEMA), "its labels are unknown, its samples are not"
    assert not asks_further(sure, Answer({"topic": "card"}, None, "the calibrated label breaks a validator"), SCHEMA)
    assert not asks_further(sure, Answer(None, None, "schema: no"), SCHEMA)


# ---- how well a signal tells right from wrong


def test_the_area_under_the_risk_coverage_curve_is_the_mean_risk_of_all_coverages() -> None:
    confidence, loss = np.array([0.2, 0.9, 0.5, 0.7]), np.array([1.0, 0.0, 0.5, 1.0])
    # Surest first: 0, then (0 + 1)/2, then (0 + 1 + .5)/3, then 2.5/4.
    assert aurc(confidence, loss) == pytest.approx((0 + 1 / 2 + 1.5 / 3 + 2.5 / 4) / 4)
    assert aurc(-confidence, loss) == pytest.approx((1 + 1.5 / 2 + 2.5 / 3 + 2.5 / 4) / 4)


def test_equal_confidences_are_accepted_together() -> None:
    confidence = np.array([0.9, 0.5, 0.5, -np.inf])
    assert aurc(confidence, np.array([0.0, 1.0, 0.0, 1.0])) == pytest.approx((0 + 2 * (1 / 3) + 2 / 4) / 4)
    assert aurc(np.zeros(4), np.array([0.0, 1.0, 0.0, 0.0])) == 0.25
    assert aurc(np.array([]), np.array([])) is None


@EXAMPLES
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.4, 0.4, 0.8]), st.floats(0, 1)), min_size=1, max_size=12))
def test_the_area_is_that_of_the_definition_in_any_order_of_the_rows(rows: list[tuple[float, float]]) -> None:
    by_definition = 0.0
    for level, _ in rows:
        accepted = [loss for confidence, loss in rows if confidence >= level]
        by_definition += sum(accepted) / len(accepted) / len(rows)
    for order in (rows, rows[::-1], sorted(rows)):
        confidence, loss = np.array([row[0] for row in order]), np.array([row[1] for row in order])
        assert aurc(confidence, loss) == pytest.approx(by_definition)


def test_each_signals_figures_are_its_own_and_a_row_without_it_comes_last() -> None:
    quality = np.array([1.0, 1.0, 0.0, 0.0])
    margin, sampled = np.array([0.9, 0.8, 0.2, 0.1]), np.array([np.nan, 1.0, 0.5, -np.inf])
    usd = {S.SELF_CONSISTENCY: np.array([0.0, 0.2, 0.2, 0.2])}
    found = qualities({S.MARGIN: margin, S.SELF_CONSISTENCY: sampled}, quality, usd=usd)
    assert found[S.MARGIN] == Quality(1.0, pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4), 0.0)
    known = np.array([-np.inf, 1.0, 0.5, -np.inf])
    assert found[S.SELF_CONSISTENCY] == Quality(
        auroc(known, quality == 1), aurc(known, 1 - quality), pytest.approx(0.15)
    )
    assert found[S.SELF_CONSISTENCY].auroc == pytest.approx((0.5 + 0 + 2) / 4)


def test_graded_quality_is_right_at_1_and_lost_by_what_is_missing() -> None:
    quality = np.array([1.0, 0.75, 0.5])
    (found,) = qualities({S.MARGIN: np.array([0.9, 0.5, 0.1])}, quality, usd={}).values()
    assert found == Quality(1.0, pytest.approx((0 + 0.125 + 0.25) / 3), 0.0)
