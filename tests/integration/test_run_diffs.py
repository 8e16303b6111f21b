"""`headrace diff` on the recorded runs: equal to themselves, and every flip found and put down to its cause."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import delete, select

from dashboards import paired_runs, queries
from dashboards.paired_runs import Measure, Pair, Side
from domain.run_diffs import Part
from infra.comparing import compare_runs
from infra.db.bundle_tables import BundleRow
from infra.db.session import transaction
from infra.db.store import bundles, runs
from infra.db.tables import AnswerRow, CompletionRow, FrameRow, OutcomeRow, QuarantinedRow, RunRow, RunRowRow
from infra.exchange import import_runs
from tests.integration.recorded_runs import FILE, ROOT, run_of

OPTIMIZE, ROUTE = run_of("optimize"), run_of("route")
COPIED = (RunRow, RunRowRow, AnswerRow, OutcomeRow)


@pytest.fixture
def copied(ledger: str) -> Iterator[str]:
    """The recorded batch once more, by a bundle that keeps nothing: two of its rows ended at the strong tier."""
    import_runs(FILE)
    run_id = str(uuid.uuid4())
    with transaction() as db:
        made = bundles.load_bundle(db, runs.load_run(db, ROUTE).bundle_hash or "")
        other = made.model_copy(update={"threshold": 2.0})
        bundles.save_bundle(db, other, run_id=OPTIMIZE)
        for table in COPIED:
            columns: Any = table.__table__.columns
            key = "id" if table is RunRow else "run_id"
            for row in db.execute(select(*columns).where(columns[key] == ROUTE)).mappings().all():
                db.add(table(**{**row, key: run_id, **({"bundle_hash": other.hash} if table is RunRow else {})}))
            db.flush()
        mine = (OutcomeRow.run_id == run_id, OutcomeRow.tier == "cheap")
        for row in db.scalars(select(OutcomeRow).where(*mine).order_by(OutcomeRow.record_key).limit(2)):
            row.tier, row.escalated, row.usd = "strong", True, 9 * row.usd
            row.output = {"topic": "cash" if row.output["topic"] == "loan" else "loan"}
    yield run_id
    with transaction() as db:  # other tests export the run that this bundle is said to be of
        db.execute(delete(BundleRow).where(BundleRow.hash == other.hash))


def headrace(*words: str) -> subprocess.CompletedProcess[str]:
    """The command line as people use it."""
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_does_not_differ_from_itself(copied: str) -> None:
    _, _, found = compare_runs(OPTIMIZE, OPTIMIZE)
    assert (found.rows, found.flips, found.quality.n, found.quality.mean) == (110, (), 110, 0)


def test_flipped_rows_are_found_and_put_down_to_the_threshold(copied: str) -> None:
    _, _, found = compare_runs(ROUTE, copied)
    assert (found.rows, len(found.flips), found.quality.n) == (150, 2, 0)
    assert {flip.parts for flip in found.flips} == {(Part.THRESHOLD,)}
    assert found.usd_per_1000.mean > 0
    done = headrace("diff", ROUTE, copied, "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["causes"]) == (0, {"threshold": 2})
    assert {flip["a"]["tier"] for flip in said["flips"]} == {"cheap"}
    shown = headrace("diff", ROUTE[:8], copied)
    assert "flipped   2: threshold 2" in shown.stdout
    assert "not known: these rows have no gold answers" in shown.stdout


def test_another_prompt_behind_a_flip_is_found_in_the_ledgers_requests(copied: str) -> None:
    new = uuid.uuid4().hex * 2
    with transaction() as db:
        mine = select(OutcomeRow).where(OutcomeRow.run_id == copied, OutcomeRow.tier == "cheap")
        ended = db.scalars(mine.order_by(OutcomeRow.record_key.desc()).limit(1)).one()
        answer = db.get_one(AnswerRow, (copied, "cheap", ended.record_key))
        completion = db.get_one(CompletionRow, (answer.request_hash, 0))
        frame = db.get_one(FrameRow, completion.frame_hash)
        db.add(FrameRow(hash=new, body={**frame.body, "messages": []}, revision=frame.revision))
        columns: Any = CompletionRow.__table__.columns
        same = {name: getattr(completion, name) for name in columns.keys()}  # noqa: SIM118  # no mapping
        db.add(CompletionRow(**{**same, "request_hash": new, "frame_hash": new}))
        answer.request_hash, answer.output, ended.output = new, {"topic": "nothing"}, {"topic": "nothing"}
    _, _, found = compare_runs(ROUTE, copied)
    assert found.causes == {"threshold": 2, "prompt": 1}


def test_a_row_in_quarantine_costs_what_was_spent_on_it_in_the_terminal_and_on_the_page(copied: str) -> None:
    _, _, whole = compare_runs(ROUTE, copied)
    with transaction() as db:
        cheap: dict[str, float] = {}
        strong: dict[str, float] = {}
        for tier in ("cheap", "strong"):
            mine = (OutcomeRow.run_id == ROUTE, OutcomeRow.tier == tier)
            key = db.scalars(select(OutcomeRow.record_key).where(*mine).order_by(OutcomeRow.record_key.desc())).first()
            assert key
            db.delete(db.get_one(OutcomeRow, (copied, key)))
            lost = {"stage": "validate", "file": "f", "line": 1, "field": None, "reason": "no valid answer"}
            db.add(QuarantinedRow(run_id=copied, record_key=key, **lost))
            cheap[key] = db.get_one(AnswerRow, (copied, "cheap", key)).usd
            answered = db.get(AnswerRow, (copied, "strong", key))
            strong[key] = answered.usd if answered else 0.0
    assert sum(cheap.values()) > 0
    assert sum(strong.values()) > 0
    _, _, found = compare_runs(ROUTE, copied)
    assert found.rows == whole.rows
    assert found.usd_per_1000.mean == pytest.approx(whole.usd_per_1000.mean)
    assert shown_usd(copied) == pytest.approx(whole.usd_per_1000.mean)
    with transaction() as db:  # no cheap answer is asked for once the certificate is void
        run = db.get_one(RunRow, copied)
        run.summary = {**run.summary, "void": ["another model is served"]}
    _, _, found = compare_runs(ROUTE, copied)
    less = whole.usd_per_1000.mean - 1000 * sum(cheap.values()) / whole.rows
    assert found.usd_per_1000.mean == pytest.approx(less)
    assert shown_usd(copied) == pytest.approx(less)


def shown_usd(run_id: str) -> float:
    """What the page Compare finds of the recorded batch and this run."""
    with transaction() as db:
        version = runs.load_run(db, run_id).dataset_version or ""
    queries.rows.clear()
    pair = Pair(Side(ROUTE, version, "exact_match"), Side(run_id, version, "exact_match"))
    found = paired_runs.overall(pair, ended=False)
    return next(one.difference.mean for one in found.measures if one.measure is Measure.USD)


def test_runs_that_are_not_there_or_of_another_workload_are_refused(copied: str, run_id: str) -> None:
    done = headrace("diff", ROUTE, "nobody")
    assert (done.returncode, "no run begins with 'nobody'" in done.stderr) == (2, True)
    done = headrace("diff", ROUTE, run_id)
    assert (done.returncode, "Compare runs of the same workload." in done.stderr) == (2, True)
