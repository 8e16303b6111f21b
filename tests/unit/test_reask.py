"""Re-asking: what it costs, what it sends, when it stops, and that nothing but the ledger's door is used."""

import asyncio
import copy
import logging
from typing import Literal, cast

import httpx
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, JsonValue, field_validator

from domain.errors import ModelUnavailable, Place, RequestRefused, StoreError
from domain.prompts import Message
from domain.requests import Completion, Request, Usage, row_request
from domain.run_diffs import Said
from domain.schemas import OutputSchema
from domain.workloads import Prices, Tier
from infra.llm.reask import Reasked, reask
from infra.llm.transport import AskFailed, LedgerTransport, ledger_client

VALID = '{"topic": "cards", "priority": 2}'
INVALID = '{"topic": "weather", "priority": 2}'


class Ticket(BaseModel):
    """The answer under test; priority is lax on purpose ("2" is 2)."""

    topic: Literal["cards", "loans"]
    priority: int

    @field_validator("priority")
    @classmethod
    def _low(cls, value: int) -> int:
        if value > 1000:
            raise TypeError("the user's validator is broken")
        return value


SCHEMA = OutputSchema.of(Ticket, decisive="topic", place=Place("schema.py"))
TIER = Tier(model="small", revision="r1", max_tokens=64, seed=7, usd_per_million=Prices(input=1, output=1))
REQUEST = row_request(
    [Message(role="system", content="Sort."), Message(role="user", content="Text: {{7*7}} {0.__class__} {% raw %}")],
    tier=TIER,
    schema=SCHEMA,
)

Answer = tuple[str, str]


def completion_of(request: Request, text: str, finish_reason: str = "stop") -> Completion:
    """An answer with log-probabilities that only a fresh call could have."""
    return Completion(
        request_hash=request.hash,
        text=text,
        finish_reason=finish_reason,
        usage=Usage(prompt=10, completion=5),
        label_logprobs={"topic": {"cards": -0.1, "loans": -2.4}},
    )


