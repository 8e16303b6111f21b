"""Quality and judges: scores, slices, confusions and a judge's agreement, against numbers computed another way."""

import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score  # pyright: ignore[reportUnknownVariableType]
from sqlalchemy import delete, insert, select, text

from dashboards import qualities
from domain.scores import estimate
from infra.db.session import transaction
from infra.db.store import answers, runs
from infra.db.store.answers import StoredScore
from infra.db.tables import (
    AnswerRow,
    DatasetVersionRow,
    OutcomeRow,
    QuarantinedRow,
    RecordRow,
    RunRow,
    RunRowRow,
    ScoreRow,
)
from infra.exchange import import_runs
from infra.scoring import JUDGES_METRIC
from tests.integration.recorded_runs import FILE, lines
from tests.integration.shown_pages import RECORDED, own_workload, save_run, show

pytestmark = pytest.mark.timeout(120)

METRIC, DECISIVE = RECORDED["spec"]["metric"], RECORDED["spec"]["decisive"]
HOSTILE = "<script>window.ran = 1</script>"


@pytest.fixture(scope="module")
def judged(ledger: str) -> str:
    """The recorded optimisation once more under a name of its own, some rows with a hostile label, some in quarantine
    though their cheap answer would have been right, judged in part."""
    import_runs(FILE)
    run_id, name = str(uuid.uuid4()), own_workload()
    with transaction() as db:
        for table in (RunRow, RunRowRow, AnswerRow, OutcomeRow, ScoreRow):
            columns: Any = table.__table__.columns
            key = "id" if table is RunRow else "run_id"
            for row in db.execute(select(*columns).where(columns[key] == RECORDED["id"])).mappings().all():
                db.add(table(**{**row, key: run_id, **({"workload": name} if table is RunRow else {})}))
            db.flush()
        ended = select(OutcomeRow).where(OutcomeRow.run_id == run_id).order_by(OutcomeRow.record_key).limit(3)
        for outcome in db.scalars(ended):
            outcome.output = {DECISIVE: HOSTILE}
        wrong = select(ScoreRow.record_key).where(
            ScoreRow.run_id == run_id, ScoreRow.tier == "strong", ScoreRow.metric == METRIC, ScoreRow.value == 0
        )
        for key in db.scalars(wrong.order_by(ScoreRow.record_key.desc())).all()[:20]:
            db.delete(db.get_one(OutcomeRow, (run_id, key)))
            db.get_one(AnswerRow, (run_id, "strong", key)).output = None
            lost = {"stage": "validate", "file": "f", "line": 1, "field": None, "reason": "no valid answer"}
            db.add(QuarantinedRow(run_id=run_id, record_key=key, **lost))
        mine = (ScoreRow.run_id == run_id, ScoreRow.tier == "cheap", ScoreRow.metric == METRIC)
        scores = db.scalars(select(ScoreRow).where(*mine).order_by(ScoreRow.record_key).limit(40)).all()
        opinions = [
            StoredScore(row.record_key, "cheap", JUDGES_METRIC, 1 - row.value if number % 5 == 0 else row.value)
            for number, row in enumerate(scores)
        ]
        answers.save_scores(db, run_id, opinions)
    return run_id


def workload_of(run_id: str) -> str:
    """The name that a run's workload has."""
    with transaction() as db:
        return runs.load_run(db, run_id).workload


def final(run_id: str, split: str) -> list[tuple[RecordRow, OutcomeRow | None, float]]:
    """Each row of a split, or of all, with its outcome and the quality of that; 0 for rows in quarantine."""
    with transaction() as db:
        run = runs.load_run(db, run_id)
        records = {
            row.key: row
            for row in db.scalars(select(RecordRow).where(RecordRow.dataset_version == run.dataset_version))
        }
        mine = (ScoreRow.run_id == run_id, ScoreRow.metric == METRIC)
        scores = {(row.record_key, row.tier): row.value for row in db.scalars(select(ScoreRow).where(*mine))}
        outcomes = db.scalars(select(OutcomeRow).where(OutcomeRow.run_id == run_id)).all()
        lost = db.scalars(select(QuarantinedRow.record_key).where(QuarantinedRow.run_id == run_id)).all()
        every = [(records[row.record_key], row, scores[row.record_key, row.tier]) for row in outcomes]
        every += [(records[key], None, 0.0) for key in lost]
        return [each for each in every if split in (each[0].split, "all")]


def says(values: list[float]) -> str:
    """A mean as the page has it."""
    found = estimate(np.array(values))
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def test_scores_have_n_and_interval_by_metric_and_tier(judged: str) -> None:
    words = show("quality", workload=workload_of(judged), run=judged).words
    for tier in ("cheap", "strong"):
        values = [
            row["value"]
            for row in lines(FILE, "scores")
            if (row["run_id"], row["tier"], row["metric"]) == (RECORDED["id"], tier, METRIC)
        ]
        assert f"{METRIC} {tier} {says(values)} {len(values)} yes" in words


