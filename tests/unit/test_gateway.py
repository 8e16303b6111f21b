"""The gateway: real HTTP against the fake model, its faults, its retries and its window."""

import asyncio
import base64
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import quote

import pytest
import uvloop
from aiohttp import web
from pydantic import BaseModel

from domain.confidences import LabelPrior, decide
from domain.errors import ModelUnavailable, Place, PromptTooLong, RequestFailed, RequestRefused, RequestTimedOut
from domain.ledgers import OutcomeClass, reconcile
from domain.prompts import baseline
from domain.requests import Request, Usage, row_request
from domain.schemas import OutputSchema
from domain.workloads import Prices, Tier
from infra.llm.fleet import Fleet
from infra.llm.gateway import LONGEST_ANSWER, MOST, Gateway, sleep_out
from infra.llm.metering import read_meter, read_meters
from infra.llm.replies import Reply
from infra.llm.scripted import Fault, Rule, Script, ScriptedServer
from infra.llm.scripted_answers import label_odds
from infra.llm.scripted_faults import BODIES, WIRES, gzip_bomb

LABELS = ("card_in", "card_out", "cash", "loan")


class Answer(BaseModel):
    topic: Literal["card_in", "card_out", "cash", "loan"]


SCHEMA = OutputSchema.of(Answer, decisive="topic", place=Place("w"))
PROMPT = baseline("Sort the message.", input_fields=("text",), schema=SCHEMA)
TIER = Tier(model="scripted", usd_per_million=Prices(input=1, output=1))
SCRIPT = Script(rules=(Rule(pattern="loan", label="loan"),))
ANSWERED, GARBLED, UNAVAILABLE = OutcomeClass.ANSWERED, OutcomeClass.GARBLED, OutcomeClass.UNAVAILABLE
FAILED, LOST, STALLED, THROTTLED = OutcomeClass.FAILED, OutcomeClass.LOST, OutcomeClass.STALLED, OutcomeClass.THROTTLED
PATIENCE_S = 60.0


def ask(text: str = "a loan", tier: Tier = TIER) -> Request:
    return row_request(PROMPT.render({"text": text}), tier=tier, schema=SCHEMA)


def send(
    urls: Sequence[str],
    *requests: Request,
    in_flight: int = 4,
    deadline_s: float = 20,
    patience_s: float = PATIENCE_S,
    key: str | None = None,
    pauses: list[float] | None = None,
) -> list[Reply]:
    async def no_pause(seconds: float) -> None:
        if pauses is not None:
            pauses.append(seconds)

    async def run() -> list[Reply]:
        opened = Gateway(
            urls, api_key=key, in_flight=in_flight, deadline_s=deadline_s, patience_s=patience_s, sleep=no_pause
        )
        async with opened as gateway:
            return list(await asyncio.gather(*(gateway.send(request) for request in requests)))

    return asyncio.run(run())


def outcomes(reply: Reply) -> list[OutcomeClass]:
    return [once.outcome for once in reply.tries]


def script(*faults: Fault, **more: object) -> Script:
    return SCRIPT.model_copy(update={"faults": faults, **more})


def test_a_good_answer_comes_back_with_text_usage_and_one_try() -> None:
    with ScriptedServer(SCRIPT) as server:
        (reply,) = send([server.base_url + "/"], ask())
        assert reply.completion is not None
        assert (json.loads(reply.completion.text), reply.completion.finish_reason) == ({"topic": "loan"}, "stop")
        assert reply.completion.request_hash == ask().hash
        assert reply.completion.fingerprint == SCRIPT.fingerprint
        (once,) = reply.tries
        assert (once.worker, once.outcome, once.usage) == (server.base_url, ANSWERED, reply.completion.usage)
        assert (once.usage.prompt, once.usage.completion) == (
            server.calls.prompt_tokens,
            server.calls.completion_tokens,
        )


