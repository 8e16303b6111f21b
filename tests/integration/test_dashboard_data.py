"""The page Data, on a real ledger: versions, differences and drift as counted from the rows themselves."""

import math
import re
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from sqlalchemy import update
from streamlit.testing.v1 import AppTest

from dashboards import distributions, drifts, versions
from dashboards.queries import Row, of_version, rows
from domain.canonical import canonical
from domain.datasets import BadRow, Record, Split
from domain.drifts import stability
from domain.errors import Place
from domain.outcomes import Outcome
from domain.workloads import TierName
from infra.db.session import transaction
from infra.db.store import answers, changes, deliveries, runs
from infra.db.store.answers import StoredAnswer
from infra.db.tables import RecordRow
from infra.snapshots import store_snapshot, take_version

pytestmark = pytest.mark.usefixtures("ledger")
PAGE = "from dashboards.pages import data; data.show()"
HOSTILE = "<img src=x onerror=alert(1)> ![x](http://127.0.0.1:9/x)"
BEFORE, AFTER = 300, 320


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    rows.clear()
    of_version.clear()


def records(name: str, count: int, *, longer: int = 0) -> list[Record]:
    """Labelled rows; `longer` of them have other texts, so that their content has changed."""
    return [
        Record(
            f"{name}-{n}",
            {"text": "x" * (n % 50) + ("longer " * 30 if n < longer else "")},
            {"topic": "card" if n % 3 else "loan"},
            Split.TEST if n % 4 else Split.CALIBRATION,
            Place("https://me:hush@host/rows.jsonl?key=hush", n + 1),
        )
        for n in range(count)
    ]


def bad(name: str) -> list[BadRow]:
    """Three rows that cannot be used, for two reasons."""
    return [BadRow(Place(f"{name}.jsonl", n, field="text"), "is missing", "hush") for n in (7, 8)] + [
        BadRow(Place(f"{name}.jsonl", 9), HOSTILE, "hush")
    ]


@dataclass(frozen=True, slots=True)
class Read:
    """Two versions of a workload's data and a run on each."""

    workload: str
    before: str
    after: str
    run_before: str
    run_after: str


def ran(workload: str, version: str, of: Sequence[Record], *, confident: float, kind: str = "optimize") -> str:
    """A completed run on a version that answers `card` to all, with confidences around one."""
    run_id = str(uuid.uuid4())
    spec = {"decisive": "topic"}
    with transaction() as db:
        runs.open_run(db, run_id, kind=kind, workload=workload, workload_hash="0" * 64, spec=spec, meters={})
    take_version(run_id, version, (Split.CALIBRATION, Split.TEST))
    said = {"topic": "card"}
    spread = {r.key: confident + 0.1 * math.sin(n) for n, r in enumerate(of)}
    with transaction() as db:
        given = [StoredAnswer(r.key, "cheap", "0" * 64, said, spread[r.key], 0, 1, 0.0, None) for r in of]
        answers.save_answers(db, run_id, given)
        settled = [Outcome(r.key, TierName.CHEAP, dict(said), spread[r.key], escalated=False, usd=0.0) for r in of]
        answers.save_settled(db, run_id, version, settled)
        runs.close_run(db, run_id, state="completed", meters={})
    return run_id


@pytest.fixture(scope="module")
def read(ledger: str) -> Read:
    """Ten rows have become longer, five are gone and 25 are new."""
    workload = f"data-{uuid.uuid4().hex[:8]}"
    uri = f"s3://me:hush@bucket/{workload}.jsonl?signature=hush"
    first, second = records(workload, BEFORE), records(workload, AFTER + 5, longer=10)[:-5]
    second = [row for row in second if row.record_id not in {f"{workload}-{n}" for n in range(100, 105)}]
    before, _ = store_snapshot(first, uri=uri)
    after, _ = store_snapshot([*second, *bad(workload)], uri=uri)
    one = ran(workload, before, first, confident=0.4)
    two = ran(workload, after, second, confident=0.7)
    with transaction() as db:
        said = [(workload, 0.0)]
        deliveries.receive(db, source="own", delivery_id=workload, body_hash="0" * 64, event="updated", datasets=said)
        numbers = changes.waiting(db, workload)
        changes.settle(db, numbers, state="started", version=after, run_id=two)
    return Read(workload, before, after, one, two)


def shown(**query: str) -> AppTest:
    """The page as it is with these in its address."""
    page = AppTest.from_string(PAGE, default_timeout=60)
    page.query_params.update(query)
    page.run()
    assert not page.exception
    return page


def html_of(page: AppTest) -> str:
    """All that the page shows by way of HTML: figures and tables."""
    return "\n".join(element.proto.body for element in page.get("html"))


