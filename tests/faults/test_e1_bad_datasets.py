"""E1: forty files as people really have them. A bad file is refused, a bad row quarantined, no good row lost."""

import gzip
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars
import pytest
from sqlalchemy import func, select

from domain.datasets import Split
from domain.errors import DatasetError
from domain.workloads import Dataset
from infra.db.session import transaction
from infra.db.store import answers, datasets, runs
from infra.db.tables import AttemptRow, RunRowRow
from infra.snapshots import read_records, take_snapshot
from tests.integration.begun_runs import open_run

FIRST = b'{"id": "first", "text": "caf\xc3\xa9", "amount": 1.5}\n'
LAST = b'{"id": "last", "text": "still here", "amount": 2}\n'
CSV = b"id,text,amount\nfirst,caf\xc3\xa9,1.5\n%s\nlast,still here,2\n"


@dataclass(frozen=True)
class File:
    """A file, and what has to become of it: refused for a reason, or rows quarantined by line for a reason."""

    content: bytes
    refused: str = ""
    bad: dict[int, str] = field(default_factory=dict[int, str])
    good: tuple[str, ...] = ("first", "last")


def lines(*middle: bytes, good: tuple[str, ...] = ("first", "last"), **bad: str) -> File:
    """Lines between two good ones; `bad` says which of them is bad for which reason, as line_<number>."""
    content = FIRST + b"".join(line + b"\n" for line in middle) + LAST
    return File(content, bad={int(name.removeprefix("line_")): reason for name, reason in bad.items()}, good=good)


def with_text(value: bytes) -> bytes:
    return b'{"id": "x", "amount": 3, "text": ' + value + b"}"


def parquet(**columns: list[Any]) -> bytes:
    stream = io.BytesIO()
    polars.DataFrame(columns).write_parquet(stream)
    return stream.getvalue()


MIXED = (b"1", b"[null]", b"1e30", b"{}")
WHOLE = parquet(id=["first", "last"], text=["café", "still here"], amount=[1.5, 2.0])

