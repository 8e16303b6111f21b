"""Outcomes and figures: what becomes of a row, and the numbers that people read."""

import math
import random
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, model_validator
from scipy import stats

from domain.answers import settle
from domain.certificates import grid_of, tune
from domain.confidences import LabelPrior
from domain.datasets import Split
from domain.errors import Place
from domain.figures import Row, figures_of, loss_of, paired_rows
from domain.outcomes import Outcome, TierAnswer, Unanswered, settle_row
from domain.requests import Completion, Usage
from domain.schemas import OutputSchema
from domain.scores import METRICS, Estimate, estimate, exact_match, field_accuracy, mcnemar, token_f1
from domain.workloads import Target, TierName

EXAMPLES = settings(max_examples=60, deadline=None, database=None, derandomize=True)
CHEAP = TierAnswer({"topic": "card"}, 0.8, tokens=10, usd=0.1, failed=None)
STRONG = TierAnswer({"topic": "loan"}, 0.9, tokens=20, usd=1.0, failed=None)
BROKEN = TierAnswer(None, None, tokens=12, usd=0.2, failed="schema: topic")


def row(key: str, confidence: float | None, cheap: float, strong: float) -> Row:
    answer = TierAnswer({"topic": "card"}, confidence, tokens=10, usd=1.0, failed=None)
    return Row(key, Split.TEST, answer, TierAnswer({"topic": "card"}, 1.0, 20, 10.0, None), cheap, strong)


def test_a_sure_cheap_answer_is_kept_at_the_cheap_price() -> None:
    expected = Outcome("k", TierName.CHEAP, {"topic": "card"}, 0.8, escalated=False, usd=0.1)
    assert settle_row("k", CHEAP, None, 0.8) == expected


def test_an_unsure_cheap_answer_is_replaced_and_both_calls_are_paid() -> None:
    expected = Outcome("k", TierName.STRONG, {"topic": "loan"}, 0.9, escalated=True, usd=1.1)
    assert settle_row("k", CHEAP, STRONG, 0.81) == expected


def test_without_a_threshold_the_strong_tier_answers_alone_and_the_cheap_call_is_not_charged() -> None:
    expected = Outcome("k", TierName.STRONG, {"topic": "loan"}, 0.9, escalated=False, usd=1.0)
    assert settle_row("k", None, STRONG, None) == expected
    assert settle_row("k", CHEAP, STRONG, None) == expected


def test_an_invalid_cheap_answer_escalates_however_low_the_threshold() -> None:
    settled = settle_row("k", BROKEN, STRONG, 0.0)
    assert isinstance(settled, Outcome)
    assert (settled.tier, settled.usd) == (TierName.STRONG, 1.2)


def test_a_row_that_the_strong_tier_cannot_answer_stays_unanswered_with_its_reason() -> None:
    assert settle_row("k", CHEAP, BROKEN, 0.9) == Unanswered("k", "schema: topic")
    silent = TierAnswer(None, None, 0, 0.0, None)
    assert settle_row("k", None, silent, None) == Unanswered("k", "the strong tier gave no valid answer")


def test_a_row_whose_strong_answer_was_never_asked_for_is_an_error_and_not_an_answer() -> None:
    with pytest.raises(ValueError, match="row k was escalated"):
        settle_row("k", CHEAP, None, 0.9)


rows_of = st.lists(
    st.tuples(st.none() | st.floats(0, 1), st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), max_size=40
).map(lambda values: [row(f"{n:03}", *value) for n, value in enumerate(values)])


