"""The Ray engine against a cluster that is scripted: real shards and the real Jobs API's words, but no Ray behind."""

import asyncio
import json
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import polars
import pytest
from aiohttp import web

from domain.errors import AnswerGarbled, ModelUnavailable, RequestRefused
from domain.ledgers import OutcomeClass
from domain.requests import Request
from infra.llm import ray_job
from infra.llm.ray_engine import RayEngine, RayModel
from infra.llm.ray_shards import Shard, Shards
from infra.llm.replies import Reply
from infra.llm.together import Together

TOKEN = "t0ken"
Outcome = Callable[[str, int], "str | None"]


def request(number: int) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": f"row {number}"}], "temperature": 0.0}
    return Request.of(body, "r1")  # pyright: ignore[reportArgumentType]


def requests(count: int) -> list[Request]:
    return [request(number) for number in range(count)]


def good(_text: str, _job: int) -> str | None:
    """Every row is answered."""
    return ""


@dataclass
class Cluster:
    """The Jobs API; a job does at once what `outcome` says of each row: "" answered, an error, None for nothing."""

    outcome: Outcome = good
    endless: bool = False
    jobs: list[list[int]] = field(default_factory=list[list[int]])
    """Rows of every shard, job by job."""
    stopped: list[str] = field(default_factory=list[str])
    environments: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    packages: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    address: str = ""
    lost: int = 0

    @web.middleware
    async def guard(self, asked: web.Request, handler: Any) -> web.StreamResponse:
        if asked.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401)
        return await handler(asked)

    async def put(self, asked: web.Request) -> web.Response:
        archive = zipfile.ZipFile(BytesIO(await asked.read()))
        self.packages[f"gcs://{asked.match_info['name']}"] = archive.namelist()
        return web.Response()

    async def submit(self, asked: web.Request) -> web.Response:
        body = await asked.json()
        assert self.packages[body["runtime_env"]["working_dir"]] == ["ray_job.py"]
        assert body["entrypoint"].startswith("python ray_job.py file:///")
        self.environments.append(body["runtime_env"]["env_vars"])
        self.lost = 0
        spec = json.loads(local(body["entrypoint"].split()[-1]).read_text())
        self.jobs.append([shard["rows"] for shard in spec["shards"]])
        for shard in spec["shards"]:
            self.write(shard, len(self.jobs))
        return web.json_response({"submission_id": body["submission_id"]})

    def write(self, shard: dict[str, Any], job: int) -> None:
        rows: list[dict[str, Any]] = []
        for asked in polars.read_parquet(local(shard["requests"])).iter_rows(named=True):
            text = json.loads(asked["body"])["messages"][0]["content"]
            said = self.outcome(text, job)
            if said is None:
                self.lost += 1
                return  # the engine died over this shard
            body = "{}" if said == "garbled" else json.dumps(answer(text))
            error = "" if said == "garbled" else said
            kept = {"request_hash": asked["request_hash"], "body": "" if error else body, "seconds": 0.5}
            rows.append({**kept, "error": error, "refused": error.startswith("ValueError")})
        ray_job.write_table(shard["replies"], rows)

    async def state(self, asked: web.Request) -> web.Response:
        ended = "FAILED" if self.lost else "SUCCEEDED"
        running = self.endless and asked.match_info["job"] not in self.stopped
        return web.json_response({"status": "RUNNING" if running else ended, "message": "…"})

    async def stop(self, asked: web.Request) -> web.Response:
        self.stopped.append(asked.match_info["job"])
        return web.json_response({"stopped": True})

    async def log(self, _asked: web.Request) -> web.Response:
        return web.json_response({"logs": "hello\n(pid=1) RuntimeError: the engine is gone\nbye\n"})

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Cluster"]:
        app = web.Application(middlewares=[self.guard])
        app.router.add_put("/api/packages/gcs/{name}", self.put)
        app.router.add_post("/api/jobs/", self.submit)
        app.router.add_get("/api/jobs/{job}", self.state)
        app.router.add_post("/api/jobs/{job}/stop", self.stop)
        app.router.add_get("/api/jobs/{job}/logs", self.log)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()


