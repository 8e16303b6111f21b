"""Confidence: what calibration makes of the labels' log-probabilities, and how well it tells right from wrong."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.confidences import LabelPrior, auroc, decide

EXAMPLES = settings(max_examples=60, deadline=None, database=None, derandomize=True)
LABELS = ("card", "loan", "transfer")

probabilities = st.lists(st.floats(-30, 0), min_size=3, max_size=3).map(lambda v: dict(zip(LABELS, v, strict=True)))


@EXAMPLES
@given(st.lists(probabilities, max_size=5), probabilities)
def test_calibrated_probabilities_sum_to_one(rows: list[dict[str, float]], row: dict[str, float]) -> None:
    calibrated = LabelPrior.of(rows, LABELS).apply(row)
    assert set(calibrated) == set(LABELS)
    assert sum(calibrated.values()) == pytest.approx(1.0)
    assert all(0 <= value <= 1 for value in calibrated.values())


@EXAMPLES
@given(probabilities)
def test_the_confidence_is_the_margin_of_the_winning_label(row: dict[str, float]) -> None:
    prior = LabelPrior.of([], LABELS)
    ranked = sorted(prior.apply(row).values(), reverse=True)
    decision = decide(row, prior)
    assert decision.confidence == pytest.approx(ranked[0] - ranked[1])
    assert 0 <= decision.confidence <= 1
    assert prior.apply(row)[decision.label] == ranked[0]


def test_a_label_that_the_model_favours_on_every_row_is_discounted() -> None:
    row = {"card": math.log(0.6), "loan": math.log(0.4)}
    biased = [{"card": math.log(0.9), "loan": math.log(0.1)}, {"card": math.log(0.7), "loan": math.log(0.3)}]
    assert decide(row, LabelPrior.of([], ("card", "loan"))).label == "card"
    prior = LabelPrior.of(biased, ("card", "loan"))
    assert prior.means == pytest.approx({"card": 0.8, "loan": 0.2})
    assert decide(row, prior).label == "loan"


def test_a_tie_is_decided_by_name_with_no_confidence() -> None:
    even = dict.fromkeys(("loan", "card"), math.log(0.5))
    assert decide(even, LabelPrior.of([], ("loan", "card"))).label == "card"
    assert decide(even, LabelPrior.of([], ("loan", "card"))).confidence == 0.0


def test_auroc_is_the_chance_that_a_right_answer_is_more_confident_ties_half() -> None:
    confidence = np.array([0.9, 0.5, 0.5, 0.1, -np.inf])
    right = np.array([True, True, False, False, False])
    assert auroc(confidence, right) == pytest.approx((3 + 2.5) / 6)
    assert auroc(confidence, ~right) == pytest.approx(1 - 5.5 / 6)
    assert auroc(confidence, np.ones(5, dtype=bool)) is None
