"""A process that is killed while its batch runs at the server: the next one goes on with that batch."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.llm.batch_engine import BatchEngine
from infra.llm.batch_hosted import HostedRunner
from infra.llm.replies import Reply
from infra.llm.scripted import ScriptedServer
from infra.llm.scripted_batches import Pace
from tests.integration.batch_asker import ask, each

ROOT = Path(__file__).parents[2]
ROWS = [ask(text) for text in ("one", "two", "three")]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


def run(server: ScriptedServer, folder: Path) -> list[Reply]:
    async def answers() -> list[Reply]:
        async with BatchEngine(HostedRunner(server.base_url, api_key=None), folder=folder) as engine:
            return [reply async for reply in engine.answer(each(*ROWS))]

    return asyncio.run(answers())


def start(server: ScriptedServer, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.integration.batch_asker", server.base_url, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_process_killed_while_polling_finds_its_batch_again(server: ScriptedServer, tmp_path: Path) -> None:
    server.model.batches.pace = Pace(held=True)
    with start(server, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "polling\n"
        process.kill()
    server.model.batches.pace = Pace()
    replies = run(server, tmp_path)
    assert [reply.completion is not None for reply in replies] == [True] * 3
    assert len(server.model.batches.cards) == 1
    assert server.calls.requests == 3
    assert Counter(server.model.batches.requests)["POST /v1/batches"] == 1


def test_a_process_killed_before_it_heard_of_its_batch_finds_it_by_its_file(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.model.batches.pace = Pace(held=True)
    with start(server, tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    (state,) = tmp_path.rglob("state.json")
    state.write_text(json.dumps(json.loads(state.read_text()) | {"batch_id": None}))
    server.model.batches.pace = Pace()
    assert len(run(server, tmp_path)) == 3
    assert len(server.model.batches.cards) == 1


def test_a_batch_that_the_server_has_forgotten_is_submitted_again(server: ScriptedServer, tmp_path: Path) -> None:
    server.model.batches.pace = Pace(held=True)
    with start(server, tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    (state,) = tmp_path.rglob("state.json")
    state.write_text(json.dumps(json.loads(state.read_text()) | {"batch_id": "batch_gone"}))
    server.model.batches.pace = Pace()
    replies = run(server, tmp_path)
    assert [reply.completion is not None for reply in replies] == [True] * 3