@pytest.mark.parametrize(
    ("by", "split"), [("split", ""), ("file", ""), ("tier", "all"), ("tier", "calibration"), ("gold_label", "")]
)
def test_each_slice_has_its_quality_and_says_when_it_is_small(judged: str, by: str, split: str) -> None:
    slices: dict[str, list[float]] = {}
    for record, outcome, quality in final(judged, "all" if by == "split" else split or "test"):
        tier = outcome.tier if outcome else "none: no valid answer"
        names = {"split": record.split, "file": record.file, "tier": tier}
        slices.setdefault(names.get(by) or str((record.gold or {})[DECISIVE]), []).append(quality)
    asked = {"split": split} if split else {}
    words = show("quality", workload=workload_of(judged), run=judged[:8], by=by, **asked).words
    for name, values in slices.items():
        few = " few rows (n < 30)" if len(values) < 30 else ""
        assert f" {name} {says(values)} {len(values)}{few}" in words


def test_confusions_are_counted_and_hostile_labels_escaped(judged: str) -> None:
    shown = show("quality", workload=workload_of(judged), run=judged, split="all")
    pairs = Counter(
        (str((record.gold or {})[DECISIVE]), str(row.output[DECISIVE]) if row else "no valid answer")
        for record, row, _ in final(judged, "all")
    )
    right, n = sum(count for (gold, said), count in pairs.items() if gold == said), sum(pairs.values())
    told = "final answers to rows of every split have the gold label"
    assert f"{right:,} of {n:,} {told} ({100 * right / n:.1f} %)" in shown.words
    assert "no valid answer" in {said for _, said in pairs}
    (gold, said), count = next(each for each in pairs.most_common() if each[0][0] != each[0][1])
    of_gold = sum(rows for (label, _), rows in pairs.items() if label == gold)
    assert f"{gold} {said} {count} {of_gold} {100 * count / of_gold:.1f} %" in shown.words
    assert "&lt;script&gt;" in "".join(shown.blocks)
    assert not any("<script" in block for block in shown.blocks)


def test_a_tiers_own_answers_can_be_looked_at(judged: str) -> None:
    gold = {row["key"]: row["gold"] for row in lines(FILE, "records") if row["gold"]}
    mine = [row for row in lines(FILE, "answers") if row["run_id"] == RECORDED["id"] and row["tier"] == "strong"]
    test = {row["key"] for row in lines(FILE, "records") if row["split"] == "test"}
    mine = [row for row in mine if row["record_key"] in test]
    right = sum(row["output"][DECISIVE] == gold[row["record_key"]][DECISIVE] for row in mine if row["output"])
    words = show("quality", workload=workload_of(judged), run=judged, answers="strong").words
    assert f"{right:,} of {len(mine):,} answers of the strong tier to rows of the test split have the" in words


def test_a_judge_is_held_against_gold_with_kappa(judged: str) -> None:
    with transaction() as db:
        mine = select(ScoreRow).where(ScoreRow.run_id == judged, ScoreRow.tier == "cheap")
        scores = {(row.record_key, row.metric): row.value for row in db.scalars(mine)}
    pairs = [(value, scores[key, METRIC]) for (key, metric), value in scores.items() if metric == JUDGES_METRIC]
    kappa = cohen_kappa_score(*zip(*pairs, strict=True))
    agreed = sum(one == two for one, two in pairs)
    ends = stats.binomtest(agreed, len(pairs)).proportion_ci(method="wilson")
    words = show("quality", workload=workload_of(judged), run=judged).words
    assert f"cheap {agreed / 40:.3f} [{ends.low:.3f}, {ends.high:.3f}] {kappa:.3f} [" in words
    assert "] 40 " in words
    assert "judged valid answers only, the first of them in the order of the data" in words
    (line,) = qualities.judged_figures(qualities.judged(judged))
    assert (line["n"], line["agreement"], line["kappa"]) == (40, agreed / 40, pytest.approx(kappa))
    assert line["kappa_low"] < line["kappa"] < line["kappa_high"]


ROWS, PAIRED, RIGHT = 10_300, 340, 5
"""Rows of a run with very many labels, those whose label two have, and those that got the gold label."""