@EXAMPLES
@given(rows_of, st.none() | st.floats(0, 1))
def test_the_figures_of_the_cascade_are_those_of_its_settled_rows(rows: list[Row], threshold: float | None) -> None:
    figures = figures_of(rows, threshold)
    settled = [settle_row(r.key, r.cheap, r.strong, threshold) for r in rows]
    outcomes = [outcome for outcome in settled if isinstance(outcome, Outcome)]
    assert len(outcomes) == len(rows) == figures.cascade.n
    if rows:
        assert figures.cascade_usd == pytest.approx(np.mean([outcome.usd for outcome in outcomes]))
        assert figures.escalation_rate == pytest.approx(np.mean([o.tier is TierName.STRONG for o in outcomes]))
        scores = [r.cheap_quality if o.tier is TierName.CHEAP else r.strong_quality for r, o in zip(rows, outcomes)]  # noqa: B905 equal by the assertion above
        assert figures.cascade.mean == pytest.approx(np.mean(scores))


def test_the_loss_is_that_of_each_row_against_what_the_target_asks_of_the_strong_tier() -> None:
    rows = [row("a", 0.9, 0.0, 1.0), row("b", 0.9, 1.0, 1.0), row("c", 0.1, 0.0, 1.0), row("d", 0.9, 1.0, 0.0)]
    absolute = loss_of(rows, 0.5, Target(eps=0.05))
    assert (absolute.mean, absolute.up, absolute.down, absolute.n) == (0.0, 1, 1, 4)
    assert loss_of(rows, 0.0, Target(eps=0.05)).mean == 0.25
    assert loss_of(rows, None, Target(eps=0.05)).mean == 0
    relative = loss_of(rows, 0.5, Target(kind="relative", eps=0.2))
    assert relative.mean == pytest.approx(((0.8 - 0) + (0.8 - 1) + (0.8 - 1) + (0 - 1)) / 4)


def test_no_row_at_all_gives_figures_without_a_warning() -> None:
    figures = figures_of([], 0.5)
    assert (figures.cascade.n, figures.valid_rate, figures.escalation_rate, figures.auroc) == (0, 0.0, 1.0, None)
    assert (figures.cascade_usd, figures.strong_tokens) == (0.0, 0.0)


def test_tokens_and_validity_count_the_tier_that_answered() -> None:
    kept, escalated = row("a", 0.9, 1, 1), row("b", 0.1, 1, 1)
    invalid = Row("c", Split.TEST, CHEAP, BROKEN, 1.0, 0.0)
    figures = figures_of([kept, escalated, invalid], 0.85)
    assert figures.cascade_tokens == pytest.approx((10 + (10 + 20) + (10 + 12)) / 3)
    assert figures.valid_rate == pytest.approx(2 / 3)
    assert figures_of([kept, escalated, invalid], None).cascade_tokens == figures.strong_tokens


def test_rows_stand_in_the_order_of_their_keys_whatever_order_they_come_in() -> None:
    rng = random.Random(4)  # noqa: S311 an order, not a secret
    rows = [row(f"{rng.random():.12f}", rng.random(), rng.random(), rng.random()) for _ in range(300)]
    shuffled = sorted(rows, key=lambda r: (r.cheap_quality, r.strong_quality))
    one, other = paired_rows(rows), paired_rows(shuffled)
    assert list(one.cheap) == list(other.cheap) == [r.cheap_quality for r in sorted(rows, key=lambda r: r.key)]
    target = Target(kind="relative", eps=0.2)
    assert tune(one, target, grid=grid_of(one.confidence)) == tune(other, target, grid=grid_of(other.confidence))


def test_a_row_without_confidence_becomes_minus_infinity() -> None:
    pairs = paired_rows([row("b", 0.5, 1, 0), row("a", None, 0, 1)])
    assert list(pairs.confidence) == [-math.inf, 0.5]
    assert (list(pairs.cheap), list(pairs.strong)) == ([0, 1], [1, 0])
    assert (list(pairs.cheap_usd), list(pairs.strong_usd)) == ([1, 1], [10, 10])


@EXAMPLES
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60))
def test_the_interval_of_a_share_is_wilsons_and_holds_its_mean(values: list[float]) -> None:
    found = estimate(np.array(values))
    interval = stats.binomtest(int(sum(values)), len(values)).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.low <= found.mean + 1e-12
    assert found.mean <= found.high + 1e-12


