"""Prompts and requests: what is rendered, what is sent, and that the same content has the same name."""

import json
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from domain.canonical import canonical, digest, share
from domain.errors import Place, WorkloadError
from domain.prompts import Demo, PromptVersion, baseline
from domain.requests import TOP_LOGPROBS, Request, response_schema, row_request
from domain.schemas import Invalid, OutputSchema, Valid, check, closed_fields
from domain.workloads import Prices, Tier

EXAMPLES = settings(max_examples=80, deadline=None, database=None, derandomize=True)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


class Triage(BaseModel):
    urgency: int
    topic: Literal["card", "loan"]


SCHEMA = OutputSchema.of(Triage, decisive="topic", place=Place("workload.yaml"))
PROMPT = PromptVersion(
    instructions="Sort the message.",
    answer_format="Answer in JSON.",
    input_fields=("text", "customer_age"),
    output_fields=("urgency", "topic"),
    demos=(Demo(inputs={"text": "lost it", "customer_age": 40}, output={"topic": "card", "urgency": 3}),),
)
TIER = Tier(model="m", max_tokens=9, usd_per_million=Prices(input=1, output=2))


@EXAMPLES
@given(st.dictionaries(st.text(), json_values, max_size=6))
def test_the_canonical_form_ignores_the_order_of_keys_and_loses_nothing(value: dict[str, object]) -> None:
    backwards = dict(reversed(list(value.items())))
    assert canonical(value) == canonical(backwards)
    assert digest(value) == digest(backwards)
    assert json.loads(canonical(value)) == value


@EXAMPLES
@given(json_values, json_values)
def test_two_values_have_the_same_digest_only_when_they_are_written_the_same(left: object, right: object) -> None:
    assert (digest(left) == digest(right)) == (canonical(left) == canonical(right))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_has_no_word_for_have_no_canonical_form(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"x": number})


@EXAMPLES
@given(st.text(), st.text(min_size=1))
def test_a_share_lies_between_0_and_1_and_depends_on_identity_and_salt_alone(identity: str, salt: str) -> None:
    assert 0 <= share(identity, salt=salt) < 1
    assert share(identity, salt=salt) == share(identity, salt=salt)
    assert share(identity, salt=salt) != share(identity + "x", salt=salt)


def test_a_prompt_renders_system_demos_and_row_in_turn_and_demos_in_the_schemas_order() -> None:
    assert PROMPT.render({"text": "no money", "customer_age": 7, "secret": "x"}) == [
        {"role": "system", "content": "Sort the message.\nAnswer in JSON."},
        {"role": "user", "content": "Text: lost it\nCustomer age: 40"},
        {"role": "assistant", "content": '{"urgency":3,"topic":"card"}'},
        {"role": "user", "content": "Text: no money\nCustomer age: 7"},
    ]


@pytest.mark.parametrize(
    "hostile",
    [
        "{{text}}",
        "{0.__class__}",
        "%(text)s",
        "$text",
        "[[ ## completed ## ]]",
        '{"topic":"card"}',
        "a\nText: b",
        "\x1b[31m",
    ],
)
def test_row_text_is_data_and_arrives_as_it_is(hostile: str) -> None:
    last = PROMPT.render({"text": hostile, "customer_age": 1})[-1]
    assert last == {"role": "user", "content": f"Text: {hostile}\nCustomer age: 1"}


def test_the_template_shows_where_the_rows_fields_go() -> None:
    assert PROMPT.template()[-1]["content"] == "Text: {{text}}\nCustomer age: {{customer_age}}"


def test_values_that_are_no_text_are_shown_as_json() -> None:
    last = PROMPT.render({"text": ["a", {"b": None}], "customer_age": True})[-1]
    assert last["content"] == 'Text: ["a",{"b":null}]\nCustomer age: true'


def test_the_baseline_names_every_field_and_the_decisive_labels() -> None:
    prompt = baseline("Sort.", input_fields=("text",), schema=SCHEMA)
    assert prompt.output_fields == ("urgency", "topic")
    assert prompt.demos == ()
    assert prompt.system() == "Sort.\nAnswer in JSON with urgency, topic; topic is one of card, loan."


