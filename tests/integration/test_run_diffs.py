"""`headrace diff` on the recorded runs: equal to themselves, and every flip found and put down to its cause."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from dashboards import paired_runs, queries
from dashboards.paired_runs import Measure, Pair, Side
from domain.routers import Routing
from domain.run_diffs import Part
from domain.workloads import SignalName
from infra.comparing import compare_runs
from infra.db.bundle_tables import BundleRow
from infra.db.session import transaction
from infra.db.store import bundles, runs
from infra.db.tables import (
    AnswerRow,
    CompletionRow,
    DatasetVersionRow,
    FrameRow,
    OutcomeRow,
    QuarantinedRow,
    RecordRow,
    RunRow,
    RunRowRow,
    ScoreRow,
)
from tests.integration.command_line import headrace
from tests.integration.recorded_runs import imported, run_of
from tests.integration.shown_pages import RECORDED, show

OPTIMIZE, ROUTE = run_of("optimize"), run_of("route")
COPIED = (RunRow, RunRowRow, AnswerRow, OutcomeRow)


@pytest.fixture
def copied(ledger: str) -> Iterator[str]:
    """The recorded batch once more, by a bundle that keeps nothing: two of its rows ended at the strong tier."""
    imported()
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


def test_a_run_does_not_differ_from_itself(copied: str) -> None:
    _, _, found = compare_runs(OPTIMIZE, OPTIMIZE)
    assert found.quality is not None
    assert (found.rows, found.flips, found.quality.n, found.quality.mean) == (110, (), 110, 0)


def test_flipped_rows_are_found_and_put_down_to_the_threshold(copied: str) -> None:
    _, _, found = compare_runs(ROUTE, copied)
    assert found.quality is not None
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


def _another_version(db: Session, run_id: str, gold: str, edited: str) -> None:
    """Give a run a dataset version of its own, with the gold answer of one row corrected and the input of another
    edited, which asks another request."""
    run, version = db.get_one(RunRow, run_id), uuid.uuid4().hex * 2
    whole = db.get_one(DatasetVersionRow, run.dataset_version)
    db.add(DatasetVersionRow(hash=version, uri=whole.uri, records=whole.records, bad_rows=whole.bad_rows))
    db.flush()
    keys = {gold: uuid.uuid4().hex * 2, edited: uuid.uuid4().hex * 2}
    columns: Any = RecordRow.__table__.columns
    mine = select(RunRowRow.record_key).where(RunRowRow.run_id == run_id)
    known = columns["key"].in_(mine) & (columns["dataset_version"] == run.dataset_version)
    for row in db.execute(select(*columns).where(known)).mappings().all():
        given = {**row, "dataset_version": version, "key": keys.get(row["key"], row["key"])}
        if row["key"] == gold:
            given["gold"] = {"topic": "card"}
        if row["key"] == edited:
            given["inputs"] = {name: f"{value} indeed" for name, value in row["inputs"].items()}
        db.add(RecordRow(**given))
    for table in (RunRowRow, AnswerRow, OutcomeRow):
        for key, new in keys.items():
            db.execute(update(table).where(table.run_id == run_id, table.record_key == key).values(record_key=new))
    other = update(AnswerRow).where(AnswerRow.run_id == run_id, AnswerRow.record_key == keys[edited])
    db.execute(other.values(request_hash=AnswerRow.tier + "of another row"))
    run.dataset_version = version


def test_a_corrected_gold_answer_is_no_other_data_and_an_edited_row_hides_nothing_else(copied: str) -> None:
    _, _, found = compare_runs(ROUTE, copied)
    gold, edited = (flip.before for flip in found.flips)
    with transaction() as db:
        _another_version(db, copied, gold.key, edited.key)
    _, _, found = compare_runs(ROUTE, copied)
    assert all(flip.before.key != flip.after.key for flip in found.flips)
    parts = {flip.before.row: " + ".join(flip.parts) for flip in found.flips}
    assert parts == {gold.row: "threshold", edited.row: "data + threshold"}
    shown = "".join(show("compare", workload=RECORDED["workload"], a=ROUTE, b=copied).blocks)
    for part in shown.split('<div class="hr-row">')[1:]:
        name = next(name for name in parts if f"Row <bdi>{name}</bdi>: " in part)
        assert f"put down to: {parts[name]}<" in part


def test_a_confidence_by_another_signal_is_not_put_down_to_the_label_prior(copied: str) -> None:
    with transaction() as db:
        run = db.get_one(RunRow, copied)
        made = bundles.load_bundle(db, runs.load_run(db, ROUTE).bundle_hash or "")
        other = made.model_copy(update={"routing": Routing(signal=SignalName.ENTROPY)})
        bundles.save_bundle(db, other, run_id=OPTIMIZE)
        run.bundle_hash = other.hash
        unsure = update(AnswerRow).where(AnswerRow.run_id == copied, AnswerRow.tier == "cheap")
        db.execute(unsure.values(confidence=AnswerRow.confidence / 2))
    try:
        _, _, found = compare_runs(ROUTE, copied)
        words = show("compare", workload=RECORDED["workload"], a=ROUTE, b=copied).words
    finally:
        with transaction() as db:
            db.execute(delete(BundleRow).where(BundleRow.hash == other.hash))
    assert found.causes == {"signal": 2}
    assert words.count("put down to: signal ") == 2


def test_qualities_by_two_metrics_are_not_compared_and_all_else_is(copied: str) -> None:
    with transaction() as db:
        run = db.get_one(RunRow, copied)
        run.spec = {**run.spec, "metric": "token_f1"}
        for row in db.scalars(select(OutcomeRow).where(OutcomeRow.run_id.in_((ROUTE, copied)))).all():
            metric = "exact_match" if row.run_id == ROUTE else "token_f1"
            own = {"run_id": row.run_id, "record_key": row.record_key, "tier": row.tier, "metric": metric}
            db.add(ScoreRow(**own, value=0.0 if row.run_id == ROUTE else 0.5))
    try:
        said = json.loads(headrace("diff", ROUTE, copied, "--json").stdout)
        shown = headrace("diff", ROUTE, copied).stdout
        page = show("compare", workload=RECORDED["workload"], a=ROUTE, b=copied)
    finally:
        with transaction() as db:
            db.execute(delete(ScoreRow).where(ScoreRow.run_id == ROUTE))
    assert (said["quality"], said["metrics"]) == (None, ["exact_match", "token_f1"])
    assert (said["rows"], said["causes"], said["usd_per_1000"]["n"]) == (150, {"threshold": 2}, 150)
    assert "quality   not comparable: the runs were scored by 'exact_match' and 'token_f1'" in shown
    assert "0.00 → 0.50" not in shown
    assert ["not comparable" in warning.value for warning in page.test.warning] == [True]
    assert "Metric of A Metric of B exact_match token_f1" in page.words
    assert "Fixed / broken 0 / 0 " in page.words
    assert "Quality, by the workload's metric" not in page.words
    assert "quality 0.00" in page.words
    assert "quality 0.50" in page.words


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