@pytest.mark.parametrize("token_chars", [None, 1, 2, 3, 5])
def test_however_labels_are_cut_into_tokens_the_gateway_reads_the_models_own_odds(token_chars: int | None) -> None:
    texts = [f"message number {number}" for number in range(12)]
    asked = [ask(text) for text in texts]
    known = script(token_chars=token_chars)
    with ScriptedServer(known) as server:
        for request, reply in zip(asked, send([server.base_url], *asked), strict=True):
            assert reply.completion is not None
            answer = json.loads(reply.completion.text)["topic"]
            logprobs = reply.completion.label_logprobs["topic"]
            decision = decide(logprobs, LabelPrior.of([], LABELS))
            assert decision.label == answer
            row = request.body["messages"][-1]["content"]  # pyright: ignore
            odds = label_odds(known, row=row, labels=LABELS)
            assert LabelPrior.of([], LABELS).apply(logprobs)[answer] == pytest.approx(odds[answer], rel=1e-6)


def test_tokens_of_the_tries_are_those_that_the_server_counted() -> None:
    requests = [ask(f"message {number}") for number in range(20)]
    with ScriptedServer(script(Fault(kind="status", first=1, match="[37]"))) as server:
        before = read_meter(server.base_url)
        replies = send([server.base_url], *requests)
        after = read_meter(server.base_url)
    usages = [once.usage for reply in replies for once in reply.tries]
    spent = Usage(sum(u.prompt for u in usages), sum(u.completion for u in usages))
    assert spent.prompt > 0
    assert reconcile("s", spent, before, after).holds is True
    assert reconcile("s", Usage(spent.prompt - 1, spent.completion), before, after).holds is False


def test_a_server_without_counters_cannot_be_metered_and_the_others_can() -> None:
    with ScriptedServer(SCRIPT) as gone:
        pass
    with ScriptedServer(SCRIPT) as server:
        assert read_meter(gone.base_url) is None
        assert set(read_meters([gone.base_url, server.base_url, server.base_url])) == {server.base_url}


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again_after_a_growing_pause(status: int) -> None:
    pauses: list[float] = []
    with ScriptedServer(script(Fault(kind="status", status=status, first=2))) as server:
        (reply,) = send([server.base_url], ask(), pauses=pauses)
        assert server.calls.requests == 3
    passing = THROTTLED if status in (429, 503) else FAILED
    assert outcomes(reply) == [passing, passing, ANSWERED]
    assert 0.25 <= pauses[0] <= 0.5 <= pauses[1] <= 1.0
    assert (reply.tries[0].usage, reply.tries[2].usage.prompt > 0) == (Usage(), True)
    assert f"HTTP {status}: " in (reply.tries[0].detail or "")


@pytest.mark.parametrize(
    ("header", "pause"),
    [("7", 7.0), ("0", 0.0), ("3600", PATIENCE_S), ("9" * 400, PATIENCE_S)]
    + [(header, None) for header in ("soon", "-5", "\u00b2", "1e9", "Wed, 21 Oct 2099 07:28:00 GMT")],
)
def test_the_pause_is_the_one_the_server_asked_for_within_reason(header: str, pause: float | None) -> None:
    pauses: list[float] = []
    fault = Fault(kind="status", status=429, first=1, retry_after=header)
    with ScriptedServer(script(fault)) as server:
        (reply,) = send([server.base_url], ask(), pauses=pauses)
    assert reply.completion is not None
    assert pauses == [pause] if pause is not None else 0.25 <= pauses[0] <= 0.5


def test_after_the_last_try_the_error_is_in_the_reply_and_can_be_retried_later() -> None:
    pauses: list[float] = []
    with ScriptedServer(script(Fault(kind="status", status=500))) as server:
        (reply,) = send([server.base_url], ask(), pauses=pauses)
        assert server.calls.requests == MOST[FAILED]
    assert (reply.completion, len(pauses)) == (None, MOST[FAILED] - 1)
    assert isinstance(reply.error, RequestFailed)


