"""The gateway's process: what is asked through it, what closing does, and what either side's death does."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Literal

import psutil
import pytest
from pydantic import BaseModel

from domain import errors
from domain.errors import ModelError, ModelUnavailable, Place, RequestRefused, RequestTimedOut
from domain.ledgers import OutcomeClass
from domain.prompts import baseline
from domain.requests import Reading, Request, row_request
from domain.schemas import OutputSchema
from domain.workloads import Prices, Tier
from infra.llm import gateway_client
from infra.llm.gateway_client import GatewayClient
from infra.llm.gateway_link import ERRORS, Opening
from infra.llm.replies import Reply
from infra.llm.scripted import Fault, Script, ScriptedServer

ROOT = Path(__file__).parents[2]
KEPT_QUIET = "the-key-of-the-servers"


class Answer(BaseModel):
    topic: Literal["card", "cash", "loan"]


SCHEMA = OutputSchema.of(Answer, decisive="topic", place=Place("w"))
PROMPT = baseline("Sort the message.", input_fields=("text",), schema=SCHEMA)
TIER = Tier(model="scripted", usd_per_million=Prices(input=1, output=1))


def ask(text: str, tier: Tier = TIER) -> Request:
    return row_request(PROMPT.render({"text": text}), tier=tier, schema=SCHEMA)


def opening(*urls: str, in_flight: int = 4, deadline_s: float = 20, key: str | None = None) -> Opening:
    return Opening(urls, key, in_flight, deadline_s, 20.0)


async def stream(requests: Iterable[Request]) -> AsyncGenerator[Request]:
    for request in requests:
        yield request


def answer(how: Opening, *requests: Request) -> list[Reply]:
    async def run() -> list[Reply]:
        async with GatewayClient(how) as client, aclosing(client.answer(stream(requests))) as replies:
            return [reply async for reply in replies]

    return asyncio.run(run())


def until(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.02)
    return holds()


@pytest.fixture(autouse=True)
def _nothing_left() -> Generator[None]:
    yield
    gateway_client.stop()


def test_every_request_gets_the_reply_that_is_its_own() -> None:
    requests = [ask(f"message number {n}") for n in range(300)]
    with ScriptedServer(Script()) as server:
        replies = answer(opening(server.base_url, in_flight=8), *requests)
        assert server.calls.requests == 300
        assert server.calls.max_in_flight <= 8
    assert sorted(reply.request.hash for reply in replies) == sorted(request.hash for request in requests)
    for reply in replies:
        assert reply.completion is not None
        assert reply.completion.request_hash == reply.request.hash
        assert [once.outcome for once in reply.tries] == [OutcomeClass.ANSWERED]
        assert reply.tries[0].usage == reply.completion.usage
        chances = reply.completion.label_logprobs["topic"]
        assert set(chances) == {"card", "cash", "loan"}
        assert reply.completion.readings is not None
        topic = reply.completion.readings["topic"]
        assert topic == Reading(pytest.approx(max(chances.values())), topic.logprob, 1, pytest.approx(1.0))


def test_errors_come_back_as_what_they_are() -> None:
    faults = (Fault(kind="status", status=400, match="refused"), Fault(kind="hang", match="slow", seconds=30))
    with ScriptedServer(Script(faults=faults, latency_s=0.02)) as server:
        texts = ["refused", "slow", *(f"message {n}" for n in range(200))]
        how = opening(server.base_url, in_flight=2, deadline_s=1.0)
        by_text = {r.request.last["content"]: r for r in answer(how, *map(ask, texts))}
    kinds = [type(reply.error) for reply in by_text.values() if reply.error is not None]
    assert sorted(kinds, key=str) == [RequestRefused, RequestTimedOut]


def test_every_error_of_a_model_can_travel() -> None:
    known = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ModelError)}
    assert set(ERRORS.values()) == known - {ModelError}
    assert all(kind("words").message == "words" for kind in ERRORS.values())


def test_single_requests_share_the_window_with_a_stream() -> None:
    async def run(how: Opening) -> tuple[list[Reply], list[Reply]]:
        async with GatewayClient(how) as client, aclosing(client.answer(stream(many))) as replies:
            alone = asyncio.gather(*(client.send(ask(f"alone {n}")) for n in range(10)))
            return [reply async for reply in replies], await alone

    many = [ask(f"message {n}") for n in range(40)]
    with ScriptedServer(Script(latency_s=0.02)) as server:
        streamed, alone = asyncio.run(run(opening(server.base_url, in_flight=3)))
        assert server.calls.max_in_flight == 3
    assert all(reply.completion for reply in (*streamed, *alone))
    assert (len(streamed), len(alone)) == (40, 10)


def test_a_stream_that_is_closed_gives_up_what_it_asked_for_and_the_window_is_free_again() -> None:
    async def run(how: Opening) -> list[Reply]:
        async with GatewayClient(how) as client:
            async with aclosing(client.answer(stream(ask(f"hung {n}") for n in range(50)))) as replies:
                waiting = asyncio.ensure_future(anext(replies))
                await asyncio.to_thread(until, lambda: server.calls.max_in_flight == 4)
                waiting.cancel()
                await asyncio.wait([waiting])
            sent = server.calls.requests
            found = [reply async for reply in client.answer(stream(ask(f"message {n}") for n in range(8)))]
            assert sent < 50
            return found

    with ScriptedServer(Script(faults=(Fault(kind="hang", match="hung", seconds=60),))) as server:
        replies = asyncio.run(run(opening(server.base_url)))
        assert sum("message" in reply.request.last["content"] for reply in replies) == 8
        assert all(reply.completion for reply in replies)


def test_what_is_known_of_a_worker_outlives_a_stream() -> None:
    with ScriptedServer(Script()) as gone:
        pass
    with ScriptedServer(Script()) as server:
        how = opening(gone.base_url, server.base_url, in_flight=2)
        first = answer(how, *(ask(f"message {n}") for n in range(20)))
        again = answer(how, *(ask(f"other {n}") for n in range(5)))
    missed = [once for reply in first for once in reply.tries if once.worker == gone.base_url]
    known = [once for reply in again for once in reply.tries if once.worker == gone.base_url]
    assert missed
    assert len(known) < len(missed)


def test_a_gateway_that_dies_ends_its_requests_and_the_next_one_is_another() -> None:
    async def run(how: Opening) -> list[Reply]:
        async with GatewayClient(how) as client, aclosing(client.answer(stream(map(ask, texts)))) as replies:
            single = asyncio.ensure_future(client.send(ask("hung alone")))
            await asyncio.to_thread(until, lambda: server.calls.max_in_flight == 4)
            os.kill(before, signal.SIGKILL)
            return [*[reply async for reply in replies], await single, await client.send(ask("late"))]

    texts = [f"hung {n}" for n in range(6)]
    before = gateway_client.start()
    with ScriptedServer(Script(faults=(Fault(kind="hang", match="hung", seconds=60),))) as server:
        replies = asyncio.run(run(opening(server.base_url, deadline_s=120)))
        assert [type(reply.error) for reply in replies] == [ModelUnavailable] * 8
        assert all("gateway's process has ended" in str(reply.error) for reply in replies)
        (reply,) = answer(opening(server.base_url), ask("message"))
    assert reply.completion is not None
    assert gateway_client.start() != before


def test_a_gateway_that_dies_as_a_connection_is_handed_to_it_is_replaced() -> None:
    before = gateway_client.start()
    gateway_client._running[os.getpid()].door.shutdown(socket.SHUT_WR)
    with ScriptedServer(Script()) as server:
        (reply,) = answer(opening(server.base_url), ask("message"))
    assert reply.completion is not None
    assert gateway_client.start() != before


def test_it_is_gone_when_its_starter_is_killed() -> None:
    code = "from infra.llm import gateway_client; print(gateway_client.start(), flush=True); input()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as starter:
        assert starter.stdout is not None
        gateway = int(starter.stdout.readline())
        assert psutil.pid_exists(gateway)
        starter.kill()
    assert until(lambda: not psutil.pid_exists(gateway) or psutil.Process(gateway).status() == psutil.STATUS_ZOMBIE)


def test_it_is_gone_after_stop_and_starts_once() -> None:
    first = gateway_client.start()
    assert gateway_client.start() == first
    gateway_client.stop()
    assert not psutil.pid_exists(first)
    gateway_client.stop()


def test_the_key_is_sent_to_the_server_and_shown_to_nobody() -> None:
    with ScriptedServer(Script(api_key=KEPT_QUIET)) as server:
        (refused,) = answer(opening(server.base_url, key="wrong"), ask("message"))
        (reply,) = answer(opening(server.base_url, key=KEPT_QUIET), ask("message"))
        process = psutil.Process(gateway_client.start())
        assert KEPT_QUIET not in " ".join(process.cmdline())
        assert KEPT_QUIET not in " ".join(process.environ().values())
    assert isinstance(refused.error, RequestRefused)
    assert reply.completion is not None


def test_an_error_in_the_source_of_requests_is_raised_where_the_replies_are_read() -> None:
    async def broken() -> AsyncGenerator[Request]:
        yield ask("message")
        raise ValueError("no more rows")

    async def run(how: Opening) -> list[Reply]:
        async with GatewayClient(how) as client:
            return [reply async for reply in client.answer(broken())]

    with ScriptedServer(Script()) as server, pytest.raises(ValueError, match="no more rows"):
        asyncio.run(run(opening(server.base_url)))
