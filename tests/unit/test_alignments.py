"""Alignments: which tokens spell a value, whatever they carry besides, and what their log-probabilities say."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.alignments import Fields, Reading, Token, as_bytes, read_fields
from domain.confidences import FLOOR, LabelPrior, decide

EXAMPLES = settings(max_examples=60, deadline=None, database=None, derandomize=True)
LABELS = ("card", "loan", "transfer")
Odds = Mapping[str, float]


def token(text: str, odds: Odds | None = None) -> Token:
    return Token(text, {other: math.log(p) for other, p in (odds or {text: 1.0}).items()})


def labels_of(tokens: Sequence[Token], closed: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    found = read_fields(tokens, Fields.of((), closed))
    assert found
    return found[0]


def readings_of(
    tokens: Sequence[Token], *names: str, closed: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Reading]:
    found = read_fields(tokens, Fields.of(names, closed or {}))
    assert found
    return found[1]


def read(tokens: Sequence[Token], labels: Sequence[str] = LABELS, field: str = "topic") -> dict[str, float]:
    found = labels_of(tokens, {field: labels})
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
    assert decide(labels_of(tokens, {"topic": labels})["topic"], LabelPrior.of([], labels)).label == "transfer_out"


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
    found = labels_of(tokens, {"topic": LABELS, "urgent": ("yes", "no"), "absent": LABELS})
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


def test_a_reading_has_the_tokens_of_the_value_and_no_others() -> None:
    tokens = [
        token('{"'),
        token("name", {"name": 0.5}),
        token('":"', {'":"': 0.25}),
        token("Ann", {"Ann": 0.5}),
        token(" B", {" B": 0.125}),
        token('","', {'","': 0.25}),
        token("age", {"age": 0.5}),
        token('":', {'":': 0.5}),
        token("4", {"4": 0.5}),
        token("2", {"2": 0.75}),
        token(',"ok":', {',"ok":': 0.5}),
        token("true", {"true": 0.9}),
        token("}", {"}": 0.5}),
    ]
    found = readings_of(tokens, "name", "age", "ok", "absent")
    assert found.keys() == {"name", "age", "ok"}
    assert found["name"] == Reading(pytest.approx(math.log(0.0625)), pytest.approx(math.log(0.125)), 2)
    assert found["age"] == Reading(pytest.approx(math.log(0.375)), pytest.approx(math.log(0.5)), 2)
    assert found["ok"] == Reading(pytest.approx(math.log(0.9)), pytest.approx(math.log(0.9)), 1)


@pytest.mark.parametrize("texts", [('{"name":"Ann', '"}'), ('{"name', '":"Ann"}'), ('{"name":', '"Ann"', "}")])
def test_a_token_that_carries_punctuation_besides_belongs_to_the_value(texts: tuple[str, ...]) -> None:
    found = readings_of([token(text, {text: 0.5}) for text in texts], "name")
    assert found["name"] == Reading(math.log(0.5), math.log(0.5), 1)


def test_punctuation_inside_a_string_is_part_of_the_value() -> None:
    tokens = [token(text, {text: 0.5}) for text in ('{"name":"', "a", '\\"', ":", "{", "}", '"}')]
    assert readings_of(tokens, "name")["name"].tokens == 5


def test_an_empty_string_is_said_by_the_quote_that_closes_it() -> None:
    tokens = [token(text, {text: p}) for text, p in (('{"name":', 0.5), ('"', 0.25), ('"', 0.75), ("}", 0.5))]
    assert readings_of(tokens, "name")["name"] == Reading(math.log(0.75), math.log(0.75), 1)
    merged = [token('{"name":', {'{"name":': 0.5}), token('""}', {'""}': 0.25})]
    assert readings_of(merged, "name")["name"] == Reading(math.log(0.25), math.log(0.25), 1)


def test_half_a_character_that_a_server_shows_as_nothing_counts_for_its_value_and_for_no_other() -> None:
    texts = (("", 0.1), ('{"a":"', 0.5), ("", 0.25), ("é", 0.5), ("", 0.5), ("è", 0.5), ('","b":"', 0.5), ("x", 0.5))
    tokens = [token(text, {text: p}) for text, p in (*texts, ('"}', 0.5), ("", 0.1))]
    found = readings_of(tokens, "a", "b")
    assert found["a"] == Reading(pytest.approx(math.log(0.25 * 0.5**3)), math.log(0.25), 4)
    assert found["b"] == Reading(math.log(0.5), math.log(0.5), 1)


@pytest.mark.parametrize("text", ['{"x":[1,{"name":"a"}],"name":2}', '{"x":{"name":{"name":"]"}},"name":2}'])
def test_objects_and_lists_have_no_reading_and_hide_no_field_behind_them(text: str) -> None:
    assert readings_of([token(part) for part in text], "name", "x").keys() == {"name"}
    assert readings_of([token(part) for part in text], "name")["name"].tokens == 1


@pytest.mark.parametrize(
    "text", ['{"name":"An', '{"name":"', '{"name":12', '{"name":tru', '{"x":[1,', '{"name":"a\\"}']
)
def test_a_value_that_the_answer_breaks_off_in_has_no_reading(text: str) -> None:
    assert readings_of([token(part) for part in text], "name", "x") == {}


def test_text_that_is_no_json_is_read_as_far_as_it_is_some() -> None:
    assert readings_of([token('{"name":"a","\\x":"b" "c"')], "name", "c").keys() == {"name"}
    assert readings_of([token('{"\\u006eame":"a"}')], "name").keys() == {"name"}


def test_allowed_is_the_mass_of_what_can_still_become_a_label_before_it_is_renormalised() -> None:
    odds = {"card": 0.4, "lo": 0.1, "Bank": 0.3, "{": 0.15}
    tokens = [token('{"topic":"'), token("card", odds), token('"}')]
    (found,) = readings_of(tokens, "topic", closed={"topic": LABELS}).values()
    assert found == Reading(math.log(0.4), math.log(0.4), 1, pytest.approx(0.5))
    assert readings_of(tokens, "topic")["topic"].allowed is None


def test_allowed_is_read_where_the_value_begins_and_not_where_labels_part() -> None:
    labels = ("transfer_in", "transfer_out")
    tokens = [
        token('{"topic":"'),
        token("transfer", {"transfer": 0.6, "Bank": 0.4}),
        token("_in", {"_in": 0.5}),
        token('"}'),
    ]
    assert readings_of(tokens, closed={"topic": labels})["topic"].allowed == pytest.approx(0.6)


def test_an_alternative_that_ends_before_the_value_decides_against_no_label() -> None:
    odds = {':"card': 0.5, ':"': 0.2, ":": 0.1, ': "': 0.1, ":{": 0.1}
    (found,) = readings_of([token('{"topic"'), token(':"card', odds), token('"}')], closed={"topic": LABELS}).values()
    assert found.allowed == pytest.approx(0.8)


def test_an_answer_that_no_label_fits_was_allowed_nothing() -> None:
    found = readings_of([token('{"topic":"'), token("Bank", {"Bank": 0.9}), token('"}')], closed={"topic": LABELS})
    assert found["topic"].allowed == 0.0


def test_tokens_that_do_not_spell_what_was_said_are_not_read() -> None:
    tokens = [token('{"name":"\ufffd'), token("\ufffd"), token('"}')]
    assert read_fields(tokens, Fields.of(("name",), {}), said='{"name":"é"}') is None
    assert read_fields([*tokens, token("<eos>")], Fields.of(("name",), {}), said='{"name":"\ufffd\ufffd"}')


TEXTS = st.text(st.sampled_from('aZ é日🙂"\\:{}[],\n'), max_size=8)
SCALARS = TEXTS | st.integers(-99, 99) | st.booleans() | st.none() | st.floats(-9, 9)
NESTED = st.lists(SCALARS, max_size=3) | st.dictionaries(TEXTS, SCALARS, max_size=2)
ANSWERS = st.dictionaries(st.sampled_from(("name", "größe", "日本", "n:", 'a"b')), SCALARS | NESTED, max_size=5)


def spelt(answer: Mapping[str, object], *, space: str, ascii_only: bool) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """An answer's JSON in bytes, and where the value of each field that has no parts stands in it."""
    text, places = b"{" + space.encode(), dict[str, tuple[int, int]]()
    for number, (field, value) in enumerate(answer.items()):
        said = json.dumps(value, ensure_ascii=ascii_only).encode()
        head = json.dumps(field, ensure_ascii=ascii_only).encode() + f"{space}:{space}".encode()
        text += (f",{space}".encode() if number else b"") + head
        if isinstance(value, str):
            places[field] = (len(text) + 1, len(text) + max(len(said) - 1, 2))
        elif not isinstance(value, list | dict):
            places[field] = (len(text), len(text) + len(said))
        text += said
    return text + space.encode() + b"}", places


