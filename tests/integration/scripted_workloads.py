"""Workloads whose tiers are scripted model servers: a folder with its files, and runs started as the terminal does."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

from infra import deployments
from infra.db.session import transaction
from infra.db.store import calls, runs
from infra.db.store.calls import Spending
from infra.doctor import Diagnosis, diagnose
from infra.llm.scripted import Rule, ScriptedServer

SENTENCES = {
    "card": "My plastic card number {n} is lost.",
    "loan": "When does the loan over {n} dollars end?",
    "cash": "The machine kept {n} notes of my cash.",
}
TOPICS = tuple(SENTENCES)
RULES = tuple(Rule(pattern=topic, label=topic) for topic in TOPICS)
"""What a model has to know to be right."""

SCHEMA = '''
from typing import Literal

from pydantic import BaseModel


class Triage(BaseModel):
    """The one thing the customer needs help with."""

    topic: Literal["card", "loan", "cash"]
'''
BROKEN = (
    '{"id": "b1", "text": "cut off',
    '{"id": "b2", "topic": "card"}',
    '{"id": "r0", "text": "again", "topic": "loan"}',
)
"""Three labelled rows that cannot be used: no JSON, no text, an id that was used before."""


@dataclass(frozen=True, slots=True)
class Count:
    """What a server counted: calls that reached it, and tokens by its own page of metrics."""

    requests: int
    prompt: int
    completion: int


@dataclass(frozen=True, slots=True)
class Ran:
    """A completed run, and what each server counted meanwhile."""

    id: str
    cheap: Count
    strong: Count


@dataclass(frozen=True, slots=True)
class Written:
    """A workload's folder and the two servers that play its tiers."""

    name: str
    folder: Path
    cheap: ScriptedServer
    strong: ScriptedServer

    def start(self, flow: str) -> UUID:
        """Start a flow on it by name, as `headrace run` does."""
        return deployments.start(flow, parameters={"workload": str(self.folder)}, workload=self.name)

    def run(self, flow: str) -> Ran:
        """Start a flow on it and wait until it has completed."""
        before = [_count(server) for server in (self.cheap, self.strong)]
        run_id = self.start(flow)
        name, message = ended(run_id)
        assert name == "Completed", message
        cheap, strong = (
            Count(now.requests - then.requests, now.prompt - then.prompt, now.completion - then.completion)
            for then, now in zip(before, map(_count, (self.cheap, self.strong)), strict=True)
        )
        return Ran(str(run_id), cheap, strong)


def write(
    folder: Path,
    *,
    name: str,
    cheap: ScriptedServer,
    strong: ScriptedServer,
    rows: int,
    broken: Sequence[str] = (),
    incoming: int = 0,
    broken_incoming: Sequence[str] = (),
    **options: Any,
) -> Written:
    """Write a workload: labelled rows, rows without a label, and the broken ones after each."""
    labelled = [json.dumps({**_row(n), "id": f"r{n}", "topic": topic(n)}) for n in range(rows)]
    arriving = [json.dumps({**_row(n), "id": f"i{n}"}) for n in range(rows, rows + incoming)]
    workload = {
        "version": 1,
        "name": name,
        "dataset": {
            "uri": "labelled.jsonl",
            "incoming": "incoming.jsonl" if incoming else None,
            "inputs": ["text"],
            "gold": {"topic": "topic"},
        },
        "instructions": "Name the topic.",
        "output": "schema:Triage",
        "decisive": "topic",
        "tiers": {
            tier: {
                "model": server.script.model,
                "base_urls": [server.base_url],
                "revision": name,  # else the ledger answers for another workload's model
                "max_tokens": 24,
                "max_demos": 2,
                "usd_per_million": {"input": price, "output": 2 * price},
            }
            for tier, server, price in (("cheap", cheap, 0.05), ("strong", strong, 0.5))
        },
        "optimizer": {"name": "none", "validation_rows": 8},
        "target": {"eps": 0.15},
        **options,
    }
    folder.mkdir(parents=True)
    (folder / "labelled.jsonl").write_text("\n".join([*labelled, *broken]) + "\n")
    (folder / "incoming.jsonl").write_text("\n".join([*arriving, *broken_incoming]) + "\n")
    (folder / "schema.py").write_text(SCHEMA)
    (folder / "workload.yaml").write_text(json.dumps(workload, indent=1))  # JSON is YAML too
    return Written(name, folder, cheap, strong)


def topic(n: int) -> str:
    """The right label of row n."""
    return TOPICS[n % len(TOPICS)]


def _row(n: int) -> dict[str, str]:
    return {"text": SENTENCES[topic(n)].format(n=1000 + n)}


def ended(run_id: UUID, *, patience_s: float = 400) -> tuple[str, str]:
    """A run's final state and message, once it has one."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        name, message, final = deployments.state_of(run_id)
        if final:
            _noted(run_id)
            return name, message
        time.sleep(0.5)
    raise AssertionError(f"run {run_id} is still {deployments.state_of(run_id)}")


def _noted(run_id: UUID, *, patience_s: float = 5) -> None:
    """Wait until the ledger knows it, too: the flow's hooks run after Prefect has the final state."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with transaction() as db:
            if not runs.is_known(db, str(run_id)) or runs.load_run(db, str(run_id)).state != "running":
                return
        time.sleep(0.1)


def diagnosed(run_id: str) -> Diagnosis:
    """What the doctor says of a run."""
    with transaction() as db:
        return diagnose(db, runs.load_run(db, run_id))


def spent(run_id: str) -> list[Spending]:
    """What a run spent."""
    with transaction() as db:
        return calls.spending(db, run_id)


def _count(server: ScriptedServer) -> Count:
    lines = httpx.get(f"{server.root_url}/metrics").text.splitlines()
    page = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    values = {name.partition("{")[0]: int(float(value)) for name, value in page.items()}
    return Count(server.calls.requests, values["vllm:prompt_tokens_total"], values["vllm:generation_tokens_total"])