@pytest.fixture(scope="module")
def labelled(ledger: str) -> Iterator[str]:
    """A run with more labels than are shown: each answered with a label of its own, all but one on cheap."""
    import_runs(FILE)
    run_id, version = str(uuid.uuid4()), uuid.uuid4().hex * 2
    given: list[dict[str, Any]] = []
    for number in range(ROWS):
        right = number >= ROWS - RIGHT
        label = f"pair{number // 2}" if number < PAIRED else f"z{number}" if right else f"one{number}"
        said = label if right else f"said{number}"
        place = {"record_key": f"{number:064x}", "tier": "strong" if number == 0 else "cheap"}
        given.append({**place, "gold": {DECISIVE: label}, "output": {DECISIVE: said}, "value": float(right)})
    with transaction() as db:
        db.add(DatasetVersionRow(hash=version, uri="many.jsonl", records=ROWS, bad_rows=0))
        db.flush()
        recorded = db.execute(select(*RunRow.__table__.columns).where(RunRow.id == RECORDED["id"])).mappings().one()
        db.add(RunRow(**{**recorded, "id": run_id, "workload": own_workload(), "dataset_version": version}))
        db.flush()
        where: dict[str, Any] = {
            "split": "test",
            "inputs": {},
            "file": "many.jsonl",
            "line": None,
            "dataset_version": version,
        }
        mine: dict[str, Any] = {"run_id": run_id, "metric": METRIC, "confidence": None, "escalated": False, "usd": 0.0}
        rows = [{**row, **mine} for row in given]
        records = [
            {**where, "key": row["record_key"], "ordinal": n, "record_id": str(n), "gold": row["gold"]}
            for n, row in enumerate(given)
        ]
        for table, values in ((RecordRow, records), (OutcomeRow, rows), (ScoreRow, rows)):
            columns = set(table.__table__.columns.keys())
            db.execute(insert(table), [{key: row[key] for key in row if key in columns} for row in values])
    yield run_id
    with transaction() as db:
        for table in (ScoreRow, OutcomeRow):
            db.execute(delete(table).where(table.run_id == run_id))
        db.execute(delete(RunRow).where(RunRow.id == run_id))
        db.execute(delete(RecordRow).where(RecordRow.dataset_version == version))
        db.execute(delete(DatasetVersionRow).where(DatasetVersionRow.hash == version))


def test_small_slices_are_not_crowded_out_by_many_labels_and_what_is_left_out_is_told(labelled: str) -> None:
    found = qualities.slices(labelled, 1.0)
    labels = ROWS - PAIRED // 2
    for split in ("all", "test"):
        assert {row["slice"]: row["n"] for row in found[split, "tier"].lines} == {"cheap": ROWS - 1, "strong": 1}
        by_label = found[split, "gold_label"]
        assert (len(by_label.lines), by_label.slices, by_label.rows) == (40, labels, ROWS)
    assert [row["slice"] for row in found["all", "split"].lines] == ["test"]
    words = show("quality", workload=workload_of(labelled), run=labelled, by="gold_label").words
    assert f"The 40 largest of {labels:,} slices; {ROWS - 80:,} rows are in the others." in words
    assert "the lowest of the 40 largest is" in words


def test_shares_of_a_confusion_that_is_cut_are_of_all_rows(labelled: str) -> None:
    found = qualities.confusion(labelled, 1.0, "test", "final")
    assert (found.n, found.pairs, found.right, len(found.lines)) == (ROWS, ROWS, RIGHT, qualities.MOST_PAIRS)
    cut = found.lines[-1]
    assert cut["gold"] not in {row["gold"] for row in found.lines[:-1]}
    assert (cut["rows"], cut["of_gold"]) == (1, 2)
    words = show("quality", workload=workload_of(labelled), run=labelled).words
    assert f"Of {ROWS:,} pairs of labels the {qualities.MOST_PAIRS:,} most frequent are listed." in words


def test_without_a_judge_the_page_says_how_to_have_one(ledger: str) -> None:
    import_runs(FILE)
    words = show("quality", workload=RECORDED["workload"], run=RECORDED["id"]).words
    assert "No judge looked at this run's answers." in words
    assert "enabled: true" in words


def test_a_workload_without_scores_says_what_to_run(ledger: str) -> None:
    import_runs(FILE)
    name = own_workload()
    save_run(name)
    words = show("quality", workload=name).words
    assert "No run of this workload has scores" in words
    assert f"headrace run {name}" in words


def test_slices_look_at_no_other_run(judged: str) -> None:
    with transaction() as db:
        db.execute(text("SET LOCAL enable_seqscan = off; SET LOCAL search_path = views"))
        plan = db.scalar(text(f"EXPLAIN (FORMAT JSON) {qualities.OF_SLICES}"), {"run": judged, "below": "g"})
    looked = [node for node in _nodes(plan[0]["Plan"]) if node.get("Relation Name") in {"outcomes", "quarantined"}]
    assert {node["Relation Name"] for node in looked} == {"outcomes", "quarantined"}
    assert [node for node in looked if "run_id" not in node.get("Index Cond", "")] == []


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for part in node.get("Plans", []):
        yield from _nodes(part)