def test_a_server_that_fails_on_everything_is_to_blame_and_no_row_is() -> None:
    with ScriptedServer(script(Fault(kind="status", status=500))) as server:
        replies = send([server.base_url], *(ask(f"message {n}") for n in range(8)), in_flight=8, patience_s=1.5)
    assert all(reply.completion is None for reply in replies)
    assert any(isinstance(reply.error, ModelUnavailable) for reply in replies)


def test_not_now_is_waited_out_while_others_are_answered_and_not_for_ever() -> None:
    with ScriptedServer(script(Fault(kind="status", status=503, match="3"))) as server:
        replies = send([server.base_url], *(ask(f"message {n}") for n in range(5)), patience_s=0.2)
    assert [reply.completion is None for reply in replies] == [False, False, False, True, False]
    assert isinstance(replies[3].error, ModelUnavailable)
    assert set(outcomes(replies[3])) == {THROTTLED}


def test_no_pause_is_cut_short_by_a_clock_that_counts_whole_milliseconds() -> None:
    async def slept(number: int) -> float:
        await asyncio.sleep(number * 0.0007)
        start = time.monotonic()
        await sleep_out(0.05)
        return time.monotonic() - start

    async def all_of_them() -> list[float]:
        return await asyncio.gather(*map(slept, range(200)))

    assert min(uvloop.run(all_of_them())) >= 0.05


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
def test_a_refusal_is_final_and_says_what_the_server_said(status: int) -> None:
    with ScriptedServer(script(Fault(kind="status", status=status))) as server:
        (reply,) = send([server.base_url], ask())
        assert server.calls.requests == 1
    assert outcomes(reply) == [OutcomeClass.REFUSED]
    assert isinstance(reply.error, RequestRefused)
    assert f"HTTP {status}" in reply.error.message
    assert f"scripted {status}" in reply.error.message


def test_the_key_is_sent_and_appears_in_no_error() -> None:
    with ScriptedServer(script(api_key="open-sesame")) as server:
        (good,) = send([server.base_url], ask(), key="open-sesame")
        (bad,) = send([server.base_url], ask(), key="wrong-word")
        (none,) = send([server.base_url], ask())
    assert good.completion is not None
    for reply in (bad, none):
        assert outcomes(reply) == [OutcomeClass.REFUSED]
        assert "wrong-word" not in str(reply.error)


@pytest.mark.parametrize("name", sorted({*BODIES, *WIRES, "not_gzip"}))
def test_garbage_is_never_believed_and_the_next_try_is(name: str) -> None:
    with ScriptedServer(script(Fault(kind="garbage", garbage=name, first=1))) as server:
        (reply,) = send([server.base_url], ask())
    first, last = outcomes(reply)
    assert first is (LOST if name in WIRES else GARBLED)
    assert last is ANSWERED
    assert reply.tries[0].usage == Usage()


def test_a_body_that_would_unpack_without_end_is_not_unpacked() -> None:
    gzip_bomb(600)  # made before anything is measured
    with ScriptedServer(script(Fault(kind="garbage", garbage="gzip_bomb", megabytes=600, first=1))) as server:
        tracemalloc.start()
        (reply,) = send([server.base_url], ask())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert outcomes(reply) == [GARBLED, ANSWERED]
    assert peak < 16 * 2**20


@pytest.mark.parametrize("kind", ["hang", "drip"])
def test_a_server_that_does_not_finish_in_time_is_given_up_and_asked_again(kind: str) -> None:
    fault = Fault.model_validate({"kind": kind, "first": 1, "seconds": 0.2})
    with ScriptedServer(script(fault)) as server:
        (reply,) = send([server.base_url], ask(), deadline_s=0.5)
    assert outcomes(reply) == [STALLED, ANSWERED]
    assert "answered nothing for 0.25 s" in (reply.tries[0].detail or "")


