"""What the fault tests run: a workload whose every answer says which row the server saw."""

import json
import re
import uuid
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from infra.llm.scripted import Rule

TOPICS = ("card", "loan", "cash")
RULES = tuple(Rule(pattern=topic, label=topic) for topic in TOPICS)
SCHEMA = '''
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Reply(BaseModel):
    """The topic, and the beginning of the row as the model saw it."""

    model_config = ConfigDict(extra="forbid")
    topic: Literal["card", "loan", "cash"]
    echo: str
'''
MAX_TOKENS = 64
ROW = r"Text: [0-9a-f]{16} row \d+: .*"
"""How a server that has forgotten a conversation finds the row that a re-ask is about."""
_MARK = re.compile(r"\b[0-9a-f]{16}\b")


def mark(n: int) -> str:
    """Sixteen hexadecimal digits that no other row has."""
    return sha256(f"row {n}".encode()).hexdigest()[:16]


def text(n: int) -> str:
    """What row n says. The fake model echoes a row's first words, the mark among them."""
    return f"{mark(n)} row {n}: my {TOPICS[n % 3]} is number {1000 + n}."


def seen_as(n: int) -> str:
    """Row n as the server's call book names it."""
    return f"Text: {text(n)}"


def mark_in(said: str) -> str | None:
    """The mark in a text, if there is one."""
    found = _MARK.search(said)
    return found and found[0]


def write_workload(
    folder: Path, *, strong: Sequence[str], cheap: Sequence[str] | None = None, rows: int, max_reasks: int = 3
) -> Path:
    """A workload of so many rows on these servers; the ledger knows none of its answers."""
    workload = {
        "version": 1,
        "name": folder.name,
        "dataset": {"uri": "rows.jsonl", "inputs": ["text"], "gold": {"topic": "topic"}},
        "instructions": "Name the topic.",
        "output": "schema:Reply",
        "decisive": "topic",
        "max_reasks": max_reasks,
        "tiers": {
            tier: {
                "model": "scripted",
                "base_urls": list(urls),
                "revision": f"{tier} {uuid.uuid4().hex}",
                "max_tokens": MAX_TOKENS,
                "max_demos": 0,
                "usd_per_million": {"input": 0.05, "output": 0.1},
            }
            for tier, urls in (("cheap", cheap or strong), ("strong", strong))
        },
        "optimizer": {"name": "none"},
        "target": {"eps": 0.15},
    }
    folder.mkdir(parents=True)
    lines = (json.dumps({"id": f"r{n}", "text": text(n), "topic": TOPICS[n % 3]}) for n in range(rows))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "schema.py").write_text(SCHEMA)
    (folder / "workload.yaml").write_text(json.dumps(workload, indent=1))  # JSON is YAML too
    return folder