@EXAMPLES
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_interval_of_a_graded_mean_stays_within_0_and_1(values: list[float]) -> None:
    found = estimate(np.array(values))
    assert -1e-12 <= found.low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= found.high <= 1 + 1e-12


def test_one_graded_value_says_nothing_about_the_mean() -> None:
    assert estimate(np.array([0.4])) == Estimate(0.4, 0.0, 1.0, 1)


def test_mcnemar_is_the_exact_test_on_the_rows_that_differ() -> None:
    before, after = np.array([0.0] * 8 + [1.0] * 92), np.array([1.0] * 7 + [0.0] + [1.0] * 92)
    assert mcnemar(before, after) == pytest.approx(stats.binomtest(7, 7).pvalue)
    assert mcnemar(before, before) == 1.0
    assert mcnemar(before, after) == mcnemar(after, before)


def test_metrics_compare_the_gold_fields_and_nothing_else() -> None:
    gold, output = {"topic": "card", "note": "lost my card"}, {"topic": "card", "note": "my card", "more": 1}
    assert exact_match(gold, output) == 0.0
    assert exact_match({"topic": "card"}, output) == 1.0
    assert field_accuracy(gold, output) == 0.5
    assert token_f1({"note": "Lost, my CARD"}, output) == pytest.approx(0.8)
    assert all(metric(gold, {}) == 0.0 for metric in METRICS.values())


class Careful(BaseModel):
    sure: bool
    topic: Literal["card", "loan"]

    @model_validator(mode="after")
    def _no_loan_when_unsure(self) -> "Careful":
        if self.topic == "loan" and not self.sure:
            raise ValueError("a loan must be sure")
        return self


SCHEMA = OutputSchema.of(Careful, decisive="topic", place=Place("w"))
EVEN = LabelPrior.of([], SCHEMA.labels)


def answered(text: str, card: float | None, *, finish: str = "stop") -> Completion:
    odds = {} if card is None else {"topic": {"card": math.log(card), "loan": math.log(1 - card)}}
    return Completion("h", text, finish, Usage(), odds)


def test_the_calibrated_label_decides_and_its_margin_is_the_confidence() -> None:
    favours_card = LabelPrior({"card": 0.8, "loan": 0.2})
    answer = settle(answered('{"sure":true,"topic":"card"}', 0.6), SCHEMA, favours_card)
    assert answer.output == {"sure": True, "topic": "loan"}
    assert answer.confidence == pytest.approx((0.4 / 0.2 - 0.6 / 0.8) / (0.4 / 0.2 + 0.6 / 0.8))
    kept = settle(answered('{"sure":true,"topic":"card"}', 0.6), SCHEMA, EVEN)
    assert kept.output == {"sure": True, "topic": "card"}
    assert kept.confidence == pytest.approx(0.2)


def test_a_label_that_breaks_the_users_own_validator_is_not_forced_and_the_row_escalates() -> None:
    answer = settle(answered('{"sure":false,"topic":"card"}', 0.1), SCHEMA, EVEN)
    assert answer.output == {"sure": False, "topic": "card"}
    assert (answer.valid, answer.confidence) == (True, None)


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        (answered("{", 0.9), "schema"),
        (answered('{"sure":true,"topic":"card"}', 0.9, finish="length"), "truncated"),
        (answered('{"sure":false,"topic":"loan"}', 0.9), "a loan must be sure"),
    ],
)
def test_an_invalid_answer_has_neither_output_nor_confidence_but_a_reason(completion: Completion, reason: str) -> None:
    answer = settle(completion, SCHEMA, EVEN)
    assert (answer.output, answer.confidence, answer.valid) == (None, None, False)
    assert reason in (answer.reason or "")


def test_an_answer_without_log_probabilities_is_valid_and_nobody_is_sure_of_it() -> None:
    answer = settle(answered('{"sure":true,"topic":"card"}', None), SCHEMA, EVEN)
    assert (answer.output, answer.confidence) == ({"sure": True, "topic": "card"}, None)
