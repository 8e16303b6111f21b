"""The local batch engine for real: 20 rows of the example through vLLM's run-batch with the cheap model.

Asks for HEADRACE_E2E_BATCH=1, the engine environment and the weights (`headrace up` builds both): about a minute.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from domain.errors import RequestRefused
from domain.ledgers import OutcomeClass
from domain.prompts import PromptVersion, baseline
from domain.requests import Request, row_request
from domain.schemas import Valid, check
from infra.llm.batch_engine import BatchEngine
from infra.llm.batch_local import LocalRunner
from infra.llm.replies import Reply
from infra.settings import Settings
from infra.workloads import LoadedWorkload, load_workload
from tests.integration.batch_asker import each

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "support_triage"
ROWS = 20

pytestmark = [
    pytest.mark.skipif(os.environ.get("HEADRACE_E2E_BATCH") != "1", reason="HEADRACE_E2E_BATCH=1 runs vLLM for real"),
    pytest.mark.timeout(900),
]
"""The variable is read before the fixtures put the caller's own settings away."""


@pytest.fixture(scope="module")
def example() -> LoadedWorkload:
    """The example workload."""
    return load_workload(EXAMPLE)


def request(example: LoadedWorkload, text: str) -> Request:
    workload = example.workload
    prompt: PromptVersion = baseline(
        workload.instructions, input_fields=tuple(workload.dataset.inputs), schema=example.schema
    )
    return row_request(prompt.render({"text": text}), tier=workload.tiers.cheap, schema=example.schema)


async def test_rows_of_the_example_through_run_batch(
    example: LoadedWorkload, defaults: Settings, tmp_path: Path
) -> None:
    lines = (EXAMPLE / "data" / "labelled" / "chat.jsonl").read_text().splitlines()[:ROWS]
    requests = [request(example, json.loads(line)["text"]) for line in lines]
    too_long = request(example, "word " * 5000)
    settings = defaults.model_copy(update={"home": tmp_path})
    runner = LocalRunner.embedded(settings, example.workload.tiers.cheap.model)
    async with BatchEngine(runner, folder=tmp_path / "batches") as engine:
        replies = [reply async for reply in engine.answer(each(*requests, too_long))]
    found: dict[str, Reply] = {reply.request.hash: reply for reply in replies}
    assert len(found) == len(replies) == ROWS + 1

    refused = found.pop(too_long.hash)
    assert isinstance(refused.error, RequestRefused)
    assert "maximum context length" in refused.error.message

    shown: list[Any] = []
    for reply in found.values():
        completion = reply.completion
        assert completion is not None
        assert (completion.finish_reason, [once.outcome for once in reply.tries]) == ("stop", [OutcomeClass.ANSWERED])
        assert isinstance(check(completion.text, completion.finish_reason, example.schema), Valid)
        assert completion.usage.prompt > 50
        assert 3 < completion.usage.completion <= 24
        assert completion.label_logprobs["topic"].keys() <= set(example.schema.labels)
        assert len(completion.label_logprobs["topic"]) > 1
        shown.append((completion.text, completion.usage, completion.label_logprobs))
    for row in shown[:3]:
        print(*row)
    print(f"{len(found)} rows in {replies[0].tries[0].seconds:.0f} s, the start of the engine included")
    assert [path for path in (tmp_path / "batches").iterdir() if path.is_dir()] == []
