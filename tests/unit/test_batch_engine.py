"""The batch engine against the fake model server's Files and Batches: every way a batch can end, and being killed."""

import asyncio
import contextlib
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from domain.errors import AnswerGarbled, ModelUnavailable, RequestRefused
from domain.ledgers import OutcomeClass
from domain.requests import Request
from infra.llm.batch_engine import BatchEngine
from infra.llm.batch_files import request_line
from infra.llm.batch_hosted import MAX_SILENT_POLLS, HostedRunner
from infra.llm.gateway import Gateway
from infra.llm.replies import Reply
from infra.llm.scripted import Fault, Rule, Script, ScriptedServer
from infra.llm.scripted_batches import Pace
from tests.integration.batch_asker import ask, each

SCRIPT = Script(rules=(Rule(pattern="loan", label="loan"),))
ROWS = [ask(f"message {number}") for number in range(40)]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(SCRIPT) as running:
        yield running


async def soon(seconds: float) -> None:
    await asyncio.sleep(min(seconds, 0.02))


def engine(server: ScriptedServer, folder: Path, *, rows: int = 50_000, key: str | None = None) -> BatchEngine:
    runner = HostedRunner(server.base_url, api_key=key, max_requests=rows, sleep=soon)
    return BatchEngine(runner, folder=folder)


async def answers(engine: BatchEngine, *requests: Request) -> list[Reply]:
    async with engine:
        return [reply async for reply in engine.answer(each(*requests))]


def run(server: ScriptedServer, folder: Path, *requests: Request, **more: Any) -> list[Reply]:
    return asyncio.run(answers(engine(server, folder, **more), *requests))


async def reached(count: int, server: ScriptedServer) -> None:
    """Wait until the server has answered so many rows of batches."""
    while server.calls.answered < count:  # noqa: ASYNC110 - it counts in a thread of its own
        await asyncio.sleep(0.01)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def outcomes(reply: Reply) -> list[OutcomeClass]:
    return [once.outcome for once in reply.tries]


def with_faults(*faults: Fault) -> Script:
    return SCRIPT.model_copy(update={"faults": faults})


def test_every_row_gets_the_answer_it_would_get_over_http(server: ScriptedServer, tmp_path: Path) -> None:
    replies = run(server, tmp_path, *ROWS)

    async def over_http() -> list[Reply]:
        async with Gateway([server.base_url], api_key=None, in_flight=8, deadline_s=20) as gateway:
            return list(await asyncio.gather(*map(gateway.send, ROWS)))

    same = {reply.request.hash: reply.completion for reply in asyncio.run(over_http())}
    told = {reply.request.hash: reply.completion for reply in replies}
    # The fake server's prefix cache is warm at the second asking.
    texts = {key: (c.text, c.finish_reason, c.label_logprobs, c.fingerprint) for key, c in told.items() if c}
    assert texts == {key: (c.text, c.finish_reason, c.label_logprobs, c.fingerprint) for key, c in same.items() if c}
    assert len(replies) == len(texts) == len(ROWS)
    assert all(reply.completion and reply.completion.label_logprobs["topic"] for reply in replies)


def test_one_try_a_row_with_usage_and_the_servers_name_and_nothing_is_left_behind(
    server: ScriptedServer, tmp_path: Path
) -> None:
    replies = run(server, tmp_path, *ROWS)
    assert [outcomes(reply) for reply in replies] == [[OutcomeClass.ANSWERED]] * len(ROWS)
    tries = [once for reply in replies for once in reply.tries]
    assert {once.worker for once in tries} == {server.base_url}
    assert sum(once.usage.prompt for once in tries) == server.calls.prompt_tokens
    assert sum(once.usage.completion for once in tries) == server.calls.completion_tokens
    assert left(tmp_path) == []
    assert server.model.batches.files == {}


def test_files_are_split_at_the_limit_and_a_row_asked_twice_is_sent_once(
    server: ScriptedServer, tmp_path: Path
) -> None:
    replies = run(server, tmp_path, *ROWS, *ROWS, rows=15)
    assert len(server.model.batches.cards) == 3
    assert server.calls.requests == len(replies) == len(ROWS)


def test_files_are_split_at_their_size(server: ScriptedServer, tmp_path: Path) -> None:
    three = 3 * len(request_line(ROWS[0]))
    runner = HostedRunner(server.base_url, api_key=None, max_bytes=three, sleep=soon)
    assert len(asyncio.run(answers(BatchEngine(runner, folder=tmp_path), *ROWS[:9]))) == 9
    assert len(server.model.batches.cards) == 3


def test_what_is_on_disk_is_for_its_owner_alone(server: ScriptedServer, tmp_path: Path) -> None:
    async def look() -> dict[str, int]:
        async with engine(server, tmp_path / "b") as opened, aclosing(opened.answer(each(*ROWS))) as replies:
            await anext(replies)
            paths = [tmp_path / "b", *(tmp_path / "b").rglob("*")]
            return {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}

    modes = asyncio.run(look())
    assert {"input.jsonl", "output.jsonl", "state.json", "ids"} <= modes.keys()
    assert set(modes.values()) == {0o700, 0o600}


