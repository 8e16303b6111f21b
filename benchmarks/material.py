"""What the benchmarks feed in: rows of a given size, and a workload folder that asks one server about them."""

import json
import random
import shutil
from pathlib import Path

_VOCABULARY = (
    "account advance amount balance bank branch card cash charge city counter country credit currency customer date "
    "debit deposit fee form fund holiday hour interest invoice letter limit loan machine minute month mortgage notice "
    "number office payment people phone price question rate receipt refund rent request salary service statement "
    "street terminal ticket transfer travel week withdrawal year"
)
WORDS = _VOCABULARY.split()
SCHEMA = Path(__file__).with_name("schema.py")
INSTRUCTIONS = "Name what the customer's message is about."


def row(number: int, row_bytes: int) -> dict[str, str]:
    """Row `number`, always the same and unlike every other; its text has `row_bytes` bytes."""
    draw = random.Random(number)  # noqa: S311 - the same words every time, no secret
    text = f"Message {number}:"
    while len(text) < row_bytes:
        text += " " + draw.choice(WORDS)
    return {"id": f"m{number}", "text": text[:row_bytes]}


def write_rows(to: Path, rows: int, row_bytes: int) -> Path:
    """Write a file of rows, one JSON object a line, unless it is there already."""
    if not to.exists():
        part = to.with_suffix(".part")
        with part.open("w", encoding="utf-8") as out:
            for number in range(rows):
                out.write(json.dumps(row(number, row_bytes)) + "\n")
        part.rename(to)
    return to


def write_workload(folder: Path, rows: Path, *, base_url: str, model: str, revision: str) -> Path:
    """Write a workload whose tiers are one server; `revision` keeps its answers apart from others in the ledger."""
    tier = {
        "model": model,
        "base_urls": [base_url],
        "revision": revision,
        "max_tokens": 24,
        "usd_per_million": {"input": 0.05, "output": 0.2},
    }
    workload = {
        "version": 1,
        "name": "bench",
        "dataset": {"uri": str(rows), "incoming": str(rows), "inputs": ["text"], "gold": {"label": "label"}},
        "instructions": INSTRUCTIONS,
        "output": "schema:Subject",
        "decisive": "label",
        "tiers": {"cheap": tier, "strong": tier},
        "max_reasks": 0,  # every client sends the same number of requests
    }
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(SCHEMA, folder / "schema.py")
    (folder / "workload.yaml").write_text(json.dumps(workload, indent=1))  # JSON is YAML too
    return folder