CORPUS: dict[str, File] = {
    # Refused as a whole.
    "utf-16.jsonl": File(FIRST.decode().encode("utf-16"), refused="UTF-16"),
    "utf-16.csv": File(b"id,text\n1,a\n".decode().encode("utf-16"), refused="UTF-16"),
    "utf-32.jsonl": File(FIRST.decode().encode("utf-32"), refused="UTF-32"),
    "empty.jsonl": File(b"", refused="no rows"),
    "blank.jsonl": File(b"\n  \n\r\n", refused="no rows"),
    "empty.csv": File(b"", refused="no header"),
    "header-only.csv": File(b"id,text,amount\n", refused="no rows"),
    "header-twice.csv": File(b"id,text,text\n1,a,b\n", refused="stands twice"),
    "header-latin-1.csv": File(b"id,te\xe9xt\n1,a\n", refused="header is not UTF-8"),
    "open-quote.csv": File(b'id,text,amount\n1,"a,2\n2,b,3\n3,c,4\n', refused="not CSV"),
    "empty.parquet": File(b"", refused="not Parquet"),
    "not.parquet": File(b"id,text\n1,a\n", refused="not Parquet"),
    "cut.parquet": File(WHOLE[: len(WHOLE) // 2], refused="not Parquet"),
    "bomb.jsonl.gz": File(gzip.compress(b" " * 10_000_000), refused="unknown format"),
    "sheet.xlsx": File(b"PK\3\4", refused="unknown format"),
    # Read, without their bad rows.
    "latin-1.jsonl": lines(with_text(b'"caf\xe9"'), line_2="not UTF-8"),
    "raw-nul.jsonl": lines(with_text(b'"a\0b"'), line_2="not JSON"),
    "escaped-nul.jsonl": lines(with_text(b'"a\\u0000b"'), line_2="NUL"),
    "lone-surrogate.jsonl": lines(with_text(b'"\\ud800"'), line_2="surrogate"),
    "nan.jsonl": lines(with_text(b"NaN"), with_text(b"-Infinity"), line_2="NaN is not allowed", line_3="-Infinity"),
    "1e400.jsonl": lines(with_text(b"1e400"), line_2="too large"),
    "5000-digits.jsonl": lines(with_text(b"9" * 5000), line_2="not JSON"),
    "1100-deep.jsonl": lines(with_text(b"[" * 1100 + b"]" * 1100), line_2="not JSON"),
    "500-deep.jsonl": lines(with_text(b"[" * 500 + b"]" * 500), line_2="nested"),
    "key-twice.jsonl": lines(b'{"id": "x", "text": "a", "amount": 1, "text": "b"}', line_2="'text' stands twice"),
    "inner-key-twice.jsonl": lines(with_text(b'{"k": "a:b", "k": 2}'), line_2="'k' stands twice"),
    "no-id.jsonl": lines(b'{"text": "a", "amount": 1}', line_2="is missing"),
    "empty-id.jsonl": lines(b'{"id": " ", "text": "a", "amount": 1}', line_2="is empty"),
    "id-twice.jsonl": lines(
        b'{"id": "first", "text": "b", "amount": 1}',
        b'{"id": "first", "text": "b", "amount": 1}',
        line_2="'first' was already used at id-twice.jsonl:1",
        line_3="'first' was already used at id-twice.jsonl:1",
    ),
    "no-rows-but-lists.jsonl": lines(b'["x", "a"]', b"7", b'"x"', line_2="list", line_3="int", line_4="str"),
    "cut-line.jsonl": lines(b'{"id": "x", "text": "a', b"{}{}", line_2="not JSON", line_3="not JSON"),
    "17-mb-line.jsonl": lines(with_text(b'"' + b"t" * 17_000_000 + b'"'), line_2="longer than"),
    "2-mb-text.jsonl": lines(with_text(b'"' + b"t" * 2_000_000 + b'"'), line_2="limit is 1,000,000"),
    "ragged.csv": File(CSV % b"short,row\na,far,too,long", bad={3: "2 cells", 4: "4 cells"}),
    "bad-cells.csv": File(CSV % b"x,caf\xe9,1\ny,a\0b,1\n,no id,1", bad={3: "UTF-8", 4: "NUL", 5: "is empty"}),
    "nan.parquet": File(
        parquet(id=["first", "b", None, "last"], text=["café", "x", "y", "still here"], amount=[1.5, math.nan, 1, 2]),
        bad={2: "no word for", 3: "is empty"},
    ),
    # Unusual, and every row of them good.
    "byte-order-mark.jsonl": File(b"\xef\xbb\xbf" + FIRST.replace(b"\n", b"\r\n") + b"\r\n" + LAST.rstrip()),
    "crlf.csv": File(
        b"\xef\xbb\xbf" + (CSV % b'"x","one, ""two""\nthree",1').replace(b"\n", b"\r\n"), good=("first", "x", "last")
    ),
    "long-id-and-mixed-types.jsonl": lines(
        b'{"id": "' + b"i" * 9000 + b'", "text": "a", "amount": 1}',
        *(b'{"id": %d, "text": %s, "amount": 0}' % (n, text) for n, text in enumerate(MIXED)),
        good=("first", "i" * 9000, "0", "1", "2", "3", "last"),
    ),
    "200-kb-cell.csv": File(CSV % (b"x," + b"t" * 200_000 + b",1"), good=("first", "x", "last")),
}  # fmt: skip

DATASET = Dataset(uri="x", inputs=("text", "amount"), gold={"topic": "topic"})


def take(uri: str, folder: Path) -> tuple[str, str]:
    """Snapshot a dataset for a new run; returns run and version."""
    run_id = open_run()
    rows = read_records(DATASET, uri, folder, labelled=False)
    version, _ = take_snapshot(run_id, rows, uri=uri, splits=[Split.INCOMING], max_rows=None)
    return run_id, version


def what_is_wrong(file: File, name: str, folder: Path) -> str:
    """What became of a file that should not have; empty when all is as it should be."""
    try:
        run_id, version = take(name, folder)
    except DatasetError as error:
        return "" if file.refused and file.refused in str(error) and name in str(error) else f"refused: {error}"
    if file.refused:
        return "not refused"
    with transaction() as db:
        kept = [row.record for row in datasets.load_run_rows(db, run_id, 0, 1000)]
        refused = {row.place.line: row.reason for row in answers.load_quarantine(db, run_id)}
        rows = runs.conservation(db, run_id)
        named = [row.place.file for row in datasets.load_bad_rows(db, version)]
    wrong = []
    if tuple(record.record_id for record in kept) != file.good:
        wrong.append(f"kept {[record.record_id[:20] for record in kept]}")
    if [kept[0].inputs["text"], kept[-1].inputs["text"]] != ["café", "still here"]:
        wrong.append("a good row was changed")
    if refused.keys() != file.bad.keys() or not all(reason in refused[line] for line, reason in file.bad.items()):
        wrong.append(f"quarantined {refused}")
    if set(named) - {name} or (rows.pending, rows.quarantined) != (len(file.good), len(file.bad)):
        wrong.append(str(rows))
    return "; ".join(wrong)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name, file in CORPUS.items():
        (folder / name).write_bytes(file.content)
    return folder


def test_forty_files_end_as_they_should(ledger: str, corpus: Path, report: Callable[[str], None]) -> None:
    wrong = {name: said for name, file in CORPUS.items() if (said := what_is_wrong(file, name, corpus))}
    whole = sum(bool(file.refused) for file in CORPUS.values())
    read = [file for file in CORPUS.values() if not file.refused]
    report(
        f"{len(CORPUS) - len(wrong)}/{len(CORPUS)} files right: {whole} refused as a whole, "
        f"{sum(len(f.bad) for f in read)} bad rows quarantined with line and reason, "
        f"{sum(len(f.good) for f in read)} good rows kept"
    )
    assert wrong == {}
    assert len(CORPUS) == 40


def test_one_bad_file_among_good_ones_is_refused_before_anything_is_stored(
    ledger: str, corpus: Path, tmp_path: Path, report: Callable[[str], None]
) -> None:
    for number in range(3):
        rows = [{"id": f"{number}-{n}", "text": "t", "amount": n} for n in range(12_000)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "9.jsonl").write_bytes(CORPUS["utf-16.jsonl"].content)
    run_id = open_run()
    rows = read_records(DATASET, "*.jsonl", tmp_path, labelled=False)
    with pytest.raises(DatasetError, match=r"9\.jsonl: the file is UTF-16"):
        take_snapshot(run_id, rows, uri="*.jsonl", splits=[Split.INCOMING], max_rows=None)
    with transaction() as db:
        taken = db.scalar(select(func.count()).where(RunRowRow.run_id == run_id))
        calls = db.scalar(select(func.count()).where(AttemptRow.run_id == run_id))
        version = runs.load_run(db, run_id).dataset_version
    report(f"36,000 good rows before it: {taken} rows taken, {calls} calls made, version {version}")
    assert (taken, calls, version) == (0, 0, None)


def test_an_id_that_another_file_uses_is_refused_and_never_merged(ledger: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(
            FIRST.replace(b"caf", name.encode()) + LAST.replace(b"last", name.encode())
        )
    run_id, _ = take("*.jsonl", tmp_path)
    with transaction() as db:
        kept = [row.record.record_id for row in datasets.load_run_rows(db, run_id, 0, 10)]
        (refused,) = answers.load_quarantine(db, run_id)
    assert kept == ["first", "a", "b"]
    assert (str(refused.place), refused.reason) == ("b.jsonl:1: id", "'first' was already used at a.jsonl:1")
