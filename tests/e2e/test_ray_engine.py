"""The Ray engine with real models beside vLLM's HTTP server: minutes of work, so it runs on demand.

`make envs-ray && HEADRACE_E2E_RAY=1 python -m pytest tests/e2e/test_ray_engine.py -s`
"""

import asyncio
import os
import statistics
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from pydantic import JsonValue

from domain.errors import RequestRefused
from domain.ledgers import OutcomeClass
from domain.prompts import baseline
from domain.requests import Completion, Request, row_request
from infra import credentials, stack
from infra.llm.ray_engine import RayEngine, embedded_model, local_ray
from infra.llm.ray_jobs import Jobs
from infra.llm.ray_local import LocalRay
from infra.llm.replies import Reply
from infra.llm.wire import read_completion
from infra.reading import ReadRow, read_rows
from infra.service import python
from infra.settings import Settings, load_settings
from infra.workloads import load_workload

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "support_triage"
ROWS = 200
ASKED = os.environ.get("HEADRACE_E2E_RAY") == "1" and Path(python(load_settings(), "ray")).exists()
pytestmark = [
    pytest.mark.skipif(not ASKED, reason="takes minutes: make envs-ray, then HEADRACE_E2E_RAY=1"),
    pytest.mark.timeout(2400),
]


@pytest.fixture(scope="module")
def settings(defaults: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings().model_copy(update={"home": tmp_path_factory.mktemp("ray") / "home"})


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """The example's rows as the cheap tier's baseline prompt asks them."""
    loaded = load_workload(EXAMPLE)
    workload = loaded.workload
    prompt = baseline(workload.instructions, input_fields=workload.dataset.inputs, schema=loaded.schema)
    texts = (row.raw["text"] for row in read_rows(workload.dataset.uri, loaded.folder) if isinstance(row, ReadRow))
    asked = {
        request.hash: request
        for text in texts
        for request in [row_request(prompt.render({"text": text}), tier=workload.tiers.cheap, schema=loaded.schema)]
    }
    return list(asked.values())[:ROWS]


@pytest.fixture(scope="module")
def over_http(settings: Settings, requests: Sequence[Request]) -> dict[str, Completion]:
    """What the embedded server answers to the same requests."""
    up = stack.up(settings, only=("engine-cheap",), report=lambda state: None)
    try:
        return asyncio.run(_over_http(up.services[0].url, credentials.model_key(settings), requests))
    finally:
        stack.down(settings)


async def _over_http(url: str, key: str, requests: Sequence[Request]) -> dict[str, Completion]:
    slots, began = asyncio.Semaphore(32), time.monotonic()
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=900, trust_env=False) as http:

        async def ask(request: Request) -> tuple[str, Completion]:
            async with slots:
                answer = await http.post(f"{url}/chat/completions", json=request.body)
            return request.hash, read_completion(request, answer.raise_for_status().content)

        answered = dict(await asyncio.gather(*map(ask, requests)))
    print(f"\nHTTP: {len(answered)} rows in {time.monotonic() - began:.0f} s")
    return answered


@pytest.fixture(scope="module")
def ray(settings: Settings) -> Generator[LocalRay]:
    """A Ray of this machine for all tests; at the end nothing of it may be left."""
    local = local_ray(settings)
    asyncio.run(local.__aenter__())
    try:
        yield local
    finally:
        asyncio.run(local.__aexit__(None, None, None))
    assert local.processes() == []


def engine(settings: Settings, ray: LocalRay, **arguments: JsonValue) -> RayEngine:
    model = embedded_model(settings, "smollm2-135m-instruct")
    assert model is not None
    model = replace(model, bundle={"CPU": 1}, engine_args={**model.engine_args, **arguments})
    storage = (settings.home / "ray").as_uri()
    return RayEngine(model, storage=storage, ray=ray.address, token=ray.token, shard_rows=32)


async def stream(requests: Sequence[Request]) -> AsyncGenerator[Request]:
    for request in requests:
        yield request


def spoiled(request: Request, **changes: object) -> Request:
    return Request.of({**request.body, **changes}, request.revision)  # pyright: ignore[reportArgumentType]


def engines(ray: LocalRay) -> list[psutil.Process]:
    """The vLLM processes of this Ray."""
    found: list[psutil.Process] = []
    for process in ray.processes():
        with suppress(psutil.Error):
            found += [process] if process.name().startswith("VLLM") else []
    return found


