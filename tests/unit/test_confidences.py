"""Confidence: whose log-probability a value's tokens are, and what calibration makes of it."""

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.confidences import FLOOR, LabelPrior, Token, auroc, decide, label_logprobs

EXAMPLES = settings(max_examples=60, deadline=None, database=None, derandomize=True)
LABELS = ("card", "loan", "transfer")
Odds = Mapping[str, float]


def token(text: str, odds: Odds | None = None) -> Token:
    return Token(text, {other: math.log(p) for other, p in (odds or {text: 1.0}).items()})


def read(tokens: Sequence[Token], labels: Sequence[str] = LABELS, field: str = "topic") -> dict[str, float]:
    found = label_logprobs(tokens, {field: labels})
    return {label: math.exp(value) for label, value in found[field].items()} if field in found else {}


ODDS = {"card": 0.6, "loan": 0.3, "transfer": 0.1}


@pytest.mark.parametrize(
    ("texts", "carried"),
    [
        (["{", '"', "topic", '":', '"', "VALUE", '"', "}"], ""),
        (['{"', "topic", '":"', "VALUE", '"}'], ""),
        (['{"topic":"', "VALUE", '"}'], ""),
        (['{"topic":', "VALUE", '"}'], '"'),
        (['{"topic":', "VALUE", '"}'], ' "'),
        (['{"topic"', "VALUE", '"}'], ':"'),
        (['{"topic', "VALUE", '"}'], '": "'),
        (['{\n  "topic"', " :", ' "', "VALUE", '"\n}'], ""),
        (["VALUE", '"}'], '{"topic":"'),
    ],
)
def test_the_value_is_found_whatever_punctuation_its_first_token_carries(texts: list[str], carried: str) -> None:
    odds = {carried + label: p for label, p in ODDS.items()}
    tokens = [token(carried + "card", odds) if text == "VALUE" else token(text) for text in texts]
    assert read(tokens) == pytest.approx(ODDS)


def test_an_alternative_that_closes_the_string_counts_for_the_whole_label_only() -> None:
    labels = ("card", "card_lost")
    tokens = [token('{"topic":"'), token('card"', {'card"': 0.7, "card_lost": 0.2, "card": 0.1}), token("}")]
    assert read(tokens, labels) == pytest.approx({"card": 0.75, "card_lost": 0.25})


def test_labels_split_over_several_tokens_are_told_apart_where_they_part() -> None:
    labels = ("transfer_in", "transfer_out", "card")
    opening = [token('{"topic":"'), token("transfer", {"transfer": 0.8, "card": 0.2})]
    tokens = [*opening, token("_"), token("out", {"out": 0.75, "in": 0.25}), token('"}')]
    assert read(tokens, labels) == pytest.approx({"transfer_in": 0.2, "transfer_out": 0.6, "card": 0.2})
    assert decide(label_logprobs(tokens, {"topic": labels})["topic"], LabelPrior.of([], labels)).label == "transfer_out"


def test_a_label_that_begins_another_is_decided_by_the_closing_quote() -> None:
    labels = ("card", "card_lost")
    tokens = [token('{"topic":"'), token("card"), token('"}', {'"}': 0.9, "_lost": 0.1})]
    assert read(tokens, labels) == pytest.approx({"card": 0.9, "card_lost": 0.1})


def test_a_shorter_piece_counts_in_equal_shares_for_the_labels_it_can_become() -> None:
    tokens = [token('{"topic":"'), token("card", {"card": 0.5, "ca": 0.2, "l": 0.3}), token('"}')]
    assert read(tokens, ("card", "cash", "loan")) == pytest.approx({"card": 0.6, "cash": 0.1, "loan": 0.3})


def test_an_answer_cut_inside_a_label_leaves_its_heirs_equal() -> None:
    tokens = [token('{"topic":"'), token("ca", {"ca": 0.8, "loan": 0.2})]
    assert read(tokens, ("card", "cash", "loan")) == pytest.approx({"card": 0.4, "cash": 0.4, "loan": 0.2})


def test_fillers_of_minus_9999_and_alternatives_that_fit_no_label_are_ignored() -> None:
    listed = {
        "card": math.log(0.6),
        "loan": math.log(0.3),
        "transfer": -9999.0,
        "<eos>": -9999.0,
        "Bank": math.log(0.1),
    }
    found = read([token('{"topic":"'), Token("card", listed), token('"}')])
    assert found["card"] == pytest.approx(2 / 3)
    assert found["loan"] == pytest.approx(1 / 3)
    assert found["transfer"] == pytest.approx(FLOOR / 0.9)