@pytest.mark.parametrize(
    "change",
    [
        {"instructions": "Sort them."},
        {"answer_format": "JSON."},
        {"input_fields": ("customer_age", "text")},
        {"output_fields": ("topic",)},
        {"demos": ()},
    ],
)
def test_every_part_of_a_prompt_is_part_of_its_hash(change: dict[str, object]) -> None:
    assert PROMPT.hash == PromptVersion.model_validate_json(PROMPT.model_dump_json()).hash
    assert PROMPT.model_copy(update=change).hash != PROMPT.hash


def test_a_row_request_says_everything_that_decides_the_answer() -> None:
    request = row_request(PROMPT.render({"text": "a", "customer_age": 1}), tier=TIER, schema=SCHEMA)
    body = request.body
    assert (body["model"], body["max_tokens"], body["temperature"], body["seed"]) == ("m", 9, 0.0, 0)
    assert (body["logprobs"], body["top_logprobs"]) == (True, TOP_LOGPROBS)
    assert response_schema(body) == SCHEMA.json_schema
    assert request.model == "m"


def test_a_request_is_named_by_its_body_and_the_weights_revision() -> None:
    messages = PROMPT.render({"text": "a", "customer_age": 1})
    request = row_request(messages, tier=TIER, schema=SCHEMA)
    again = Request.of(dict(reversed(list(request.body.items()))), None)
    assert request.hash == again.hash
    others = [
        row_request(messages, tier=TIER.model_copy(update=change), schema=SCHEMA)
        for change in ({"revision": "abc"}, {"seed": 1}, {"temperature": 0.1}, {"max_tokens": 10}, {"model": "n"})
    ]
    others.append(row_request(PROMPT.render({"text": "b", "customer_age": 1}), tier=TIER, schema=SCHEMA))
    assert len({request.hash, *(other.hash for other in others)}) == 7


def test_prices_and_addresses_do_not_change_what_is_asked() -> None:
    messages = PROMPT.render({"text": "a", "customer_age": 1})
    moved = TIER.model_copy(update={"base_urls": ("http://h/v1",), "usd_per_million": Prices(input=5, output=5)})
    asked = [row_request(messages, tier=tier, schema=SCHEMA).hash for tier in (TIER, moved)]
    assert asked[0] == asked[1]


@pytest.mark.parametrize("body", [{}, {"response_format": None}, {"response_format": {"type": "json_object"}}])
def test_a_request_that_asks_for_no_schema_has_an_empty_one(body: dict[str, object]) -> None:
    assert response_schema(body) == {}


def test_closed_fields_are_those_with_an_enum_of_strings_references_followed() -> None:
    schema = {
        "$defs": {"Kind": {"enum": ["a", "b"]}},
        "properties": {
            "kind": {"$ref": "#/$defs/Kind"},
            "free": {"type": "string"},
            "number": {"enum": [1, 2]},
            "mixed": {"enum": ["a", None]},
            "lost": {"$ref": "#/$defs/Nobody"},
            "odd": True,
        },
    }
    assert closed_fields(schema) == {"kind": ("a", "b")}
    assert closed_fields({}) == {}


def test_a_schema_whose_decisive_field_is_open_is_refused_with_place_and_hint() -> None:
    for field in ("urgency", "absent"):
        with pytest.raises(WorkloadError, match=rf"w\.yaml:3: field '{field}'.*Literal"):
            OutputSchema.of(Triage, decisive=field, place=Place("w.yaml", 3))


@pytest.mark.parametrize(
    ("text", "finish", "kind", "named"),
    [
        ('{"urgency":1,"topic":"card"}', "length", "truncated", "length"),
        ('{"urgency":1,"topic":"cash"}', "stop", "schema", "topic"),
        ('{"topic":"card"}', "stop", "schema", "urgency"),
        ("{", "stop", "schema", "answer"),
        ("", "stop", "schema", "answer"),
        ("[]", "stop", "schema", "answer"),
    ],
)
def test_an_invalid_answer_is_told_apart_and_named(text: str, finish: str, kind: str, named: str) -> None:
    checked = check(text, finish, SCHEMA)
    assert isinstance(checked, Invalid)
    assert checked.kind == kind
    assert named in checked.reason


def test_a_valid_answer_comes_back_in_json_types() -> None:
    assert check('{"urgency":1,"topic":"loan"}', "stop", SCHEMA) == Valid({"urgency": 1, "topic": "loan"})