def local(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def answer(text: str) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": text.upper()}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


def engine(cluster: Cluster, folder: Path, **changes: Any) -> RayEngine:
    options: dict[str, Any] = {"token": TOKEN, "shard_rows": 4, "poll_s": 0.01, **changes}
    return RayEngine(RayModel("m", "weights"), storage=folder.as_uri(), ray=cluster.address, **options)


async def stream(rows: Sequence[Request]) -> AsyncGenerator[Request]:
    for row in rows:
        yield row


async def replies(cluster: Cluster, folder: Path, rows: Sequence[Request], **changes: Any) -> dict[str, Reply]:
    async with engine(cluster, folder, **changes) as answering:
        given = [reply async for reply in answering.answer(stream(rows))]
    assert len({reply.request.hash for reply in given}) == len(given) == len(rows)
    return {str(reply.request.last["content"]): reply for reply in given}


def outcomes(reply: Reply) -> list[OutcomeClass]:
    return [once.outcome for once in reply.tries]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_every_row_gets_its_own_answer_and_nothing_is_left_in_the_storage(tmp_path: Path) -> None:
    async with Cluster().serving() as cluster:
        given = await replies(cluster, tmp_path, requests(30))
    assert all(reply.completion and reply.completion.text == text.upper() for text, reply in given.items())
    once = given["row 3"].tries[0]
    assert (once.worker, once.seconds, once.outcome) == ("ray:m", 0.5, OutcomeClass.ANSWERED)
    assert (once.usage.prompt, once.usage.completion) == (5, 2)
    assert len(cluster.jobs) == 1
    assert len(cluster.jobs[0]) > 1
    assert sum(cluster.jobs[0]) == 30
    assert cluster.environments == [{"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}]
    assert files(tmp_path) == []


async def test_a_refused_row_and_a_garbled_one_are_final_and_take_no_other_with_them(tmp_path: Path) -> None:
    def outcome(text: str, _job: int) -> str | None:
        return {"row 7": "ValueError: too long", "row 8": "garbled"}.get(text, "")

    async with Cluster(outcome).serving() as cluster:
        given = await replies(cluster, tmp_path, requests(12))
    assert isinstance(given["row 7"].error, RequestRefused)
    assert outcomes(given["row 7"]) == [OutcomeClass.REFUSED]
    assert isinstance(given["row 8"].error, AnswerGarbled)
    assert outcomes(given["row 8"]) == [OutcomeClass.GARBLED]
    assert sum(reply.completion is not None for reply in given.values()) == 10
    assert len(cluster.jobs) == 1


async def test_rows_that_fail_or_are_missing_are_asked_once_more_and_they_alone(tmp_path: Path) -> None:
    def outcome(text: str, job: int) -> str | None:
        if job == 1 and text == "row 0":
            return None
        return "RuntimeError: x" if job == 1 and text == "row 11" else ""

    async with Cluster(outcome).serving() as cluster:
        given = await replies(cluster, tmp_path, requests(24))
    assert all(reply.completion for reply in given.values())
    twice = [text for text, reply in given.items() if len(reply.tries) == 2]
    assert {"row 0", "row 11"} <= set(twice)
    assert all(outcomes(given[text]) == [OutcomeClass.UNAVAILABLE, OutcomeClass.ANSWERED] for text in twice)
    assert len(cluster.jobs) == 2
    assert sum(cluster.jobs[1]) == len(twice) < 24
    detail = given["row 0"].tries[0].detail or ""
    assert detail.endswith("ended as FAILED: RuntimeError: the engine is gone")
    (log,) = [path for path in files(tmp_path) if path.suffix == ".log"]
    assert "hello" in log.read_text()


async def test_an_error_that_a_shard_holds_is_not_taken_for_its_answer(tmp_path: Path) -> None:
    async with Cluster(lambda _text, job: "RuntimeError: x" if job == 1 else "").serving() as cluster:
        given = await replies(cluster, tmp_path, requests(12))
    assert all(reply.completion for reply in given.values())
    assert cluster.jobs[0] == cluster.jobs[1]


async def test_after_the_second_job_what_is_open_is_unavailable(tmp_path: Path) -> None:
    def outcome(text: str, _job: int) -> str | None:
        return {"row 0": None, "row 11": "RuntimeError: x"}.get(text, "")

    async with Cluster(outcome).serving() as cluster:
        given = await replies(cluster, tmp_path, requests(24))
    for text in ("row 0", "row 11"):
        assert isinstance(given[text].error, ModelUnavailable)
        assert outcomes(given[text]) == [OutcomeClass.UNAVAILABLE] * 2
    assert len(cluster.jobs) == 2
    assert "Read its log: file://" in str(given["row 0"].error)


@pytest.mark.parametrize("token", ["wrong", None])
async def test_a_cluster_that_refuses_is_said_so_in_every_reply_and_nothing_is_raised(
    tmp_path: Path, token: str | None
) -> None:
    async with Cluster().serving() as cluster:
        given = await replies(cluster, tmp_path, requests(6), token=token)
    assert {type(reply.error) for reply in given.values()} == {ModelUnavailable}
    assert "HTTP 401" in str(given["row 0"].error)
    assert cluster.jobs == []


async def test_closing_the_stream_stops_the_job(tmp_path: Path) -> None:
    async with Cluster(endless=True).serving() as cluster:
        async with engine(cluster, tmp_path) as answering, aclosing(answering.answer(stream(requests(20)))) as answers:
            await anext(answers)
        assert len(cluster.stopped) == 1


async def test_shards_that_were_answered_before_a_kill_are_not_generated_again(tmp_path: Path) -> None:
    rows = requests(40)
    async with Cluster(endless=True).serving() as cluster:
        with pytest.raises(KeyError):
            await _killed(cluster, tmp_path, rows)
        cluster.endless = False
        # The ledger has the first reply: the second run does not ask for it.
        given = await replies(cluster, tmp_path, rows[1:])
    assert all(reply.completion for reply in given.values())
    assert len(cluster.jobs) <= 2
    assert all(sum(job) < 20 for job in cluster.jobs[1:]), "at most the shard that has lost a row is new"


async def _killed(cluster: Cluster, folder: Path, rows: Sequence[Request]) -> None:
    async with engine(cluster, folder) as answering, aclosing(answering.answer(stream(rows))) as answers:
        raise KeyError((await anext(answers)).request.hash)


async def test_who_waits_for_replies_before_sending_more_is_answered(tmp_path: Path) -> None:
    more = asyncio.Event()

    async def halting() -> AsyncGenerator[Request]:
        yield request(1)
        yield request(2)
        await more.wait()
        yield request(3)

    given: list[str] = []
    async with Cluster().serving() as cluster, engine(cluster, tmp_path, linger_s=0.05) as answering:
        async for reply in answering.answer(halting()):
            given.append(str(reply.request.last["content"]))
            more.set()
    assert sorted(given) == ["row 1", "row 2", "row 3"]
    assert len(cluster.jobs) == 2


async def test_conversations_that_wait_for_each_other_travel_in_one_job(tmp_path: Path) -> None:
    async with Cluster().serving() as cluster, engine(cluster, tmp_path, linger_s=0.1) as answering:
        together = Together(answering)

        async def talk(number: int) -> list[Reply]:
            with together.conversation():
                await asyncio.sleep(0)  # the others begin, too
                first = await together.send(request(number))
                return [first, await together.send(request(100 + number))] if number % 2 else [first]

        given = await asyncio.gather(*(talk(number) for number in range(10)))
        await together.close()
    assert [talked[0].completion and talked[0].completion.text for talked in given[:2]] == ["ROW 0", "ROW 1"]
    assert [sum(job) for job in cluster.jobs] == [10, 5]


async def test_a_batch_that_nobody_waits_for_any_more_is_stopped(tmp_path: Path) -> None:
    async with Cluster(endless=True, outcome=lambda _text, _job: None).serving() as cluster:
        async with engine(cluster, tmp_path, linger_s=0.01) as answering:
            together = Together(answering)
            call = asyncio.create_task(together.send(request(1)))
            await asyncio.sleep(0.3)
            call.cancel()
            await together.close()
        assert len(cluster.stopped) == 1


def shards(folder: Path, **asked: str) -> Shards:
    return Shards(folder.as_uri(), dict(asked), rows=8)


def cut(folder: Path, rows: Sequence[Request]) -> list[Shard]:
    writer = shards(folder).writer()
    for row in rows:
        writer.add(row)
    return writer.close()


def test_a_shard_gives_back_the_very_requests_that_it_took(tmp_path: Path) -> None:
    rows = requests(50)
    found = [back for shard in cut(tmp_path, rows) for back in shards(tmp_path).requests(shard)]
    assert [back.hash for back in found] == [row.hash for row in rows]
    assert found[0].body == rows[0].body
    assert list(found[0].body) == list(rows[0].body)
    assert found[0].revision == "r1"


def test_rows_missing_at_the_front_leave_the_shards_behind_them_as_they_were(tmp_path: Path) -> None:
    rows = requests(300)
    whole, rest = cut(tmp_path, rows), cut(tmp_path, rows[100:])
    assert len(set(rest) - set(whole)) <= 1
    assert len(set(rest) & set(whole)) > 10


def test_other_engine_arguments_are_another_folder(tmp_path: Path) -> None:
    assert shards(tmp_path, seed="1").folder != shards(tmp_path, seed="2").folder
    assert shards(tmp_path, seed="1").folder == shards(tmp_path, seed="1").folder


def test_rows_on_this_machine_are_closed_to_others(tmp_path: Path) -> None:
    assert Path(shards(tmp_path).folder).stat().st_mode & 0o077 == 0
