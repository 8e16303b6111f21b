"""The wire: what real servers answer, read into completions, and what is no completion."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from domain.alignments import Reading
from domain.confidences import LabelPrior, decide
from domain.requests import Completion, Request, Usage
from infra.llm.scripted_faults import BODIES
from infra.llm.wire import Garbled, read_completion

DATA = Path(__file__).parent / "data"
LABELS = ("access", "card", "exchange", "loan", "transfer", "withdrawal")


def request(**properties: tuple[str, ...]) -> Request:
    schema = {"properties": {name: {"enum": list(labels)} for name, labels in properties.items()}}
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "q"}],
        "response_format": {"json_schema": {"schema": schema}},
    }
    return Request.of(body, None)  # pyright: ignore[reportArgumentType]


def read(payload: Any, asked: Request | None = None) -> Completion:
    return read_completion(asked or request(topic=("card", "loan")), json.dumps(payload).encode())


def real(name: str) -> Completion:
    return read_completion(request(topic=LABELS), (DATA / f"answer-{name}.json").read_bytes())


def logprob(text: str, p: float = 1.0) -> dict[str, Any]:
    return {"token": text, "logprob": math.log(p)}


def token(text: str, *others: dict[str, Any], p: float = 1.0) -> dict[str, Any]:
    return logprob(text, p) | {"top_logprobs": list(others)}


def payload(content: object = "{}", tokens: list[dict[str, Any]] | None = None, **more: object) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    if tokens is not None:
        choice["logprobs"] = {"content": tokens}
    usage = {"prompt_tokens": 5, "completion_tokens": 3}
    return {"choices": [choice], "usage": usage} | more


def odds(completion: Completion, field: str = "topic") -> dict[str, float]:
    return {label: math.exp(value) for label, value in completion.label_logprobs[field].items()}


@pytest.mark.parametrize(
    ("name", "text", "usage", "fingerprint"),
    [
        ("cheap", '{"topic":"access"}', Usage(48, 9, 0), "vllm-0.32.0-7d41ee9b"),
        ("strong", '{"topic":"card"}', Usage(65, 6, 0), "vllm-0.32.0-ba9ae16c"),
    ],
)
def test_real_answers_of_both_tiers_are_read_whole(name: str, text: str, usage: Usage, fingerprint: str) -> None:
    completion = real(name)
    assert (completion.text, completion.finish_reason) == (text, "stop")
    assert (completion.usage, completion.fingerprint) == (usage, fingerprint)
    assert completion.request_hash == request(topic=LABELS).hash
    assert sum(odds(completion).values()) == pytest.approx(1.0)


def test_a_real_answer_whose_quote_is_a_token_of_its_own_gives_every_label_its_mass() -> None:
    """Two labels stood level; `trans`, `ac`, `c` and the like count for the labels that they begin."""
    found = odds(real("cheap"))
    listed = {"access": (-0.7606, -5.64, -6.64, -8.14), "card": (-0.7606, -5.26, -6.01), "loan": (-6.01, -6.39, -8.01)}
    total = sum(map(math.exp, (-0.7606, -0.7606, -3.89, -4.14, -4.76, -5.26, -5.64, -6.01, -6.01, -6.39, -6.64, -6.89)))
    for label, values in listed.items():
        assert found[label] == pytest.approx(sum(map(math.exp, values)) / total, abs=0.005)
    assert found["transfer"] == pytest.approx((math.exp(-3.89) + math.exp(-4.14)) / total, abs=0.005)
    decision = decide(real("cheap").label_logprobs["topic"], LabelPrior.of([], LABELS))
    assert decision.label in ("access", "card")
    assert decision.confidence < 0.01


def test_a_real_answer_whose_quote_and_colon_are_one_token_gives_every_label_its_mass() -> None:
    found = odds(real("strong"))
    weights = {
        "card": -1.164,
        "loan": -1.289,
        "exchange": -1.60,
        "transfer": -2.04,
        "withdrawal": -3.48,
        "access": -3.54,
    }
    total = sum(map(math.exp, weights.values()))
    for label, value in weights.items():
        assert found[label] == pytest.approx(math.exp(value) / total, abs=0.015)
    assert decide(real("strong").label_logprobs["topic"], LabelPrior.of([], LABELS)).label == "card"


@pytest.mark.parametrize("name", ["cheap", "strong"])
def test_the_saved_answers_hold_what_makes_them_worth_keeping(name: str) -> None:
    tokens = json.loads((DATA / f"answer-{name}.json").read_text())["choices"][0]["logprobs"]["content"]
    assert any(other["logprob"] == -9999.0 for t in tokens for other in t["top_logprobs"])
    if name == "strong":
        texts = [[other["token"] for other in t["top_logprobs"]] for t in tokens]
        assert any(len(set(listed)) < len(listed) for listed in texts), "no two tokens read the same"


def test_two_tokens_that_read_the_same_add_up() -> None:
    listed = [logprob("card", 0.5), logprob("loan", 0.3), logprob("card", 0.2)]
    answer = payload('{"topic":"card"}', [token('{"topic":"'), token("card", *listed, p=0.5), token('"}')])
    assert odds(read(answer)) == pytest.approx({"card": 0.7, "loan": 0.3})


def test_the_written_token_counts_though_a_short_list_leaves_it_out() -> None:
    answer = payload('{"topic":"loan"}', [token('{"topic":"'), token("loan", logprob("card", 0.6), p=0.4), token('"}')])
    assert odds(read(answer)) == pytest.approx({"card": 0.6, "loan": 0.4})


@pytest.mark.parametrize("logprobs", [{}, {"logprobs": None}, {"logprobs": {}}, {"logprobs": {"content": None}}])
def test_an_answer_without_log_probabilities_is_a_completion_all_the_same(logprobs: dict[str, Any]) -> None:
    answer = payload('{"topic":"card"}')
    answer["choices"][0] |= logprobs
    assert read(answer).label_logprobs == {}


def test_a_request_for_no_schema_gets_no_label_probabilities() -> None:
    asked = Request.of({"model": "m", "messages": [{"role": "user", "content": "q"}]}, None)
    tokens = [token('{"topic":"'), token("card", logprob("card")), token('"}')]
    assert read(payload('{"topic":"card"}', tokens), asked).label_logprobs == {}


def test_the_readings_of_real_answers_are_those_of_their_labels_tokens() -> None:
    """The quote, the colon and the end of the text are no part of a value."""
    cheap, strong = ((real(name).readings or {})["topic"] for name in ("cheap", "strong"))
    assert (cheap.logprob, cheap.least, cheap.tokens) == (-0.76060551404953, -0.76060551404953, 1)
    assert (strong.logprob, strong.least, strong.tokens) == (-1.1637985706329346, -1.1637985706329346, 1)
    # These servers list what their grammar allows and nothing else.
    assert cheap.allowed == pytest.approx(1.0, abs=0.01)
    assert strong.allowed == pytest.approx(1.0, abs=0.01)


def test_only_fields_of_the_schema_are_read_whatever_keys_a_model_writes() -> None:
    text = '{"other":"x","topic":"card","\\u0000":1}'
    answer = payload(text, [token(part, logprob(part)) for part in text])
    assert (read(answer).readings or {}).keys() == {"topic"}


def test_an_answer_without_log_probabilities_has_no_readings() -> None:
    assert read(payload('{"topic":"card"}')).readings == {}


def test_a_token_that_the_server_clamped_makes_a_value_impossible_and_not_infinite() -> None:
    clamped = {"token": "card", "logprob": -9999.0, "top_logprobs": [logprob("loan", 0.5)]}
    found = read(payload('{"topic":"card"}', [token('{"topic":"'), clamped, token('"}')])).readings
    assert found == {"topic": Reading(-9999.0, -9999.0, 1, pytest.approx(0.5))}


def in_bytes(text: str, cuts: list[int], *, p: float, half: str = "\ufffd") -> list[dict[str, Any]]:
    """The text cut at these bytes, each token with its true bytes; one that is no whole character shows as `half`."""
    raw, edges = text.encode(), [0, *cuts, len(text.encode())]
    tokens: list[dict[str, Any]] = []
    for begin, end in itertools.pairwise(edges):
        shown = raw[begin:end].decode(errors="replace").replace("\ufffd", half)
        tokens.append(token(shown, p=p) | {"bytes": list(raw[begin:end])})
    return tokens


@pytest.mark.parametrize("half", ["\ufffd", "", "\\xe6\\x97"])
def test_characters_that_are_cut_over_tokens_shift_nothing(half: str) -> None:
    text = '{"größe":"日本","topic":"card"}'
    start = len('{"größe":"'.encode())
    # Inside ö, inside the first character of the value, and at the value's end.
    cuts = [5, start, start + 1, start + 6, len(text.encode()) - len('card"}'), len(text.encode()) - 2]
    asked = request(topic=("card", "loan"), größe=("日本", "日記"))
    tokens = in_bytes(text, cuts, p=0.5, half=half)
    second = next(t for t in tokens if t["bytes"] == list("日".encode()[:1]))
    second["top_logprobs"] = [logprob(second["token"], 0.5) | {"bytes": second["bytes"]}]
    found = read(payload(text, tokens), asked)
    assert found.readings is not None
    assert {field: reading.tokens for field, reading in found.readings.items()} == {"größe": 2, "topic": 1}
    assert found.readings["größe"].logprob == pytest.approx(2 * math.log(0.5))
    assert found.readings["größe"].allowed == pytest.approx(0.5)
    assert odds(found, "größe").keys() == {"日本", "日記"}


def test_a_server_without_bytes_is_read_by_the_characters_it_gives() -> None:
    text = '{"name":"é","topic":"card"}'
    parts = ['{"name":"', "\ufffd", "\ufffd", '","topic":"', "card", '"}']
    found = read(
        payload(text, [token(part, p=0.5) for part in parts]), request(topic=("card", "loan"), name=("é", "è"))
    )
    assert {field: reading.tokens for field, reading in (found.readings or {}).items()} == {"name": 2, "topic": 1}


def test_bytes_that_are_none_are_garbled() -> None:
    wrong = [token("\ufffd") | {"bytes": [999]}]
    with pytest.raises(Garbled):
        read(payload('{"topic":"é"}', wrong))


def test_cached_tokens_are_read_where_a_server_counts_them() -> None:
    usage = {"prompt_tokens": 50, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 48}}
    assert read(payload(usage=usage)).usage == Usage(50, 3, 48)
    assert read(payload(usage=usage | {"prompt_tokens_details": None})).usage == Usage(50, 3, 0)


def test_what_the_ledger_cannot_store_does_not_come_through() -> None:
    answer = payload("a\0b", system_fingerprint=7)
    answer["choices"][0]["finish_reason"] = "x" * 100
    completion = read(answer)
    assert completion.text == "a\N{REPLACEMENT CHARACTER}b"
    assert len(completion.finish_reason) == 32
    assert completion.fingerprint == "7"


def test_an_answer_that_never_says_why_it_ended_is_not_taken_for_a_finished_one() -> None:
    answer = payload()
    answer["choices"][0]["finish_reason"] = None
    assert read(answer).finish_reason != "stop"


@pytest.mark.parametrize("name", sorted(BODIES))
def test_a_body_that_is_no_completion_is_garbled(name: str) -> None:
    with pytest.raises(Garbled) as garbled:
        read_completion(request(topic=LABELS), BODIES[name])
    assert len(str(garbled.value)) <= 200


@pytest.mark.parametrize(
    "spoilt",
    [
        payload(7),
        payload(None),
        payload(["a"]),
        payload() | {"usage": None},
        payload() | {"usage": {"prompt_tokens": "many", "completion_tokens": 1}},
        payload() | {"usage": {"prompt_tokens": 1}},
        payload() | {"choices": {}},
        payload(tokens=[token('{"topic":"'), {"token": "card"}]),
        payload(tokens=[{"token": None, "logprob": 0, "top_logprobs": []}]),
        payload(tokens=[token('{"topic":"'), token("card") | {"top_logprobs": None}]),
        payload(tokens=[token('{"topic":"'), {"token": "card", "logprob": "low", "top_logprobs": []}]),
        payload(tokens=["a"]),
    ],
)
def test_a_completion_with_a_wrong_part_is_garbled_and_not_believed(spoilt: dict[str, Any]) -> None:
    with pytest.raises(Garbled):
        read(spoilt)