def test_alternatives_that_fit_no_label_at_all_leave_the_field_out_rather_than_guess() -> None:
    assert read([token('{"topic":"'), token("Bank", {"Bank": 0.9, "Shop": 0.1}), token('"}')]) == {}


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"other":"card"}', '{"topic":3}', '{"topic":null}', '{"topic"', '{"topic":"', "no json", '["topic"]'],
)
def test_a_field_that_the_text_does_not_reach_is_left_out(text: str) -> None:
    assert read([token(text)]) == {}


@pytest.mark.parametrize(
    "before",
    [
        {"note": "topic"},
        {"note": 'he wrote "topic": "loan" and {"topic":"loan"}'},
        {"meta": {"topic": "loan"}},
        {"list": ["topic", {"topic": "loan"}]},
        {"topics": "loan", "my topic": "loan"},
        {"note": "a brace } and a quote \\ and a bracket ["},
    ],
)
def test_quoted_text_and_nested_keys_are_not_taken_for_the_field(before: dict[str, object]) -> None:
    head = json.dumps(before, separators=(",", ":"))[:-1] + ',"topic":"'
    tokens = [*(token(character) for character in head), token("card", ODDS), token('"}')]
    assert read(tokens) == pytest.approx(ODDS)


def test_unicode_fields_and_labels_are_read_by_character() -> None:
    labels = ("prêt", "carte", "日本")
    odds = {"prêt": 0.7, "carte": 0.2, "日": 0.1}
    tokens = [
        token('{"'),
        token("müll"),
        token('":"é",'),
        token('"thème'),
        token('":"'),
        token("prêt", odds),
        token('"}'),
    ]
    assert read(tokens, labels, "thème") == pytest.approx({"prêt": 0.7, "carte": 0.2, "日本": 0.1})
    escaped = [token('{"th\\u00e8me":"'), token("prêt", odds), token('"}')]
    assert read(escaped, labels, "thème") == pytest.approx({"prêt": 0.7, "carte": 0.2, "日本": 0.1})


def test_a_label_with_quotes_in_it_is_read_as_json_writes_it() -> None:
    labels = ('say "no"', "yes")
    tokens = [token('{"topic":"'), token("say", {"say": 0.8, "yes": 0.2}), token(' \\"'), token('no\\""}')]
    assert read(tokens, labels) == pytest.approx({'say "no"': 0.8, "yes": 0.2})


def test_several_closed_fields_are_read_from_one_answer() -> None:
    tokens = [
        token('{"topic":"'),
        token("card", ODDS),
        token('","urgent":"'),
        token("no", {"yes": 0.1, "no": 0.9}),
        token('"}'),
    ]
    found = label_logprobs(tokens, {"topic": LABELS, "urgent": ("yes", "no"), "absent": LABELS})
    assert set(found) == {"topic", "urgent"}
    assert math.exp(found["urgent"]["no"]) == pytest.approx(0.9)


@EXAMPLES
@given(st.integers(1, 12), st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_however_an_answer_is_cut_into_tokens_its_label_has_the_same_probability(
    size: int, weights: list[float]
) -> None:
    """Each piece's alternatives are those of the labels still possible, as an exact tokenizer would list them."""
    labels = ("card", "card_lost", "cash")
    odds = {label: weight / sum(weights) for label, weight in zip(labels, weights, strict=True)}
    best = max(odds, key=lambda label: odds[label])
    head = '{"a":1,"topic":"'
    whole = {label: f'{head}{label}"}}' for label in labels}
    tokens: list[Token] = []
    for at in range(0, len(whole[best]), size):
        same = {label: text for label, text in whole.items() if text[:at] == whole[best][:at]}
        pieces: dict[str, float] = {}
        for label, text in same.items():
            pieces[text[at : at + size]] = pieces.get(text[at : at + size], 0.0) + odds[label]
        total = sum(pieces.values())
        tokens.append(token(whole[best][at : at + size], {piece: p / total for piece, p in pieces.items()}))
    found = read(tokens, labels)
    assert found[best] == pytest.approx(odds[best])
    # Labels that left the written path together share what they had together.
    assert found["card"] + found["card_lost"] == pytest.approx(odds["card"] + odds["card_lost"])
    if best != "cash":
        assert found == pytest.approx(odds)


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