@settings(EXAMPLES, max_examples=400)
@given(ANSWERS, st.sampled_from(("", " ", "\n  ")), st.booleans(), st.sets(st.integers(1, 200)))
def test_however_the_bytes_are_cut_into_tokens_a_reading_has_those_that_overlap_its_value(
    answer: dict[str, object], space: str, ascii_only: bool, cuts: set[int]
) -> None:
    text, places = spelt(answer, space=space, ascii_only=ascii_only)
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [(begin, end, -0.01 * number) for number, (begin, end) in enumerate(itertools.pairwise(edges), start=1)]
    tokens = [
        Token(written, {written: logprob})
        for begin, end, logprob in pieces
        for written in [text[begin:end].decode("latin-1")]
    ]
    found = read_fields(tokens, Fields.of([*answer, "name"], {}).in_bytes())
    assert found
    assert found[1].keys() == places.keys()
    for field, (start, end) in places.items():
        mine = [logprob for first, last, logprob in pieces if first < end and last > start]
        assert found[1][field] == Reading(pytest.approx(sum(mine)), min(mine), len(mine))


def test_labels_whose_characters_are_cut_are_told_apart_by_their_bytes() -> None:
    labels = ("日本", "日記", "本")
    whole = as_bytes("日本")
    odds = {whole[:2]: 0.75, as_bytes("本"): 0.25}
    second = {whole[2:4]: 0.6, as_bytes("日記")[2:4]: 0.4}
    tokens = [token('{"topic":"'), token(whole[:2], odds), token(whole[2:4], second), token(whole[4:]), token('"}')]
    found = read_fields(tokens, Fields.of((), {"topic": labels}).in_bytes())
    assert found
    chances = {label: math.exp(value) for label, value in found[0]["topic"].items()}
    assert chances == pytest.approx({"日本": 0.45, "日記": 0.3, "本": 0.25})
    assert found[1]["topic"].tokens == 3
