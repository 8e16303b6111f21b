"""E2: rows of 10 MB among small ones. They are quarantined, the others kept, and memory stays small."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import polars
import pytest

from domain.datasets import Split
from infra.db.session import transaction
from infra.db.store import answers, datasets, runs
from tests.integration.begun_runs import open_run

ROWS = 500
LONG = [*range(0, ROWS, 50), *range(301, 311)]
"""Twenty rows: spread over the file, and ten in succession."""
BYTES = 10_000_000
MEMORY_MB = {"jsonl": 256, "csv": 256, "parquet": 512}
"""Less than the long rows together where nothing needs more; a Parquet page is decoded as a whole."""

TAKE = """
import re, sys
from pathlib import Path
from domain.datasets import Split
from domain.workloads import Dataset
from infra.snapshots import read_records, take_snapshot
run_id, folder, file = sys.argv[1:]
dataset = Dataset(uri=file, inputs=("text",), gold={"topic": "topic"})
rows = read_records(dataset, file, Path(folder), labelled=False)
take_snapshot(run_id, rows, uri=file, splits=[Split.INCOMING], max_rows=None)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def rows() -> Iterator[dict[str, str]]:
    words = random.Random(7).choices(["card", "loan", "é", '"', "\n"], k=1000)  # noqa: S311
    text = " ".join(words)
    for n in range(ROWS):
        yield {"id": f"row-{n}", "text": (text * (BYTES // len(text)) if n in LONG else text[:300]) + str(n)}


def write(path: Path) -> None:
    if path.suffix == ".jsonl":
        with path.open("w") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    elif path.suffix == ".csv":
        polars.DataFrame(list(rows())).write_csv(path)
    else:
        polars.DataFrame(list(rows())).write_parquet(path)


@pytest.mark.parametrize("suffix", MEMORY_MB)
def test_long_rows_are_quarantined_and_memory_stays_small(
    ledger: str, tmp_path: Path, suffix: str, report: Callable[[str], None]
) -> None:
    file = f"rows.{suffix}"
    write(tmp_path / file)
    run_id = open_run()
    words = [sys.executable, "-c", TAKE, run_id, str(tmp_path), file]
    taken = subprocess.run(words, env=dict(os.environ), capture_output=True, text=True, timeout=300, check=False)
    assert taken.returncode == 0, taken.stderr[-2000:]
    with transaction() as db:
        kept = datasets.load_run_rows(db, run_id, 0, ROWS)
        refused = answers.load_quarantine(db, run_id)
        conserved = runs.conservation(db, run_id)
    report(f"{file}: {len(refused)} of {BYTES:,} bytes refused, {len(kept)} kept, peak {int(taken.stdout)} MB")
    assert [row.record.record_id for row in kept] == [f"row-{n}" for n in range(ROWS) if n not in LONG]
    assert all(row.record.split is Split.INCOMING for row in kept)
    assert len(refused) == len(LONG)
    assert all("the limit is 1,000,000" in row.reason and row.place.field == "text" for row in refused)
    assert conserved.holds
    assert int(taken.stdout) < MEMORY_MB[suffix]