class FakeModel:
    """Stands in for the model behind the ledger: gives its answers in order and keeps every request."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []

    async def __call__(self, request: Request) -> Completion:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return completion_of(request, *answer)

    def turns(self, number: int) -> list[Message]:
        """The messages of the n-th request."""
        return cast(list[Message], self.requests[number].body["messages"])


def run(stored: Answer, model: FakeModel, *, max_reasks: int = 1, request: Request = REQUEST) -> Reasked:
    """Re-ask one stored answer."""
    completion = completion_of(request, *stored)
    return asyncio.run(reask(request=request, completion=completion, schema=SCHEMA, max_reasks=max_reasks, ask=model))


def test_a_valid_stored_answer_costs_no_call() -> None:
    model = FakeModel()
    result = run((VALID, "stop"), model, max_reasks=5)
    assert result == Reasked(completion_of(REQUEST, VALID), REQUEST.hash, reasks=0, invalid=None)
    assert model.requests == []


def test_a_valid_answer_under_the_domains_lax_rules_is_not_asked_again() -> None:
    lax = '{"topic": "cards", "priority": "2"}'
    model = FakeModel((lax, "stop"))
    assert run((lax, "stop"), model, max_reasks=3).reasks == 0
    assert run((INVALID, "stop"), model, max_reasks=3).invalid is None
    assert len(model.requests) == 1


def test_an_invalid_answer_is_asked_once_more_and_told_what_is_wrong() -> None:
    model = FakeModel((VALID, "stop"))
    result = run((INVALID, "stop"), model, max_reasks=3)
    assert len(model.requests) == 1
    assert result.reasks == 1
    assert result.invalid is None
    assert result.completion.text == VALID
    *before, answered, told = model.turns(0)
    assert before == REQUEST.body["messages"]
    assert answered == {"role": "assistant", "content": INVALID}
    assert told["role"] == "user"
    assert "topic: Input should be 'cards' or 'loans'" in told["content"]
    assert "pydantic.dev" not in told["content"]


def test_the_accepted_answer_brings_its_own_request_hash_and_log_probabilities() -> None:
    model = FakeModel((VALID, "stop"))
    result = run((INVALID, "stop"), model)
    assert result.request_hash == model.requests[0].hash != REQUEST.hash
    assert result.completion.request_hash == result.request_hash
    assert result.completion.label_logprobs == {"topic": {"cards": -0.1, "loans": -2.4}}


def test_the_reask_keeps_every_field_of_the_first_request_but_the_messages() -> None:
    body: dict[str, JsonValue] = {**REQUEST.body, "structured_outputs": {"choice": ["a"]}, "stop": None}
    request = Request.of(body, "r1")
    model = FakeModel((VALID, "stop"))
    run((INVALID, "stop"), model, request=request)
    sent = model.requests[0]
    assert {k: v for k, v in sent.body.items() if k != "messages"} == {k: v for k, v in body.items() if k != "messages"}
    assert {"response_format", "logprobs", "top_logprobs", "temperature", "seed", "max_tokens"} <= sent.body.keys()
    assert sent.revision == "r1"


def test_an_answer_that_never_becomes_valid_ends_with_its_last_reason_and_every_try_counted() -> None:
    model = FakeModel((INVALID, "stop"), ("not json", "stop"), ('{"topic": "cards"}', "stop"))
    result = run((INVALID, "stop"), model, max_reasks=3)
    assert result.reasks == 3 == len(model.requests)
    assert result.invalid is not None
    assert (result.invalid.kind, result.invalid.reason) == ("schema", "priority: Field required")
    assert result.completion.text == '{"topic": "cards"}'
    assert [len(model.turns(n)) for n in range(3)] == [4, 6, 8]
    for number, request in enumerate(model.requests, start=1):
        said = Said(request.hash, request.frame, number, {"topic": "cards"}, None)
        assert said.firsts == {REQUEST.hash: REQUEST.frame}, "a diff of runs finds the first request by the last"


def test_no_reask_is_made_when_none_is_allowed() -> None:
    model = FakeModel()
    result = run((INVALID, "stop"), model, max_reasks=0)
    assert (result.reasks, result.invalid and result.invalid.kind) == (0, "schema")
    assert run(("{", "length"), model, max_reasks=0).invalid is not None
    assert model.requests == []


@pytest.mark.parametrize("finish_reason", ["length", "abort", "content_filter"])
def test_an_answer_truncated_twice_is_asked_again_once_only_and_is_its_own_class(finish_reason: str) -> None:
    model = FakeModel(("{" + "\n" * 63, finish_reason), (VALID, "stop"))
    result = run((VALID, finish_reason), model, max_reasks=5)
    assert (result.reasks, len(model.requests)) == (1, 1)
    assert result.invalid is not None
    assert result.invalid.kind == "truncated"


def test_a_truncated_answer_may_recover_and_its_padding_is_not_sent_back() -> None:
    model = FakeModel((VALID, "stop"))
    result = run(('{"topic":' + "\n" * 60, "length"), model)
    assert (result.reasks, result.invalid) == (1, None)
    answered, told = model.turns(0)[-2:]
    assert answered["content"] == '{"topic":'
    assert "cut off" in told["content"]


@pytest.mark.parametrize(
    "error", [ModelUnavailable("down"), RequestRefused("HTTP 400: prompt too long"), StoreError("no ledger")]
)
def test_what_the_ledgers_door_raises_comes_out_as_it_is(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    model = FakeModel((INVALID, "stop"), error)
    with caplog.at_level(logging.WARNING), pytest.raises(type(error)) as caught:
        run((INVALID, "stop"), model, max_reasks=4)
    assert caught.value is error
    assert len(model.requests) == 2
    assert "HTTP 400" not in str(model.requests)
    assert caplog.records == []


def test_answers_are_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = FakeModel((INVALID, "stop"))
    with caplog.at_level(logging.WARNING):
        run((INVALID, "stop"), model)
    assert "weather" not in caplog.text
    assert caplog.records == []


def test_a_fault_in_the_users_validator_comes_out_as_it_is() -> None:
    model = FakeModel(('{"topic": "cards", "priority": 9999}', "stop"))
    with pytest.raises(TypeError, match="broken"):
        run((INVALID, "stop"), model)


def test_the_stored_request_is_not_changed_and_row_text_stays_literal() -> None:
    before = copy.deepcopy(REQUEST.body)
    model = FakeModel((INVALID, "stop"), (INVALID, "stop"))
    run((INVALID, "stop"), model, max_reasks=2)
    assert REQUEST.body == before
    assert model.turns(1)[1]["content"] == "Text: {{7*7}} {0.__class__} {% raw %}"


def test_the_same_answers_give_the_same_requests() -> None:
    first, second = FakeModel((INVALID, "stop"), (VALID, "stop")), FakeModel((INVALID, "stop"), (VALID, "stop"))
    run((INVALID, "stop"), first, max_reasks=2)
    run((INVALID, "stop"), second, max_reasks=2)
    assert [r.hash for r in first.requests] == [r.hash for r in second.requests]


def test_an_answer_with_a_lone_surrogate_can_be_asked_again() -> None:
    model = FakeModel(('{"topic": "\ud800"}', "stop"), (VALID, "stop"))
    result = run(('"\ud83d', "stop"), model, max_reasks=2)
    assert (result.reasks, result.invalid) == (2, None)


def test_rows_asked_again_at_once_do_not_mix() -> None:
    texts = [f'{{"topic": "cards", "priority": {number}}}' for number in range(20)]
    stored = completion_of(REQUEST, INVALID)

    async def together() -> list[Reasked]:
        talks = [
            reask(request=REQUEST, completion=stored, schema=SCHEMA, max_reasks=1, ask=FakeModel((text, "stop")))
            for text in texts
        ]
        return await asyncio.gather(*talks)

    assert [result.completion.text for result in asyncio.run(together())] == texts


def test_the_sdk_gets_an_openai_answer_from_the_ledger() -> None:
    async def call() -> ChatCompletion:
        async with ledger_client(FakeModel(("hello \ud800", "length")), revision=None) as client:
            return await client.chat.completions.create(model="small", messages=[{"role": "user", "content": "hi"}])

    answer = asyncio.run(call())
    assert (answer.object, answer.created, answer.model) == ("chat.completion", 0, "small")
    assert answer.choices[0].message.content == "hello \ud800"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (10, 5, 15)


def test_an_sdk_that_would_retry_asks_once_all_the_same() -> None:
    model = FakeModel(ModelUnavailable("down"), (VALID, "stop"))

    async def call() -> None:
        http = httpx.AsyncClient(transport=LedgerTransport(model, revision=None))
        async with AsyncOpenAI(base_url="http://x/v1", api_key="x", max_retries=3, http_client=http) as client:
            await client.chat.completions.create(model="small", messages=[{"role": "user", "content": "q"}])

    with pytest.raises(AskFailed) as caught:
        asyncio.run(call())
    assert isinstance(caught.value.error, ModelUnavailable)
    assert len(model.requests) == 1


def test_nothing_but_chat_completions_is_answered() -> None:
    model = FakeModel()

    async def call() -> list[int]:
        async with httpx.AsyncClient(transport=LedgerTransport(model, revision=None), base_url="http://x/v1") as http:
            answers = [
                await http.get("/chat/completions"),
                await http.post("/completions", json={}),
                await http.get("/models"),
                await http.post("/chat/completions", json={"model": "m", "stream": True}),
            ]
            return [answer.status_code for answer in answers]

    assert asyncio.run(call()) == [404, 404, 404, 400]
    assert model.requests == []