def cells(html: str, beginning: str) -> list[str]:
    """The cells of the first row of a table whose text holds this."""
    row = next(row for row in html.split("<tr>") if beginning in row and "<td" in row)
    return [re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?</td>", row)]


def test_versions_with_what_each_changed_and_led_to(read: Read) -> None:
    html = html_of(shown(workload=read.workload))
    place = f"s3://bucket/{read.workload}.jsonl?…"
    newest, oldest = cells(html, read.after[:12]), cells(html, read.before[:12])
    assert newest[1:] == [read.after[:12], place, "315", "3", "100.0 %", "20", "10", "5", "1", "1"]
    assert oldest[1:] == [read.before[:12], place, "300", "0", "100.0 %", "–", "–", "–", "1", "0"]
    assert f'href="/run?run={read.run_after}"' in html
    assert "hush" not in html


def test_differences_name_the_rows(read: Read) -> None:
    assert versions.numbers(read.before, read.after) == {"added": 20, "changed": 10, "removed": 5}
    found = versions.differences(read.before, read.after)
    ids = {what: {row["record_id"] for row in found if row["what"] == what} for what in ("changed", "removed")}
    assert ids["changed"] == {f"{read.workload}-{n}" for n in range(10)}
    assert ids["removed"] == {f"{read.workload}-{n}" for n in range(100, 105)}
    assert all(row["file"] == "https://host/rows.jsonl?…" for row in found)


def test_bad_rows_with_place_and_reason(read: Read) -> None:
    html = html_of(shown(workload=read.workload))
    assert cells(html, "is missing") == ["text", "is missing", "2", "0.63 %"]
    assert cells(html, f"{read.workload}.jsonl</td>") == [f"{read.workload}.jsonl", "7", "text", "is missing"]
    assert "<img" not in html
    assert "&lt;img" in html


def test_counts_by_split_are_those_of_the_rows(read: Read) -> None:
    of = Counter(row.split for row in records(read.workload, BEFORE))
    page = shown(workload=read.workload, b=read.before)
    said = f"{of[Split.CALIBRATION]} for the certificate; {of[Split.TEST]} for the test; 300 of n = 300 rows have gold"
    assert any(caption.value.startswith(said) for caption in page.caption)


def test_drift_is_the_index_of_counts_made_elsewhere(read: Read) -> None:
    first, second = records(read.workload, BEFORE), records(read.workload, AFTER, longer=10)
    second = [row for row in second if row.record_id not in {f"{read.workload}-{n}" for n in range(100, 105)}]
    lengths = [[len(canonical(row.inputs)) for row in some] for some in (first, second)]
    edges = sorted(set(np.quantile(lengths[0], np.arange(1, 10) / 10, method="inverted_cdf")))
    counted = [np.bincount(np.digitize(some, edges), minlength=len(edges) + 1).tolist() for some in lengths]
    found = distributions.lengths(read.before, read.after, rows=AFTER).stability
    assert found == stability(*counted)
    html = html_of(shown(workload=read.workload))
    assert found is not None
    assert cells(html, "Length of the inputs")[1:3] == [f"{found.index:.4f}", f"{found.by_chance:.4f}"]
    assert cells(html, "Confidence of the cheap answer")[-1] == "drifted"
    assert cells(html, "Gold label, topic")[-1] == "as by chance"
    assert cells(html, "Answered label, topic")[-1] == "cannot be compared"  # all answers are the same


def test_confidences_are_those_of_the_chosen_runs(read: Read) -> None:
    pair = distributions.confidences(read.run_before, read.run_after, rows=AFTER)
    assert sum(before for _, before, _ in pair.buckets) == 300
    assert pair.buckets[-1][2] == 315  # all of the second run's are above all of the first one's
    assert pair.buckets[-1][0].startswith("from 0.")
    none = distributions.confidences(read.run_before, read.run_before, rows=AFTER).stability
    assert none is not None
    assert none.index == 0


def test_of_many_rows_the_same_sample_is_counted_on_both_sides(read: Read) -> None:
    some = distributions.gold(read.before, read.before, "topic", rows=2 * distributions.SAMPLE)
    counted = [(before, after) for _, before, after in some.buckets]
    assert all(before == after for before, after in counted)
    assert 100 < sum(before for before, _ in counted) < 200  # about half of 300


def test_a_run_in_the_address_chooses_its_version(read: Read) -> None:
    assert f"Version {read.before[:12]}" in [
        heading.value for heading in shown(workload=read.workload, run=read.run_before).header
    ]


def test_one_version_is_compared_with_nothing() -> None:
    workload = f"single-{uuid.uuid4().hex[:8]}"
    of = records(workload, 5)
    version, _ = store_snapshot(of, uri=workload)
    ran(workload, version, of, confident=0.5)
    page = shown(workload=workload)
    assert "Drift" not in [heading.value for heading in page.header]
    assert any("no other version" in caption.value for caption in page.caption)


def test_a_run_without_data_says_what_to_do() -> None:
    workload = f"none-{uuid.uuid4().hex[:8]}"
    with transaction() as db:
        runs.open_run(
            db, str(uuid.uuid4()), kind="optimize", workload=workload, workload_hash="0" * 64, spec={}, meters={}
        )
    assert [code.value for code in shown(workload=workload).code] == [f"headrace run {workload}"]


def test_labels_of_another_kind_than_text_are_counted(read: Read) -> None:
    kept = distributions.gold(read.before, read.after, "topic", rows=AFTER)
    with transaction() as db:
        mine = update(RecordRow).where(RecordRow.dataset_version == read.before, RecordRow.line <= 3)
        db.execute(mine.values(gold={"topic": None, "n": 5}))
    try:
        rows.clear()
        # No version changes but by a test like this one: what was counted once is not counted again.
        assert distributions.gold(read.before, read.after, "topic", rows=AFTER) == kept
        of_version.clear()
        pair = distributions.gold(read.before, read.after, "topic", rows=AFTER)
        assert ("–", 3, 0) in pair.buckets
        page = shown(workload=read.workload, drift="Gold label, topic")
        assert not page.exception
    finally:
        with transaction() as db:
            for row in records(read.workload, 3):
                kept = update(RecordRow).where(RecordRow.dataset_version == read.before, RecordRow.key == row.key)
                db.execute(kept.values(gold=row.gold))


def run(kind: str, bundle: str | None, *, state: str = "completed", id_: str = "") -> Row:
    """A run as the page offers it."""
    return {"run_id": id_ or uuid.uuid4().hex, "kind": kind, "bundle_hash": bundle, "state": state}


def test_the_runs_that_are_compared_differ_in_no_more_than_the_data_if_there_are_such() -> None:
    tuned, routed, newer = run("optimize", "a" * 64), run("route", "a" * 64), run("route", "b" * 64)
    broken = run("route", "b" * 64, state="failed")
    assert drifts.alike([tuned, routed], [newer]) == (routed, newer)
    assert drifts.alike([tuned, newer, routed], [run("optimize", "c" * 64), routed]) == (routed, routed)
    assert drifts.alike([routed, broken], [newer]) == (routed, newer)
    assert drifts.alike([tuned], [newer]) == (tuned, newer)


def test_what_else_than_the_data_differs_is_said() -> None:
    tuned, routed = run("optimize", "a" * 64), run("route", "a" * 64)
    assert drifts.apart(tuned, routed).startswith("These runs are of different kinds (optimize and route): ")
    told = drifts.apart(routed, run("route", "b" * 64))
    assert told.startswith("These runs used different bundles (aaaaaaaa and bbbbbbbb): ")
    assert drifts.apart(routed, run("route", None)).startswith("These runs are not known to have used one bundle (")
    assert drifts.apart(routed, run("route", "a" * 64)) == ""


def test_a_newer_run_of_another_kind_is_not_compared_by_itself() -> None:
    workload = f"kinds-{uuid.uuid4().hex[:8]}"
    first, second = records(workload, 40), records(workload, 50)
    before, after = (store_snapshot(of, uri=workload)[0] for of in (first, second))
    ids = [ran(workload, before, first, confident=0.5, kind="route")]
    ids.append(ran(workload, after, second, confident=0.5, kind="route"))
    newest = ran(workload, after, second, confident=0.5)
    with transaction() as db:
        for each in ids:
            runs.change_run(db, each, bundle_hash="a" * 64)
    page = shown(workload=workload, b=after)
    assert [page.query_params[key] for key in ("run_a", "run_b")] == ids
    assert not [each.value for each in page.caption if drifts.NOT_ALL in each.value]
    told = [
        each.value for each in shown(workload=workload, b=after, run_b=newest).caption if drifts.NOT_ALL in each.value
    ]
    assert told == [f"These runs are of different kinds (route and optimize): {drifts.NOT_ALL}"]


def test_lists_that_are_cut_say_of_how_many() -> None:
    workload, of = f"cut-{uuid.uuid4().hex[:8]}", records("cut", 3)
    broken = [BadRow(Place("rows.jsonl", n), f"reason {n % 201}", "") for n in range(5001)]
    before, _ = store_snapshot(of[:2], uri=workload)
    after, _ = store_snapshot([*of, *broken], uri=workload)
    ran(workload, before, of[:2], confident=0.5)
    for _ in range(drifts.OFFERED + 1):
        ran(workload, after, of, confident=0.5)
    said = [each.value for each in shown(workload=workload, b=after).caption if each.value.startswith("The ")]
    assert said == [
        "The most frequent 200 of n = 201 reasons.",
        "The first 5,000 of n = 5,001 rows by file and line, here and in the download.",
        "The newest 50 of n = 51 runs with answers to this version are offered.",
    ]
