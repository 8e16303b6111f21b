"""Batches as processes of this machine, with a stand-in for vLLM: its end, its crashes, its orphans."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from domain.errors import ModelError, ModelUnavailable
from domain.ledgers import OutcomeClass
from domain.requests import Request
from infra import services
from infra.launch import start_ticks
from infra.llm.batch_engine import BatchEngine
from infra.llm.batch_folders import Part, Shelf
from infra.llm.batch_local import LocalRunner
from infra.llm.models import CATALOGUE
from infra.llm.replies import Reply
from infra.settings import Settings
from tests.integration.batch_asker import ask, each

ROWS = [ask(f"message {number}") for number in range(7)]
STAND_IN = """
import json, os, subprocess, sys, time
from pathlib import Path
place = Path(sys.argv[1])
with (place / "starts").open("a") as starts:
    print(os.getpid(), file=starts)
mode = (place / "mode").read_text()
if mode == "crash" or (mode == "crash once" and len((place / "starts").read_text().split()) == 1):
    print("torch.Error: no memory is left", file=sys.stderr)
    sys.exit(3)
if mode == "hang":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    (place / "child").write_text(str(child.pid))
    time.sleep(300)
while mode == "wait" and not (place / "go").exists():
    time.sleep(0.05)
asked, answered = sys.argv[sys.argv.index("-i") + 1], sys.argv[sys.argv.index("-o") + 1]
with open(asked) as lines, open(answered, "w") as results:
    for line in lines:
        choice = {"message": {"content": os.environ.get("ANSWER", "{}")}, "finish_reason": "stop"}
        body = {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
        row = {"custom_id": json.loads(line)["custom_id"], "response": {"status_code": 200, "body": body}}
        print(json.dumps(row), file=results)
"""


def runner(place: Path, mode: str = "answer", *, rows: int = 100, quiet_s: float = 60) -> LocalRunner:
    script = place / "stand_in.py"
    script.write_text(STAND_IN)
    (place / "mode").write_text(mode)
    return LocalRunner(
        (sys.executable, str(script), str(place)),
        name="run-batch stand-in",
        environment={"ANSWER": '{"topic":"loan"}'},
        turn=place / ".turn",
        log=place / "logs" / "batch.log",
        rows=rows,
        quiet_s=quiet_s,
    )


async def answers(runner: LocalRunner, place: Path, *requests: Request) -> list[Reply]:
    async with BatchEngine(runner, folder=place / "batches") as engine:
        return [reply async for reply in engine.answer(each(*requests))]


def starts(place: Path) -> list[int]:
    path = place / "starts"
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def left(place: Path) -> list[str]:
    return [path.name for path in (place / "batches").iterdir() if path.is_dir()]


async def until(seen: Callable[[], bool]) -> None:
    while not seen():  # noqa: ASYNC110 - another process makes it true
        await asyncio.sleep(0.02)


async def test_rows_are_answered_file_by_file_and_nothing_is_left(tmp_path: Path) -> None:
    replies = await answers(runner(tmp_path, rows=3), tmp_path, *ROWS)
    assert {reply.request.hash for reply in replies} == {request.hash for request in ROWS}
    assert {reply.completion.text for reply in replies if reply.completion} == {'{"topic":"loan"}'}
    assert {(once.worker, once.outcome) for reply in replies for once in reply.tries} == {
        ("run-batch stand-in", OutcomeClass.ANSWERED)
    }
    assert len(starts(tmp_path)) == 3
    assert left(tmp_path) == []


async def test_a_run_that_crashed_once_is_made_once_more(tmp_path: Path) -> None:
    replies = await answers(runner(tmp_path, "crash once"), tmp_path, *ROWS)
    assert all(reply.completion for reply in replies)
    assert {tuple(once.outcome for once in reply.tries) for reply in replies} == {
        (OutcomeClass.UNAVAILABLE, OutcomeClass.ANSWERED)
    }


async def test_a_run_that_always_crashes_says_what_its_log_says(tmp_path: Path) -> None:
    replies = await answers(runner(tmp_path, "crash"), tmp_path, *ROWS)
    assert len(starts(tmp_path)) == 2
    assert len(replies) == len(ROWS)
    for reply in replies:
        assert isinstance(reply.error, ModelUnavailable)
        assert "ended with 3: torch.Error: no memory is left" in reply.error.message
    assert left(tmp_path) == []


async def test_a_run_that_says_nothing_is_ended(tmp_path: Path) -> None:
    replies = await answers(runner(tmp_path, "hang", quiet_s=3.0), tmp_path, ROWS[0])
    assert isinstance(replies[0].error, ModelUnavailable)
    assert len(starts(tmp_path)) == 2
    assert not any(psutil.pid_exists(pid) for pid in starts(tmp_path))


async def test_closing_ends_the_process_and_its_children_and_keeps_the_batch(tmp_path: Path) -> None:
    task = asyncio.create_task(answers(runner(tmp_path, "hang"), tmp_path, *ROWS))
    await until((tmp_path / "child").exists)
    (pid,) = starts(tmp_path)
    child = int((tmp_path / "child").read_text() or "0")
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(pid)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert len(left(tmp_path)) == 1
    replies = await answers(runner(tmp_path), tmp_path, *ROWS)
    assert [len(reply.tries) for reply in replies if reply.completion] == [1] * len(ROWS)
    assert left(tmp_path) == []


async def test_two_runs_at_once_take_turns(tmp_path: Path) -> None:
    one = asyncio.create_task(answers(runner(tmp_path, "wait"), tmp_path, *ROWS[:3]))
    await until(lambda: bool(starts(tmp_path)))
    other = asyncio.create_task(answers(runner(tmp_path, "wait"), tmp_path, *ROWS[3:]))
    await until(lambda: len(left(tmp_path)) == 2)
    await asyncio.sleep(0.6)  # longer than it takes to look for a turn
    assert len(starts(tmp_path)) == 1
    (tmp_path / "go").touch()
    assert [len(replies) for replies in await asyncio.gather(one, other)] == [3, 4]
    assert len(starts(tmp_path)) == 2


def orphan(place: Path) -> Part:
    """A batch as a process leaves it that is killed while its run goes on: the run holds the turn."""
    with (place / "asker.py").open("w") as script:
        script.write(f"""
import asyncio
from pathlib import Path
from tests.integration.batch_asker import ask
from tests.unit.test_batch_local import ROWS, answers, runner
place = Path({str(place)!r})
asyncio.run(answers(runner(place, "wait"), place, *ROWS))
""")
    root = Path(__file__).parents[2]
    command, environment = [sys.executable, str(place / "asker.py")], os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, env=environment) as process:
        while not starts(place):
            time.sleep(0.02)
        while '"pid":null' in next((place / "batches").glob("*/state.json")).read_text():
            time.sleep(0.02)
        process.kill()
    shelf = Shelf(place / "batches", runner="run-batch stand-in")
    (name,) = shelf.find()
    part = shelf.take(name)
    assert part is not None
    return part


async def test_the_run_of_a_killed_process_is_waited_for_and_read(tmp_path: Path) -> None:
    part = orphan(tmp_path)
    assert part.state.pid == starts(tmp_path)[0]
    part.release()
    task = asyncio.create_task(answers(runner(tmp_path, "wait"), tmp_path, *ROWS))
    await asyncio.sleep(0.3)
    (tmp_path / "go").touch()
    replies = await task
    assert [reply.completion is not None for reply in replies] == [True] * len(ROWS)
    assert len(starts(tmp_path)) == 1
    assert left(tmp_path) == []


async def test_stopping_ends_the_run_of_a_killed_process_and_no_other_under_its_number(tmp_path: Path) -> None:
    part = orphan(tmp_path)
    pid = part.state.pid
    assert pid is not None
    part.save(ticks=1)
    await runner(tmp_path).stop(part)
    assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    part.save(ticks=start_ticks(pid))
    await runner(tmp_path).stop(part)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    part.release()


async def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    task = asyncio.create_task(answers(runner(tmp_path, "wait"), tmp_path, *ROWS))
    await until(lambda: bool(starts(tmp_path)))
    os.kill(starts(tmp_path)[0], signal.SIGSTOP)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "batches").rglob("*")}
    os.kill(starts(tmp_path)[0], signal.SIGCONT)
    (tmp_path / "go").touch()
    await task
    assert set(modes.values()) == {0o700, 0o600}
    assert stat.S_IMODE((tmp_path / "logs" / "batch.log").stat().st_mode) == 0o600


def test_the_embedded_model_is_run_with_the_servers_own_words(tmp_path: Path) -> None:
    weights = tmp_path / "weights" / "smollm2-135m-instruct"
    weights.mkdir(parents=True)
    settings = Settings(home=tmp_path, weights=tmp_path / "weights")
    with pytest.raises(ModelError, match="no weights"):
        LocalRunner.embedded(settings, "smollm2-135m-instruct")
    (weights / ".complete").write_text(CATALOGUE["smollm2-135m-instruct"].sha256)
    batch = LocalRunner.embedded(settings, "smollm2-135m-instruct", engine_args=["--max-model-len", "512"])
    server = services.build("engine-cheap", settings, {"engine-cheap": 8000}, frozenset(), {})
    assert batch.argv[:3] == (server.argv[0], "-m", "vllm.entrypoints.openai.run_batch")
    assert set(server.argv[3:]) - set(batch.argv) == {"--host", "127.0.0.1", "--port", "8000"} | {
        "--disable-uvicorn-access-log"
    }
    assert batch.argv[-2:] == ("--max-model-len", "512")
    assert dict(server.environment) == batch.environment | {"VLLM_API_KEY": server.environment["VLLM_API_KEY"]}