def test_no_rows_make_no_batch(server: ScriptedServer, tmp_path: Path) -> None:
    assert run(server, tmp_path) == []
    assert server.model.batches.requests == []


# --- rows that fail


def test_a_busy_row_is_submitted_once_more_and_answered(tmp_path: Path) -> None:
    with ScriptedServer(with_faults(Fault(kind="status", status=429, match="message 7", first=1))) as server:
        replies = run(server, tmp_path, *ROWS[:9])
        assert Counter(server.calls.rows.values()) == {1: 8, 2: 1}
    (twice,) = (reply for reply in replies if len(reply.tries) == 2)
    assert outcomes(twice) == [OutcomeClass.UNAVAILABLE, OutcomeClass.ANSWERED]
    assert twice.completion is not None


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_row_that_stays_busy_is_unavailable_after_two_batches(tmp_path: Path, status: int) -> None:
    with ScriptedServer(with_faults(Fault(kind="status", status=status, match="message 7"))) as server:
        replies = run(server, tmp_path, *ROWS[:9])
        assert len(server.model.batches.cards) == 2
    (failed,) = (reply for reply in replies if reply.error)
    assert isinstance(failed.error, ModelUnavailable)
    assert outcomes(failed) == [OutcomeClass.UNAVAILABLE] * 2
    assert left(tmp_path) == []


def test_a_refused_row_is_refused_at_once_and_the_others_are_answered(tmp_path: Path) -> None:
    with ScriptedServer(with_faults(Fault(kind="status", status=400, match="message 7"))) as server:
        replies = run(server, tmp_path, *ROWS[:9])
        assert len(server.model.batches.cards) == 1
    (failed,) = (reply for reply in replies if reply.error)
    assert isinstance(failed.error, RequestRefused)
    assert outcomes(failed) == [OutcomeClass.REFUSED]


def test_garbage_of_every_kind_becomes_replies(tmp_path: Path) -> None:
    with ScriptedServer(with_faults(Fault(kind="garbage", share=0.6))) as server:
        replies = run(server, tmp_path, *ROWS)
        assert server.calls.faults["garbage"] > 20
    assert {reply.request.hash for reply in replies} == {request.hash for request in ROWS}
    assert len(replies) == len(ROWS)
    failed = [reply for reply in replies if reply.error]
    assert {type(reply.error) for reply in failed} <= {AnswerGarbled, ModelUnavailable}
    assert all(len(reply.tries) == 2 for reply in failed)


def test_a_row_that_hangs_costs_the_others_nothing(tmp_path: Path) -> None:
    with ScriptedServer(with_faults(Fault(kind="hang", match="message 7", first=1))) as server:
        server.model.batches.pace = Pace(answer_s=0.3)
        replies = run(server, tmp_path, *ROWS[:9])
    assert sum(reply.completion is not None for reply in replies) == 9


def test_an_answer_cut_at_the_token_limit_is_truncated(tmp_path: Path) -> None:
    with ScriptedServer(with_faults(Fault(kind="truncated", match="message 7"))) as server:
        replies = run(server, tmp_path, *ROWS[:9])
    assert Counter(outcome for reply in replies for outcome in outcomes(reply)) == {
        OutcomeClass.ANSWERED: 8,
        OutcomeClass.TRUNCATED: 1,
    }


# --- batches that end otherwise


def test_an_expired_batch_keeps_its_results_and_the_rest_is_timed_out(server: ScriptedServer, tmp_path: Path) -> None:
    server.model.batches.pace = Pace(rows=25, ends="expired")
    replies = run(server, tmp_path, *ROWS)
    late = [reply for reply in replies if reply.completion is None]
    assert (len(replies), len(late)) == (40, 15)
    assert all(isinstance(reply.error, ModelUnavailable) and "expired" in reply.error.message for reply in late)
    assert {outcome for reply in late for outcome in outcomes(reply)} == {OutcomeClass.TIMEOUT}
    assert left(tmp_path) == []


def test_a_batch_that_somebody_cancels_at_the_server_keeps_its_results(server: ScriptedServer, tmp_path: Path) -> None:
    server.model.batches.pace = Pace(rows=10, ends="cancelled")
    replies = run(server, tmp_path, *ROWS)
    errors = [reply.error for reply in replies if reply.error]
    assert len(errors) == 30
    assert all(isinstance(error, ModelUnavailable) and "cancelled" in error.message for error in errors)
    assert len(server.model.batches.cards) == 1


@pytest.mark.parametrize(
    ("code", "error"), [("token_limit_exceeded", ModelUnavailable), ("model_not_found", RequestRefused)]
)
def test_a_failed_batch_says_why_for_every_row(
    server: ScriptedServer, tmp_path: Path, code: str, error: type[Exception]
) -> None:
    server.model.batches.pace = Pace(rows=0, ends="failed", failure=code)
    replies = run(server, tmp_path, *ROWS[:5])
    assert [type(reply.error) for reply in replies] == [error] * 5
    assert all(reply.error and code in reply.error.message for reply in replies)


