"""The recorded run, replayed with no socket to be had: identical as it is, and found out whatever is changed in it."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table, select, text, update

from domain.replays import Cause, Kind
from infra.db.bundle_tables import BundleRow, PromotionRow
from infra.db.session import transaction
from infra.db.store import runs
from infra.db.tables import (
    AnswerRow,
    Base,
    CompletionRow,
    FrameRow,
    OutcomeRow,
    PromptVersionRow,
    RecordRow,
    RunRow,
    ScoreRow,
)
from infra.exchange import export_run, import_runs
from infra.replaying import replay
from infra.versions import code_version
from tests.integration.recorded_runs import EXAMPLE, FILE, ROOT, lines, run_of

OPTIMIZE, ROUTE = run_of("optimize"), run_of("route")
Change = Callable[[Any], Any]


@pytest.fixture(scope="module", autouse=True)
def imported(ledger: str) -> None:
    """The recorded run in the ledger, said to be made by this code, whichever it is."""
    import_runs(FILE)
    with transaction() as db:
        for run_id in (OPTIMIZE, ROUTE):
            runs.add_summary(db, run_id, {"code": code_version()})


def headrace(*words: str, **surroundings: str) -> subprocess.CompletedProcess[str]:
    """The command line as people use it."""
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **surroundings},
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def changed(table: type[Base], column: str, change: Change, **where: str) -> Generator[None]:
    """One row of the ledger with another value in one column; afterwards it is as it was."""
    columns = _columns(table)
    wanted = [columns[name] == value for name, value in where.items()]
    with transaction() as db:
        before = db.execute(select(columns[column]).where(*wanted)).scalar_one()
        assert change(before) != before
        db.execute(update(table).where(*wanted).values({column: change(before)}))
    try:
        yield
    finally:
        with transaction() as db:
            db.execute(update(table).where(*wanted).values({column: before}))


def _columns(table: type[Base]) -> Any:
    assert isinstance(table.__table__, Table)
    return table.__table__.columns


# ---- as it is


@pytest.mark.parametrize(("run_id", "rows"), [(OPTIMIZE, 110), (ROUTE, 150)], ids=["optimize", "route"])
def test_the_recorded_run_replays_identically_with_no_socket_to_be_had(run_id: str, rows: int) -> None:
    done = headrace("replay", run_id, "--json")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found = json.loads(done.stdout)
    assert found["identical"]
    network = found["network"]
    assert (network["sealed_by_the_kernel"], network["gap"]) == (True, None)
    # One library looks for IPv6 when it is imported: it is refused, and named.
    assert [who.partition(":")[0] for who in network["refused"]] == ["urllib3.util.connection"]
    assert (found["rows"], found["unproven"], found["notes"], found["first"]) == (rows, 0, [], None)


def test_nothing_of_an_optimisation_is_left_out() -> None:
    found = replay(OPTIMIZE, EXAMPLE).seen.compared
    judged = 110
    for kind in (Kind.PROMPTS, Kind.REQUESTS, Kind.OUTPUTS, Kind.CONFIDENCES, Kind.SCORES):
        assert found[kind] == 2 * judged, kind
    assert found[Kind.OUTCOMES] == judged + 1  # and their number
    for kind in (Kind.WORKLOAD, Kind.STORED_BUNDLE, Kind.CERTIFICATE, Kind.FIGURES, Kind.BUNDLE, Kind.GATE):
        assert found[kind] == 1, kind
    assert (found[Kind.PROMPT_VERSIONS], found[Kind.PRIORS]) == (2, 2)
    assert found[Kind.RECORDS] == 150 + 1


def test_the_recording_has_answers_that_were_asked_again_rows_on_both_tiers_and_a_certificate() -> None:
    assert {row["reasks"] for row in lines(FILE, "answers")} == {0, 1}
    assert {row["tier"] for row in lines(FILE, "outcomes") if row["run_id"] == ROUTE} == {"cheap", "strong"}
    (bundle,) = lines(FILE, "bundles")
    assert bundle["body"]["certificate"]["certified"]
    assert FILE.stat().st_size < 400_000


# ---- changed in one place


def _first_key(table: str, **where: Any) -> dict[str, Any]:
    return next(row for row in lines(FILE, table) if all(row[name] == value for name, value in where.items()))


def _answered() -> dict[str, str]:
    return {"request_hash": _first_key("answers", run_id=ROUTE, tier="cheap", reasks=0)["request_hash"]}


def _prompt() -> dict[str, str]:
    # Earlier compiles came to the same prompt; the run's own is the newest.
    mine = [row for row in lines(FILE, "prompt_versions") if row["tier"] == "cheap"]
    return {"compile_key": max(mine, key=lambda row: row["created_at"])["compile_key"]}


def _bundle() -> dict[str, str]:
    return {"hash": lines(FILE, "bundles")[0]["hash"]}


def _record(split: str) -> dict[str, str]:
    row = _first_key("records", split=split)
    return {"dataset_version": row["dataset_version"], "key": row["key"]}


def _outcome() -> dict[str, str]:
    return {"run_id": ROUTE, "record_key": _first_key("outcomes", run_id=ROUTE)["record_key"]}


def _score() -> dict[str, str]:
    row = _first_key("scores", tier="strong")
    return {name: row[name] for name in ("run_id", "record_key", "tier", "metric")}


def _kept() -> dict[str, str]:
    row = _first_key("answers", run_id=ROUTE, tier="cheap", reasks=0)
    return {name: row[name] for name in ("run_id", "tier", "record_key")}


CASES: dict[str, tuple[str, type[Base], str, Change, Callable[[], dict[str, str]], Kind, Cause]] = {
    "a completion's text": (
        ROUTE, CompletionRow, "text", lambda text: text + " so there", _answered, Kind.OUTPUTS, Cause.LEDGER,
    ),
    "a completion's log-probabilities": (
        ROUTE, CompletionRow, "label_logprobs",
        lambda fields: {"topic": dict(zip(fields["topic"], reversed(fields["topic"].values()), strict=True))},
        _answered, Kind.CONFIDENCES, Cause.LEDGER,
    ),
    "a completion's tokens": (
        ROUTE, CompletionRow, "prompt_tokens", lambda tokens: tokens + 1, _answered, Kind.OUTPUTS, Cause.LEDGER,
    ),
    "what was sent last": (
        ROUTE, CompletionRow, "last_message", lambda message: {**message, "content": "Text: hello"}, _answered,
        Kind.PROMPTS, Cause.LEDGER,
    ),
    "how it was sampled": (
        ROUTE, FrameRow, "body", lambda body: {**body, "temperature": 0.7},
        lambda: {"hash": _first_key("completions", **_answered())["frame_hash"]}, Kind.REQUESTS, Cause.LEDGER,
    ),
    "a prompt's instructions": (
        OPTIMIZE, PromptVersionRow, "body", lambda body: {**body, "instructions": "Guess."}, _prompt,
        Kind.PROMPT_VERSIONS, Cause.PROMPT,
    ),
    "a compiled prompt's label prior": (
        OPTIMIZE, PromptVersionRow, "report",
        lambda report: {**report, "prior": {**report["prior"], "card": report["prior"]["card"] + 1e-9}}, _prompt,
        Kind.PRIORS, Cause.LEDGER,
    ),
    "a bundle's label prior": (
        ROUTE, BundleRow, "body",
        lambda body: {**body, "cheap": {**body["cheap"], "prior": {**body["cheap"]["prior"], "card": 0.9}}}, _bundle,
        Kind.STORED_BUNDLE, Cause.LEDGER,
    ),
    "the threshold of a batch": (
        ROUTE, BundleRow, "body", lambda body: {**body, "threshold": 0.9}, _bundle, Kind.STORED_BUNDLE, Cause.LEDGER,
    ),
    "the threshold of an optimisation": (
        OPTIMIZE, BundleRow, "body", lambda body: {**body, "threshold": 0.9}, _bundle, Kind.STORED_BUNDLE, Cause.LEDGER,
    ),
    "a labelled row's input": (
        OPTIMIZE, RecordRow, "inputs", lambda inputs: {"text": inputs["text"] + "!"}, lambda: _record("test"),
        Kind.RECORDS, Cause.DATA,
    ),
    "an incoming row's input": (
        ROUTE, RecordRow, "inputs", lambda _: {"text": "Something else."}, lambda: _record("incoming"),
        Kind.RECORDS, Cause.DATA,
    ),
    "a right answer": (
        OPTIMIZE, RecordRow, "gold", lambda gold: {"topic": "loan" if gold["topic"] != "loan" else "cash"},
        lambda: _record("calibration"), Kind.RECORDS, Cause.DATA,
    ),
    "a row's split": (
        OPTIMIZE, RecordRow, "split", lambda _: "test", lambda: _record("calibration"), Kind.RECORDS, Cause.DATA,
    ),
    "an answer's confidence": (
        ROUTE, AnswerRow, "confidence", lambda confidence: confidence + 2e-16 + confidence * 2e-16, _kept,
        Kind.CONFIDENCES, Cause.LEDGER,
    ),
    "an outcome's output": (
        ROUTE, OutcomeRow, "output", lambda output: {"topic": "loan" if output["topic"] != "loan" else "cash"},
        _outcome, Kind.OUTCOMES, Cause.LEDGER,
    ),
    "an outcome's price": (
        ROUTE, OutcomeRow, "usd", lambda usd: usd * 2, _outcome, Kind.OUTCOMES, Cause.LEDGER,
    ),
    "a score": (
        OPTIMIZE, ScoreRow, "value", lambda value: 1 - value, _score, Kind.SCORES, Cause.LEDGER,
    ),
    "the gate's decision": (
        OPTIMIZE, PromotionRow, "passed", lambda passed: not passed, lambda: {"run_id": OPTIMIZE},
        Kind.GATE, Cause.LEDGER,
    ),
    "the certificate that people were shown": (
        OPTIMIZE, RunRow, "summary", lambda summary: {**summary, "tested_thresholds": 3}, lambda: {"id": OPTIMIZE},
        Kind.FIGURES, Cause.LEDGER,
    ),
}  # fmt: skip
"""What is changed: run, table, column, new value, which row; then the kind that is to be found out first, and why."""


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_whatever_is_changed_is_found_out_with_its_cause(
    case: tuple[str, type[Base], str, Change, Callable[[], dict[str, str]], Kind, Cause],
) -> None:
    run_id, table, column, change, where, kind, cause = case
    with changed(table, column, change, **where()):
        found = replay(run_id, EXAMPLE).seen
    assert found.first
    assert (found.first.kind, found.first.cause) == (kind, cause)
    assert found.first.recorded != found.first.replayed
    assert replay(run_id, EXAMPLE).seen.identical


def test_one_changed_row_leaves_the_others_alone() -> None:
    run_id, table, column, change, where, *_ = CASES["an incoming row's input"]
    with changed(table, column, change, **where()):
        found = replay(run_id, EXAMPLE).seen
    assert found.diverging == {Kind.RECORDS: 1, Kind.PROMPTS: 1, Kind.REQUESTS: 1}
    assert {first.cause for first in found.firsts.values()} == {Cause.DATA}


@pytest.mark.parametrize("run_id", [OPTIMIZE, ROUTE], ids=["optimize", "route"])
def test_a_changed_schema_is_found_out(tmp_path: Path, run_id: str) -> None:
    folder = shutil.copytree(EXAMPLE, tmp_path / "triage")
    schema = folder / "schema.py"
    schema.write_text(schema.read_text().replace('"cash"]', '"cash", "other"]'))
    found = replay(run_id, folder).seen
    assert found.first
    assert (found.first.kind, found.first.cause) == (Kind.WORKLOAD, Cause.SCHEMA)
    assert found.diverging[Kind.REQUESTS] == found.compared[Kind.REQUESTS] > 100
    assert found.firsts[Kind.REQUESTS].cause is Cause.SCHEMA


def test_other_code_is_the_cause_where_nothing_else_is() -> None:
    run_id, table, column, change, where, kind, _ = CASES["an answer's confidence"]
    with (
        changed(RunRow, "summary", lambda summary: {**summary, "code": "f" * 64}, id=run_id),
        changed(table, column, change, **where()),
    ):
        found = replay(run_id, EXAMPLE).seen
    assert found.first
    assert (found.first.kind, found.first.cause) == (kind, Cause.CODE)


def test_a_deleted_row_is_found_out() -> None:
    with transaction() as db:
        where = {"run": ROUTE, "key": _outcome()["record_key"]}
        kept = dict(
            db.execute(text("select * from outcomes where run_id = :run and record_key = :key"), where).mappings().one()
        )
        db.execute(text("delete from outcomes where run_id = :run and record_key = :key"), where)
    try:
        found = replay(ROUTE, EXAMPLE).seen
    finally:
        with transaction() as db:
            db.add(OutcomeRow(**kept))
    assert found.diverging == {Kind.OUTCOMES: 2}  # the row, and the number of rows


# ---- the command line


def test_a_divergence_is_told_with_both_values_and_an_exit_code_of_its_own() -> None:
    run_id, table, column, change, where, *_ = CASES["a score"]
    with changed(table, column, change, **where()):
        done = headrace("replay", run_id)
    assert done.returncode == 1, done.stderr
    told = done.stdout.splitlines()
    assert told[0].startswith("divergent  optimize support-triage")
    assert told[1].startswith("  first     scores: strong, ")
    assert told[2].startswith("  cause     ledger: ")
    assert [line.split()[0] for line in told[3:6]] == ["recorded", "replayed", "diverging"]
    assert told[5].strip() == "diverging 1 scores"


def test_what_cannot_be_replayed_ends_with_another_exit_code(run_id: str, tmp_path: Path) -> None:
    unknown = headrace("replay", "no-such-run")
    under_way = headrace("replay", run_id, "--workload", str(EXAMPLE))
    gone = headrace("replay", ROUTE, HEADRACE_WORKLOADS=str(tmp_path))
    assert [done.returncode for done in (unknown, under_way, gone)] == [2, 2, 2]
    assert "only a completed one can be replayed" in under_way.stderr
    assert "there is no such workload" in gone.stderr


# ---- out of the ledger and in again


def test_an_exported_run_is_what_was_imported(tmp_path: Path) -> None:
    file = tmp_path / "run.zip"
    counts = export_run(ROUTE, file)
    assert counts["runs"] == 2
    assert all(count for table, count in counts.items() if table != "run_deployments")
    for table in counts:
        ours, theirs = (
            [{name: value for name, value in row.items() if name != "summary"} for row in lines(source, table)]
            for source in (file, FILE)
        )
        assert ours == theirs, table


def test_importing_twice_changes_nothing(tmp_path: Path) -> None:
    import_runs(FILE)
    assert replay(ROUTE, EXAMPLE).seen.identical


def test_a_ledger_with_other_answers_refuses_the_run(tmp_path: Path) -> None:
    with changed(CompletionRow, "text", lambda text: text + " ", **_answered()):
        done = headrace("import", str(FILE))
    assert done.returncode == 2
    assert "other answers to 1 of its requests" in done.stderr


@pytest.mark.parametrize(
    ("table", "what", "changed_to"),
    [
        ("bundles", "body", lambda body: {**body, "threshold": -1.0}),
        ("records", "gold", lambda gold: {"topic": "changed"}),
        ("prompt_versions", "body", lambda body: {**body, "instructions": "Say card."}),
        ("request_frames", "body", lambda body: {**body, "temperature": 1.5}),
        ("completions", "last_message", lambda said: {**said, "content": "Another question."}),
    ],
)
def test_a_row_that_is_not_what_its_hash_says_is_refused(
    tmp_path: Path, table: str, what: str, changed_to: Callable[[Any], Any]
) -> None:
    file = tmp_path / "edited.zip"
    with zipfile.ZipFile(FILE) as whole, zipfile.ZipFile(file, "w") as edited:
        for name in whole.namelist():
            content = whole.read(name).decode()
            if name == f"{table}.jsonl":
                first, *rest = content.splitlines()
                row = json.loads(first)
                content = "\n".join([json.dumps({**row, what: changed_to(row[what])}), *rest, ""])
            edited.writestr(name, content)
    done = headrace("import", str(file))
    assert done.returncode == 2
    assert f"edited.zip: {table}." in done.stderr
    assert "is not the hash of what it stands for" in done.stderr


def test_what_is_no_exported_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "no.zip"
    file.write_bytes(b"PK nothing")
    done = headrace("import", str(file))
    assert done.returncode == 2
    assert "this is no exported run" in done.stderr
