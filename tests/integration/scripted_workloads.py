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
class Written:
    """A workload's folder and the two servers that play its tiers."""

    name: str
    folder: Path
    cheap: ScriptedServer
    strong: ScriptedServer

    @property
    def servers(self) -> tuple[ScriptedServer, ScriptedServer]:
        """Cheap, then strong."""
        return self.cheap, self.strong

    def requests(self) -> int:
        """Calls that reached the servers so far."""
        return sum(server.calls.requests for server in self.servers)

    def start(self, flow: str) -> UUID:
        """Start a flow on it by name, as `headrace run` does."""
        return deployments.start(flow, parameters={"workload": str(self.folder)}, workload=self.name)

    def run(self, flow: str) -> str:
        """Start a flow on it and wait until it has completed; its id."""
        run_id = self.start(flow)
        name, message = ended(run_id)
        assert name == "Completed", message
        return str(run_id)


def write(
    folder: Path,
    *,
    name: str,
    cheap: ScriptedServer,
    strong: ScriptedServer,
    rows: int,
    incoming: int = 0,
    broken: Sequence[str] = (),
    **options: Any,
) -> Written:
    """Write a workload: `rows` labelled rows, the broken ones after them, and `incoming` rows without a label."""
    labelled = [json.dumps({**_row(n), "id": f"r{n}", "topic": TOPICS[n % len(TOPICS)]}) for n in range(rows)]
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
    (folder / "incoming.jsonl").write_text("\n".join(arriving) + "\n")
    (folder / "schema.py").write_text(SCHEMA)
    (folder / "workload.yaml").write_text(json.dumps(workload, indent=1))  # JSON is YAML too
    return Written(name, folder, cheap, strong)


def _row(n: int) -> dict[str, str]:
    return {"text": SENTENCES[TOPICS[n % len(TOPICS)]].format(n=1000 + n)}


def ended(run_id: UUID, *, patience_s: float = 400) -> tuple[str, str]:
    """A run's final state and message, once it has one."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        name, message, final = deployments.state_of(run_id)
        if final:
            return name, message
        time.sleep(0.5)
    raise AssertionError(f"run {run_id} is still {deployments.state_of(run_id)}")


def diagnosed(run_id: str) -> Diagnosis:
    """What the doctor says of a run."""
    with transaction() as db:
        return diagnose(db, runs.load_run(db, run_id))


def spent(run_id: str) -> list[Spending]:
    """What a run spent."""
    with transaction() as db:
        return calls.spending(db, run_id)


def metered(server: ScriptedServer) -> tuple[int, int]:
    """Prompt and completion tokens since its start, by a server's own page of metrics."""
    page = dict(
        line.rsplit(" ", 1) for line in httpx.get(f"{server.root_url}/metrics").text.splitlines() if line[0] != "#"
    )
    values = {name.partition("{")[0]: int(float(value)) for name, value in page.items()}
    return values["vllm:prompt_tokens_total"], values["vllm:generation_tokens_total"]