def test_a_row_that_is_not_answered_while_others_are_runs_out_of_its_own_time() -> None:
    fault = Fault.model_validate({"kind": "hang", "match": "number 0", "seconds": 30})
    with ScriptedServer(script(fault, latency_s=0.05)) as server:
        texts = [ask(f"message number {n}") for n in range(100)]
        first, *others = send([server.base_url], *texts, in_flight=2, deadline_s=1.0)
    assert outcomes(first) == [OutcomeClass.TIMEOUT]
    assert isinstance(first.error, RequestTimedOut)
    assert all(reply.completion for reply in others)


def test_a_row_that_nobody_answers_ends_after_its_deadline_even_when_it_is_alone() -> None:
    with ScriptedServer(script(Fault(kind="hang", seconds=30))) as server:
        (reply,) = send([server.base_url], ask(), deadline_s=0.6)
    assert outcomes(reply) == [STALLED, STALLED]
    assert isinstance(reply.error, RequestTimedOut)


def test_a_row_that_stalled_is_no_probe_for_the_worker_that_stalled_it() -> None:
    with ScriptedServer(script(Fault(kind="hang", seconds=30))) as hung, ScriptedServer(SCRIPT) as server:
        texts = (ask(f"message {n}") for n in range(40))
        replies = send([hung.base_url, server.base_url], *texts, in_flight=2, deadline_s=0.8)
    assert all(reply.completion for reply in replies)
    assert max(outcomes(reply).count(STALLED) for reply in replies) == 1


def test_a_connection_that_is_cut_is_opened_again() -> None:
    with ScriptedServer(script(Fault(kind="reset", first=2))) as server:
        (reply,) = send([server.base_url], ask())
    assert outcomes(reply) == [LOST, LOST, ANSWERED]


def test_a_server_that_is_gone_is_named_in_the_error() -> None:
    with ScriptedServer(SCRIPT) as gone:
        pass
    (reply,) = send([gone.base_url], ask(), patience_s=1.0)
    assert set(outcomes(reply)) == {UNAVAILABLE}
    assert isinstance(reply.error, ModelUnavailable)
    assert gone.base_url in reply.error.message


def test_a_dead_server_takes_no_row_away_from_the_living_one() -> None:
    with ScriptedServer(SCRIPT) as gone:
        pass
    with ScriptedServer(SCRIPT) as server:
        for urls in ([gone.base_url, server.base_url], [server.base_url, gone.base_url]):
            replies = send(urls, *(ask(f"message {number}") for number in range(30)), in_flight=2)
            assert all(reply.completion for reply in replies)


def test_the_load_is_shared_and_no_server_gets_more_than_its_window() -> None:
    slow = script(latency_s=0.03)
    with ScriptedServer(slow) as one, ScriptedServer(slow) as other:
        replies = send([one.base_url, other.base_url], *(ask(f"message {n}") for n in range(60)), in_flight=3)
        calls = [one.calls, other.calls]
    assert all(reply.completion for reply in replies)
    assert [call.max_in_flight for call in calls] == [3, 3]
    assert min(call.requests for call in calls) >= 20


def test_an_answer_cut_at_the_token_limit_is_a_completion_and_called_truncated() -> None:
    with ScriptedServer(SCRIPT) as server:
        (reply,) = send([server.base_url], ask(tier=TIER.model_copy(update={"max_tokens": 2})))
    assert outcomes(reply) == [OutcomeClass.TRUNCATED]
    assert reply.completion is not None
    assert (reply.completion.finish_reason, reply.completion.usage.completion) == ("length", 2)


def test_a_gateway_that_is_not_open_says_so() -> None:
    gateway = Gateway(["http://127.0.0.1:9/v1"], api_key=None, in_flight=1, deadline_s=1)
    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(gateway.send(ask()))


