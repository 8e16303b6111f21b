"""Batch JSONL: what is written, and what becomes of anything that may come back."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from domain.errors import AnswerGarbled, ModelUnavailable, Place, RequestRefused
from domain.ledgers import OutcomeClass
from domain.prompts import baseline
from domain.requests import Request, row_request
from domain.schemas import OutputSchema
from domain.workloads import Prices, Tier
from infra.llm import batch_files
from infra.llm.batch_files import Oddities, Verdict, classify, read_requests, read_results, request_line

EXAMPLES = settings(max_examples=60, deadline=None, database=None, derandomize=True)


class Answer(BaseModel):
    topic: Literal["card", "loan"]


SCHEMA = OutputSchema.of(Answer, decisive="topic", place=Place("w"))
PROMPT = baseline("Sort the message.", input_fields=("text",), schema=SCHEMA)
TIER = Tier(model="scripted", usd_per_million=Prices(input=1, output=1), revision="r1", temperature=0.1)


def ask(text: str = "a loan") -> Request:
    return row_request(PROMPT.render({"text": text}), tier=TIER, schema=SCHEMA)


def body(text: str = '{"topic":"loan"}', finish: str = "stop") -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish, "logprobs": None}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


def result(request: Request, *, status: object = 200, error: object = None, **more: object) -> dict[str, Any]:
    response = {"status_code": status, "request_id": "r", "body": body()} | more
    return {"id": "b", "custom_id": request.hash, "response": response, "error": error}


def read(tmp_path: Path, lines: list[bytes], *requests: Request) -> tuple[dict[str, Verdict], Oddities]:
    path, oddities = tmp_path / "output.jsonl", Oddities()
    path.write_bytes(b"\n".join(lines) + b"\n")
    found = list(read_results([path], {request.hash: request for request in requests}, oddities))
    assert len({request.hash for request, _ in found}) == len(found)
    return {request.hash: verdict for request, verdict in found}, oddities


def line(value: object) -> bytes:
    return json.dumps(value).encode()


def test_a_line_is_a_post_with_the_requests_hash_as_its_name() -> None:
    written = json.loads(request_line(ask()))
    assert (written["custom_id"], written["method"], written["url"]) == (ask().hash, "POST", "/v1/chat/completions")
    assert written["body"] == ask().body


@EXAMPLES
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_requests_come_back_from_their_file_as_they_were(tmp_path_factory: Any, texts: list[str]) -> None:
    requests = [ask(text) for text in texts]
    path: Path = tmp_path_factory.mktemp("batch") / "input.jsonl"
    path.write_bytes(b"".join(map(request_line, requests)))
    found = read_requests(path, revision="r1")
    assert set(found) == {request.hash for request in requests}
    assert {custom_id: request.hash for custom_id, request in found.items()} == {key: key for key in found}
    assert len({id(request.frame) for request in found.values()}) == 1


def test_another_revision_makes_other_requests(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(request_line(ask()))
    (request,) = read_requests(path, revision="r2").values()
    assert request.hash != ask().hash


def test_results_in_any_order_find_their_rows(tmp_path: Path) -> None:
    one, two = ask("one"), ask("two")
    found, oddities = read(tmp_path, [line(result(two)), line(result(one, body=body('{"topic":"card"}')))], one, two)
    texts = {key: verdict.completion and verdict.completion.text for key, verdict in found.items()}
    assert texts == {one.hash: '{"topic":"card"}', two.hash: '{"topic":"loan"}'}
    assert not oddities


@pytest.mark.parametrize(
    ("change", "outcome", "error", "again"),
    [
        ({}, OutcomeClass.ANSWERED, None, False),
        ({"body": body(finish="length")}, OutcomeClass.TRUNCATED, None, False),
        ({"status": 400}, OutcomeClass.REFUSED, RequestRefused, False),
        ({"status": 404, "body": None, "error": "no"}, OutcomeClass.REFUSED, RequestRefused, False),
        ({"status": 408}, OutcomeClass.UNAVAILABLE, ModelUnavailable, True),
        ({"status": 429}, OutcomeClass.UNAVAILABLE, ModelUnavailable, True),
        ({"status": 500}, OutcomeClass.UNAVAILABLE, ModelUnavailable, True),
        ({"status": 503, "body": None}, OutcomeClass.UNAVAILABLE, ModelUnavailable, True),
        ({"body": []}, OutcomeClass.GARBLED, AnswerGarbled, True),
        ({"body": {"choices": []}}, OutcomeClass.GARBLED, AnswerGarbled, True),
        ({"body": None}, OutcomeClass.GARBLED, AnswerGarbled, True),
        ({"status": "200"}, OutcomeClass.GARBLED, AnswerGarbled, True),
        ({"body": None, "error": {"code": "server_error"}}, OutcomeClass.UNAVAILABLE, ModelUnavailable, True),
    ],
)
def test_a_line_is_read_as_the_same_answer_over_http(
    change: dict[str, Any], outcome: OutcomeClass, error: type | None, again: bool
) -> None:
    verdict = classify(ask(), result(ask(), **change))
    assert verdict is not None
    assert (verdict.outcome, verdict.again) == (outcome, again)
    assert (verdict.error and type(verdict.error)) == error
    assert (verdict.completion is None) == (error is not None)
    if verdict.completion is not None:
        assert verdict.tried("w", 3.0).usage == verdict.completion.usage


@pytest.mark.parametrize("response", [None, [], 5, {}])
def test_a_line_without_a_response_has_no_answer(response: object) -> None:
    verdict = classify(ask(), {"custom_id": ask().hash, "response": response})
    assert verdict is not None
    assert isinstance(verdict.error, AnswerGarbled)


def test_what_a_server_says_can_be_stored_and_is_not_long() -> None:
    verdict = classify(ask(), result(ask(), status=422, body=None, error="\0 " + "é" * 5000))
    assert verdict is not None
    assert verdict.error is not None
    assert "\0" not in verdict.error.message
    assert len(verdict.error.message) < 400


@pytest.mark.parametrize("code", ["batch_expired", "batch_cancelled"])
def test_rows_that_were_never_run_are_left_to_the_end_of_the_batch(tmp_path: Path, code: str) -> None:
    never = {"custom_id": ask().hash, "response": None, "error": {"code": code, "message": "m"}}
    found, _ = read(tmp_path, [line(never)], ask())
    assert found == {}


def test_of_two_results_the_first_stays(tmp_path: Path) -> None:
    found, oddities = read(tmp_path, [line(result(ask())), line(result(ask(), status=500))], ask())
    assert found[ask().hash].outcome is OutcomeClass.ANSWERED
    assert oddities.duplicates == 1


def test_results_of_rows_that_were_never_asked_are_counted(tmp_path: Path) -> None:
    found, oddities = read(tmp_path, [line(result(ask("other")))], ask())
    assert (found, oddities.unknown) == ({}, 1)
    assert "1 unknown" in str(oddities)


GARBAGE = [b"", b"   ", b"{", b"[]", b"null", b"5", b'"x"', b"\xff\xfe", b"\0" * 9, b'{"custom_id": 5}', b"{}"]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_garbage_line_costs_no_other_row_and_no_crash(tmp_path: Path, garbage: bytes) -> None:
    found, oddities = read(tmp_path, [garbage, line(result(ask())), garbage], ask())
    assert found[ask().hash].completion is not None
    assert oddities.garbage == (2 if garbage.strip() else 0)


@EXAMPLES
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_bytes_raise(tmp_path_factory: Any, lines: list[bytes]) -> None:
    found, _ = read(tmp_path_factory.mktemp("batch"), [*lines, line(result(ask()))], ask())
    assert set(found) == {ask().hash}


@pytest.mark.parametrize("cut", [0.6, 0.9])
def test_a_torn_line_that_names_its_row_is_that_rows_garbled_answer(tmp_path: Path, cut: float) -> None:
    whole = line(result(ask()))
    found, oddities = read(tmp_path, [whole[: int(len(whole) * cut)]], ask())
    assert isinstance(found[ask().hash].error, AnswerGarbled)
    assert oddities.garbage == 1


def test_a_torn_line_gives_way_to_a_whole_one_after_it(tmp_path: Path) -> None:
    whole = line(result(ask()))
    found, _ = read(tmp_path, [whole[:-9], whole], ask())
    assert found[ask().hash].completion is not None


def test_a_row_that_a_model_writes_into_its_answer_is_not_taken_for_the_lines_own(tmp_path: Path) -> None:
    victim = ask("victim")
    quoted = line(result(ask(), body=body(f'"custom_id": "{victim.hash}"')))
    found, _ = read(tmp_path, [quoted[:-3]], ask(), victim)
    assert set(found) == {ask().hash}


def test_a_line_without_end_is_skipped_and_the_next_one_read(tmp_path: Path) -> None:
    endless = b'{"custom_id":"' + b"x" * (2 * batch_files.LONGEST_LINE + 5)
    found, oddities = read(tmp_path, [endless, line(result(ask()))], ask())
    assert found[ask().hash].completion is not None
    assert oddities.garbage == 1


def test_a_file_is_complete_when_every_row_has_a_readable_line(tmp_path: Path) -> None:
    path = tmp_path / "output.jsonl"
    whole = line(result(ask()))
    path.write_bytes(whole)
    assert batch_files.complete([path], [ask().hash])
    path.write_bytes(whole[:-4])
    assert not batch_files.complete([path], [ask().hash])