def test_a_completed_batch_without_some_rows_is_asked_once_more_for_them(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.model.batches.pace = Pace(rows=4)
    replies = run(server, tmp_path, *ROWS[:10])
    assert Counter(reply.error and type(reply.error) for reply in replies) == {None: 8, AnswerGarbled: 2}


def test_a_wrong_key_refuses_every_row_and_makes_no_batch(tmp_path: Path) -> None:
    with ScriptedServer(SCRIPT.model_copy(update={"api_key": "right"})) as server:
        replies = run(server, tmp_path, *ROWS[:3], key="wrong")
        assert [type(reply.error) for reply in replies] == [RequestRefused] * 3
        assert [reply.completion is not None for reply in run(server, tmp_path, *ROWS[:3], key="right")] == [True] * 3
        assert len(server.model.batches.cards) == 1


def test_a_server_that_is_gone_makes_rows_unavailable(tmp_path: Path) -> None:
    with ScriptedServer(SCRIPT) as server:
        pass
    replies = run(server, tmp_path, *ROWS[:3])
    assert [type(reply.error) for reply in replies] == [ModelUnavailable] * 3
    assert left(tmp_path) == []


async def test_a_server_that_goes_away_while_polled_keeps_the_batch_for_the_next_process(tmp_path: Path) -> None:
    silent: list[float] = []

    async with ScriptedServer(SCRIPT) as server:
        server.model.batches.pace = Pace(held=True)

        async def poll(seconds: float) -> None:
            silent.append(seconds)
            if len(silent) == 3:
                await asyncio.to_thread(server.kill)

        runner = HostedRunner(server.base_url, api_key=None, sleep=poll)
        runner._client.max_retries = 0  # pyright: ignore[reportPrivateUsage] # its pauses would take minutes here
        replies = await answers(BatchEngine(runner, folder=tmp_path), *ROWS[:3])
    assert [type(reply.error) for reply in replies] == [ModelUnavailable] * 3
    assert len(silent) == MAX_SILENT_POLLS + 2
    assert max(silent) == 60
    assert len(left(tmp_path)) == 1


# --- stopping, and going on


async def test_closing_cancels_the_batch_and_the_next_call_asks_for_exactly_the_rest(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.model.batches.pace = Pace(rows=16, held=True)
    async with engine(server, tmp_path) as opened:
        task = asyncio.create_task(answers(opened, *ROWS))
        await reached(16, server)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert [path for path in server.model.batches.requests if path.endswith("/cancel")]
    server.model.batches.pace = Pace()
    replies = await answers(engine(server, tmp_path), *ROWS)
    assert sum(reply.completion is not None for reply in replies) == len(replies) == len(ROWS)
    assert set(server.calls.rows.values()) == {1}
    assert [card["status"] for card in server.model.batches.cards] == ["cancelled", "completed"]
    assert left(tmp_path) == []


async def test_a_caller_that_stops_half_way_pays_for_nothing_twice(server: ScriptedServer, tmp_path: Path) -> None:
    async with engine(server, tmp_path) as opened, aclosing(opened.answer(each(*ROWS))) as replies:
        stored = {(await anext(replies)).request.hash for _ in range(11)}
    rest = [request for request in ROWS if request.hash not in stored]
    after = await answers(engine(server, tmp_path), *rest)
    assert {reply.request.hash for reply in after} == {request.hash for request in rest}
    assert server.calls.requests == len(ROWS)
    assert left(tmp_path) == []


async def test_rows_that_nobody_asked_for_this_time_are_kept_for_who_does(
    server: ScriptedServer, tmp_path: Path
) -> None:
    async with engine(server, tmp_path) as opened, aclosing(opened.answer(each(*ROWS[:6]))) as replies:
        await anext(replies)
    assert len(await answers(engine(server, tmp_path), *ROWS[:2], ROWS[30])) == 3
    assert len(left(tmp_path)) == 1
    assert len(await answers(engine(server, tmp_path), *ROWS[2:6])) == 4
    assert left(tmp_path) == []
    assert server.calls.requests == 7


async def test_the_second_batch_of_a_killed_process_is_found_too(tmp_path: Path) -> None:
    with ScriptedServer(with_faults(Fault(kind="status", status=429, match="message 7", first=1))) as server:
        async with engine(server, tmp_path) as opened, aclosing(opened.answer(each(*ROWS[:9]))) as replies:
            for _ in range(9):  # the ninth came with the second batch
                await anext(replies)
        assert len(server.model.batches.cards) == 2
        again = await answers(engine(server, tmp_path), *ROWS[:9])
        assert len(server.model.batches.cards) == 2
    assert sorted(len(reply.tries) for reply in again) == [1] * 8 + [2]
    assert left(tmp_path) == []


async def test_another_process_at_work_on_a_batch_is_left_alone(server: ScriptedServer, tmp_path: Path) -> None:
    async with engine(server, tmp_path) as one, aclosing(one.answer(each(*ROWS[:4]))) as replies:
        await anext(replies)
        assert len(await answers(engine(server, tmp_path), *ROWS[:4])) == 4
        assert len([reply async for reply in replies]) == 3
    assert left(tmp_path) == []