@asynccontextmanager
async def served(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_refused_and_the_row_goes_nowhere_else(status: int) -> None:
    async with ScriptedServer(SCRIPT) as elsewhere:

        async def redirect(request: web.Request) -> web.Response:
            return web.Response(status=status, headers={"Location": f"{elsewhere.base_url}/chat/completions"})

        async with served(redirect) as url, Gateway([url], api_key="k", in_flight=1, deadline_s=5) as gateway:
            reply = await gateway.send(ask())
        assert isinstance(reply.error, RequestRefused)
        assert elsewhere.calls.requests == 0


async def test_a_server_that_repeats_our_key_is_quoted_without_it() -> None:
    key = "a1" + "kq" * 16 + "+/="

    async def repeat(request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "")
        encoded = base64.b64encode(given.encode()).decode()
        return web.Response(
            status=401, text=f"wrong key: {given} {quote(given, safe='')} {encoded} {given.encode().hex()}"
        )

    async with served(repeat) as url, Gateway([url], api_key=key, in_flight=1, deadline_s=5) as gateway:
        reply = await gateway.send(ask())
    for said in (str(reply.error), *(once.detail for once in reply.tries)):
        assert said.count("wrong key") == 1
        assert "kqkq" not in said
        assert base64.b64encode(b"kqkqkq").decode() not in said
        assert said.count("***") == 4


async def test_a_body_without_end_is_cut_off() -> None:
    sent: list[int] = []

    async def pour(request: web.Request) -> web.StreamResponse:
        if sent or request.method == "GET":
            return web.Response(status=422)
        response = web.StreamResponse()
        await response.prepare(request)
        while sum(sent) < 8 * LONGEST_ANSWER:
            await response.write(b" " * 2**20)
            sent.append(2**20)
        return response

    async with served(pour) as url, Gateway([url], api_key=None, in_flight=1, deadline_s=20) as gateway:
        reply = await gateway.send(ask())
    assert reply.tries[0].outcome is GARBLED
    assert LONGEST_ANSWER <= sum(sent) < 2 * LONGEST_ANSWER


async def test_a_prompt_that_the_model_has_no_room_for_is_not_sent_and_its_length_is_said() -> None:
    sent: list[str] = []

    async def vllm(request: web.Request) -> web.Response:
        sent.append(request.path)
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": TIER.model, "max_model_len": 100}]})
        return web.json_response({"count": 95 if request.path == "/tokenize" else None})

    async with served(vllm) as url, Gateway([url], api_key=None, in_flight=1, deadline_s=5) as gateway:
        reply = await gateway.send(ask("word " * 20))
    assert isinstance(reply.error, PromptTooLong)
    assert "95 tokens" in reply.error.message
    assert (reply.tries, sent) == ((), ["/v1/models", "/tokenize"])


async def test_a_window_narrows_when_the_server_says_not_now_and_widens_again() -> None:
    crowded = script(Fault(kind="status", status=429, first=1), latency_s=0.01)
    async with (
        ScriptedServer(crowded) as server,
        Gateway([server.base_url], api_key=None, in_flight=32, deadline_s=5) as gateway,
    ):
        (worker,) = gateway.fleet.workers
        before = worker.window
        await gateway.send(ask("one"))
        narrow = worker.window
        await asyncio.gather(*(gateway.send(ask(f"message {n}")) for n in range(60)))
        assert (before, narrow < before, worker.window > narrow) == (8, True, True)
        assert server.calls.max_in_flight <= 32


async def test_what_a_failing_server_says_can_be_stored_whatever_bytes_it_holds() -> None:
    async def spoil(request: web.Request) -> web.Response:
        return web.Response(status=422, body=b"bad \0 row \xff\xfe" + b"x" * 10_000)

    async with served(spoil) as url, Gateway([url], api_key=None, in_flight=1, deadline_s=5) as gateway:
        (once,) = (await gateway.send(ask())).tries
    assert once.detail is not None
    assert "\0" not in once.detail
    assert len(once.detail.encode()) < 1200


@pytest.mark.parametrize("ends", [True, False])
async def test_a_worker_is_dead_when_it_takes_no_connections_and_not_when_it_breaks_the_last_one(ends: bool) -> None:
    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if ends:  # an ending process may close its connections before its door
            server.close()
        else:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    fleet = Fleet([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"], widest=1, stall_s=9, patience_s=9)
    assert await fleet.died(fleet.workers[0]) is ends
    server.close()
    await server.wait_closed()
