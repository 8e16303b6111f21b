"""The run that ships with the tests: where it is, and its parts by name."""

import json
import zipfile
from pathlib import Path
from typing import Any

from infra.db.session import transaction
from infra.db.store import runs
from infra.exchange import import_runs

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "support_triage"
FILE = ROOT / "tests" / "data" / "recorded_run" / "support_triage.zip"


def lines(file: Path, table: str) -> list[dict[str, Any]]:
    """The rows of a table in an exported run."""
    with zipfile.ZipFile(file) as archive:
        return [json.loads(line) for line in archive.read(f"{table}.jsonl").decode().splitlines()]


def run_of(kind: str) -> str:
    """The id of the recorded run of a kind."""
    (run,) = (row["id"] for row in lines(FILE, "runs") if row["kind"] == kind)
    return run


def imported() -> None:
    """See to it that the ledger has the recorded runs; to look takes no time, to read them takes seconds."""
    with transaction() as db:
        there = [runs.is_known(db, run_of(kind)) for kind in ("optimize", "route")]
    if not all(there):
        import_runs(FILE)