async def test_the_same_rows_get_the_same_answers_as_over_http(
    settings: Settings, requests: Sequence[Request], over_http: dict[str, Completion], ray: LocalRay
) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    bad = [
        spoiled(requests[0], messages=[{"role": "user", "content": "word " * 3000}]),
        spoiled(requests[0], response_format=format_),
        spoiled(requests[0], tools=[]),
    ]
    doors: set[str] = set()
    replies: dict[str, Reply] = {}
    began = time.monotonic()
    async with engine(settings, ray) as answering:
        async with aclosing(answering.answer(stream([*bad, *requests]))) as answers:
            async for reply in answers:
                doors = doors or _listening(ray)  # with the first reply, while engines run
                replies[reply.request.hash] = reply
        print(f"\nRay: {len(replies)} rows in {time.monotonic() - began:.0f} s, engine start included")
    assert len(replies) == len(requests) + len(bad)
    assert all(isinstance(replies[request.hash].error, RequestRefused) for request in bad)
    assert [replies[request.hash].tries[0].outcome for request in bad] == [OutcomeClass.REFUSED] * len(bad)
    assert doors == {"127.0.0.1"}
    assert not list((settings.home / "ray").rglob("*.parquet")), "shards are removed once the replies are taken"
    _compare(requests, over_http, {key: reply.completion for key, reply in replies.items() if reply.completion})


def _listening(ray: LocalRay) -> set[str]:
    found: set[str] = set()
    for process in ray.processes():
        with suppress(psutil.Error):
            doors = [door for door in process.net_connections(kind="tcp") if door.status == psutil.CONN_LISTEN]
            found |= {door.laddr.ip.removeprefix("::ffff:") for door in doors}
    return found


def _compare(requests: Sequence[Request], http: dict[str, Completion], ray: dict[str, Completion]) -> None:
    pairs = [(http[request.hash], ray[request.hash]) for request in requests]
    same = sum((a.text, a.finish_reason) == (b.text, b.finish_reason) for a, b in pairs) / len(pairs)
    differences = [
        abs(logprob - b.label_logprobs["topic"][label])
        for a, b in pairs
        for label, logprob in a.label_logprobs["topic"].items()
        if label in b.label_logprobs["topic"] and min(logprob, b.label_logprobs["topic"][label]) > -20
    ]
    print(f"identical outputs: {same:.1%} of {len(pairs)} rows; label log-probabilities differ by", end=" ")
    print(f"{statistics.mean(differences):.4f} on average, {max(differences):.4f} at most, over {len(differences)}")
    assert all(a.usage.prompt == b.usage.prompt for a, b in pairs), "the same tokens were asked"
    assert same >= 0.9
    assert statistics.mean(differences) < 0.1


async def test_an_engine_that_is_killed_costs_no_row(
    settings: Settings, requests: Sequence[Request], ray: LocalRay
) -> None:
    killing = asyncio.create_task(_kill_when_it_generates(ray))
    async with engine(settings, ray) as answering:
        replies = [reply async for reply in answering.answer(stream(requests[:96]))]
    killed = await killing
    print(f"\nkilled {', '.join(killed)}; tries of a row: {sorted({len(reply.tries) for reply in replies})}")
    assert killed
    assert len({reply.request.hash for reply in replies}) == len(replies) == 96
    assert all(reply.completion for reply in replies)


async def _kill_when_it_generates(ray: LocalRay) -> list[str]:
    """Wait for the newest job's engine to be ready, give it three seconds, kill it; what was killed."""
    async with Jobs(ray.address, ray.token) as jobs:
        while True:
            listed = await jobs.running()
            if listed and "Max pending requests" in await jobs.log(listed[0]):
                break
            await asyncio.sleep(0.5)
    await asyncio.sleep(3)
    found = engines(ray)
    names = [process.name() for process in found]
    for process in found:
        process.kill()
    return names


async def _leave_at_the_first_reply(settings: Settings, requests: Sequence[Request], ray: LocalRay) -> None:
    async with (
        engine(settings, ray, max_num_seqs=16) as answering,  # few at once: shards are answered one after the other
        aclosing(answering.answer(stream(requests))) as answers,
    ):
        first = await anext(answers)
        raise KeyError(first.request.hash)


async def test_closing_the_stream_stops_the_job_and_the_next_one_goes_on_at_its_shards(
    settings: Settings, requests: Sequence[Request], ray: LocalRay
) -> None:
    with pytest.raises(KeyError):  # an engine left by an error keeps its shards
        await _leave_at_the_first_reply(settings, requests, ray)
    await asyncio.to_thread(psutil.wait_procs, engines(ray), 60)
    assert engines(ray) == []
    done = list((settings.home / "ray").rglob("replies/*.parquet"))
    assert 0 < len(done) < len(list((settings.home / "ray").rglob("requests/*.parquet")))
    stamps = {path: path.stat().st_mtime_ns for path in done}
    async with engine(settings, ray, max_num_seqs=16) as answering:
        replies = [reply async for reply in answering.answer(stream(requests))]
        assert {path: path.stat().st_mtime_ns for path in done} == stamps
    assert all(reply.completion for reply in replies)
    assert len(replies) == len(requests)
