"""Compare: the numbers of `headrace diff` and `headrace bundle diff`, flipped rows side by side, and what differs."""

import shlex
import uuid
from collections.abc import Iterator
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, select

from dashboards import paired_runs
from dashboards.paired_runs import Compared, Measure, Pair, Side
from domain.bundle_diffs import compare_cascades
from domain.comparisons import MOST_VALUES, Difference, paired_difference
from domain.datasets import Split
from domain.run_diffs import Flip, RunDiff
from infra.aliasing import judged_rows
from infra.comparing import compare_runs
from infra.db.bundle_tables import BundleRow
from infra.db.session import transaction
from infra.db.store import bundles, runs
from infra.db.tables import AnswerRow, OutcomeRow, QuarantinedRow, RecordRow, RunRow, RunRowRow, ScoreRow
from infra.exchange import import_runs
from tests.integration.recorded_runs import FILE, run_of
from tests.integration.shown_pages import RECORDED, own_workload, save_run, show

pytestmark = pytest.mark.timeout(120)

OPTIMIZE = run_of("optimize")
COPIED = (RunRow, RunRowRow, AnswerRow, OutcomeRow, ScoreRow)
HOSTILE = "<script>window.ran = 1</script> ![](http://127.0.0.1:9/x)"


@pytest.fixture(scope="module")
def other(ledger: str) -> Iterator[str]:
    """The recorded optimisation once more by another bundle: every row is the strong tier's, which says another thing
    to some rows; five rows are in quarantine."""
    import_runs(FILE)
    run_id = str(uuid.uuid4())
    with transaction() as db:
        made = bundles.load_bundle(db, runs.load_run(db, OPTIMIZE).bundle_hash or "")
        prompt = made.strong.prompt.model_copy(update={"instructions": HOSTILE})
        strong = made.strong.model_copy(update={"prompt": prompt})
        bundle = made.model_copy(update={"threshold": 2.0, "strong": strong})
        for table in COPIED:
            columns: Any = table.__table__.columns
            key = "id" if table is RunRow else "run_id"
            for row in db.execute(select(*columns).where(columns[key] == OPTIMIZE)).mappings().all():
                db.add(table(**{**row, key: run_id, **({"bundle_hash": bundle.hash} if table is RunRow else {})}))
            db.flush()
        bundles.save_bundle(db, bundle, run_id=run_id)
        mine = select(AnswerRow).where(AnswerRow.run_id == run_id).order_by(AnswerRow.record_key)
        given = {(row.record_key, row.tier): row for row in db.scalars(mine)}
        for key, tier in list(given)[:24]:
            if tier == "strong":
                given[key, tier].output = {"topic": HOSTILE}
                db.get_one(ScoreRow, (run_id, key, tier, "exact_match")).value = 0.0
        ended = select(OutcomeRow).where(OutcomeRow.run_id == run_id).order_by(OutcomeRow.record_key.desc())
        for number, row in enumerate(db.scalars(ended).all()):
            cheap, strong_one = given[row.record_key, "cheap"], given[row.record_key, "strong"]
            row.tier, row.escalated, row.output = "strong", True, strong_one.output or {}
            row.usd = cheap.usd - sum((cheap.signal_usd or {}).values()) + strong_one.usd
            row.confidence = strong_one.confidence
            if number in (3, 40, 41, 42, 43):
                db.delete(row)
                strong_one.output = None
                db.get_one(ScoreRow, (run_id, row.record_key, "strong", "exact_match")).value = 0.0
                lost = {"stage": "validate", "file": "f", "line": 1, "field": None, "reason": HOSTILE}
                db.add(QuarantinedRow(run_id=run_id, record_key=row.record_key, **lost))
    yield run_id
    with transaction() as db:  # other tests export the runs of this bundle
        db.execute(delete(BundleRow).where(BundleRow.hash == bundle.hash))


def shares(found: Difference) -> str:
    """A difference as the page's table has it."""
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] {found.n} {found.up} {found.down}"


def _fell(found: RunDiff) -> dict[str, Flip]:
    """The flips whose quality fell, by the rows' names."""
    scored = [flip for flip in found.flips if flip.after.quality is not None]
    return {flip.before.row: flip for flip in scored if (flip.after.quality or 0) < (flip.before.quality or 0)}


def test_two_runs_show_the_numbers_of_headrace_diff(other: str) -> None:
    _, _, found = compare_runs(OPTIMIZE, other)
    assert found.flips
    assert found.quality is not None
    assert found.quality.mean < 0
    words = show("compare", workload=RECORDED["workload"], a=OPTIMIZE, b=other[:8]).words
    assert f"{shares(found.quality)} {found.quality.p_value:.3g} {found.quality.method}" in words
    usd = found.usd_per_1000
    assert f"{usd.mean:+.4f} [{usd.low:+.4f}, {usd.high:+.4f}] {usd.n}" in words
    assert f"Rows in both {found.rows} " in words
    assert f"Ended in another way {len(found.flips)} " in words
    rose = [flip for flip in found.flips if (flip.after.quality or 0) > (flip.before.quality or 0)]
    assert f"Fixed / broken {len(rose)} / {len(_fell(found))} " in words
    assert f"headrace diff {OPTIMIZE[:8]} {other[:8]}" in words


def test_flipped_rows_stand_side_by_side_with_what_they_are_put_down_to(other: str) -> None:
    _, _, found = compare_runs(OPTIMIZE, other)
    shown = show("compare", workload=RECORDED["workload"], a=OPTIMIZE, b=other, kind="broken")
    broken = _fell(found)
    rows = [part for part in "".join(shown.blocks).split('<div class="hr-row">')[1:] if ": broken<" in part]
    assert len(rows) == min(10, len(broken))
    for part in rows:
        name = next(name for name in broken if f"Row <bdi>{name}</bdi>: broken" in part)
        assert f"put down to: {' + '.join(broken[name].parts)}" in part
    assert not any("<script" in block or "<img" in block for block in shown.blocks)
    lost = show("compare", workload=RECORDED["workload"], a=OPTIMIZE, b=other, tiers="lost").words
    assert f"quarantined: {HOSTILE}" in lost
    assert "1 to 5 of 5 rows" in lost


def test_what_differs_between_the_bundles_is_shown_escaped(other: str) -> None:
    shown = show("compare", workload=RECORDED["workload"], a=OPTIMIZE, b=other)
    diff = next(block for block in shown.blocks if 'aria-label="Prompt of the strong tier"' in block)
    assert '<span class="plus">+&lt;script&gt;window.ran = 1&lt;/script&gt; ![](http://127.0.0.1:9/x)' in diff
    assert " threshold " in shown.words
    assert "Prompt of the cheap tier equal" in shown.words


def test_two_bundles_show_the_numbers_of_bundle_diff_on_the_test_rows(other: str) -> None:
    with transaction() as db:
        one, two = (bundles.find_bundle(db, runs.load_run(db, run).bundle_hash or "") for run in (OPTIMIZE, other))
    thresholds = one.bundle.threshold, two.bundle.threshold
    found = compare_cascades(judged_rows(one, Split.TEST), judged_rows(two, Split.TEST), thresholds=thresholds)
    shown = show("compare", workload=RECORDED["workload"], a=one.bundle.hash[:12], b=two.bundle.hash)
    assert f"headrace bundle diff {one.bundle.hash[:12]} {two.bundle.hash[:12]}" in shown.words
    assert f"Test rows in both {found.quality.n} " in shown.words
    assert shares(found.quality) in shown.words
    usd = found.usd_per_1000
    assert f"{usd.mean:+.4f} [{usd.low:+.4f}, {usd.high:+.4f}] {usd.n}" in shown.words


def test_usd_is_what_was_spent_on_a_row_answered_or_not(other: str) -> None:
    with transaction() as db:
        version = runs.load_run(db, OPTIMIZE).dataset_version or ""
        mine = db.scalars(select(AnswerRow).where(AnswerRow.run_id == other))
        spent: dict[str, float] = {}
        for row in mine:  # the bundle of this run asks the cheap tier first, and pays for no signal
            spent[row.record_key] = spent.get(row.record_key, 0.0) + row.usd - sum((row.signal_usd or {}).values())
        ended = select(OutcomeRow.record_key, OutcomeRow.usd).where(OutcomeRow.run_id == OPTIMIZE)
        before = dict(db.execute(ended).tuples().all())
    expected = 1000 * sum(spent[key] - before[key] for key in before) / len(before)
    _, _, diff = compare_runs(OPTIMIZE, other)
    pair = Pair(Side(OPTIMIZE, version, "exact_match"), Side(other, version, "exact_match"))
    found = {one.measure: one.difference for one in paired_runs.overall(pair, ended=False).measures}[Measure.USD]
    assert (found.n, diff.usd_per_1000.n) == (len(before), len(before))
    assert found.mean == pytest.approx(expected)
    assert diff.usd_per_1000.mean == pytest.approx(expected)


@pytest.mark.parametrize(("share", "below"), [(1.0, "g"), (1 / 16, "1")])
def test_tokens_tiers_and_validity_are_those_of_the_rows_and_a_sample_is_of_the_first_keys(
    other: str, share: float, below: str
) -> None:
    with transaction() as db:
        version = runs.load_run(db, OPTIMIZE).dataset_version or ""
        tokens = {
            (row.run_id, row.tier, row.record_key): row.tokens
            for row in db.scalars(select(AnswerRow).where(AnswerRow.run_id.in_((OPTIMIZE, other))))
        }
        ended = {
            run: {row.record_key: row.tier for row in db.scalars(select(OutcomeRow).where(OutcomeRow.run_id == run))}
            for run in (OPTIMIZE, other)
        }
    pair = Pair(*(Side(run, version, "exact_match") for run in (OPTIMIZE, other)), share=share)
    found = {one.measure: one for one in paired_runs.overall(pair, ended=False).measures}
    both = sorted(key for key in ended[OPTIMIZE] if key in ended[other] and key < below)
    assert (0 < len(both) < len(ended[other])) is (share < 1)
    assert len(ended[other]) < len(ended[OPTIMIZE])  # the others are in quarantine, and no tier answered them

    def spent(run: str, key: str) -> int:
        cheap, strong = (tokens[run, tier, key] for tier in ("cheap", "strong"))
        return cheap if ended[run][key] == "cheap" else cheap + strong

    before, after = (np.array([float(spent(run, key)) for key in both]) for run in (OPTIMIZE, other))
    assert found[Measure.TOKENS].difference == paired_difference(before, after, bounded=False)
    escalated = np.array([float(ended[OPTIMIZE][key] == "strong") for key in both])
    strong = paired_difference(escalated, np.ones(len(both)))
    assert found[Measure.STRONG].difference == strong
    assert found[Measure.VALID].difference.n >= len(both)


def test_rows_of_two_versions_are_paired_by_their_names(other: str) -> None:
    with transaction() as db:
        version = runs.load_run(db, OPTIMIZE).dataset_version or ""
        records = list(db.scalars(select(RecordRow).where(RecordRow.dataset_version == version)))
        names = {row.key: row.record_id for row in records}
    assert len(set(names.values())) == len(names)
    one, two = Side(OPTIMIZE, version, "exact_match"), Side(other, version, "exact_match")
    by_key = paired_runs.overall(Pair(one, two), ended=False)
    named = _ByName(one, two)
    assert named.source != Pair(one, two).source
    by_name = paired_runs.overall(named, ended=False)
    assert replace(by_name, measures=()) == replace(by_key, measures=())
    # Postgres adds up in whatever order the rows come, and sums of floats know that in their last digit.
    for one_way, other_way in zip(by_name.measures, by_key.measures, strict=True):
        assert rounded(one_way) == rounded(other_way)


def rounded(found: Compared) -> list[Any]:
    """A measure without the digits that the order of a sum decides."""
    values = [found.measure, found.before, found.after, *astuple(found.difference)]
    return [round(value, 12) if isinstance(value, float) else value for value in values]


class _ByName(Pair):
    """A pair that goes by names though the versions are one."""

    @property
    def _by_key(self) -> bool:
        return False


def test_more_distinct_gaps_than_are_counted_come_to_the_same_interval() -> None:
    rng = np.random.default_rng(3)
    before, after = rng.random(MOST_VALUES + 50), rng.random(MOST_VALUES + 50)
    found = paired_difference(before, after)
    gaps = after - before
    assert found.method == "paired t interval"
    half = (found.high - found.low) / 2
    assert half == pytest.approx(1.961 * gaps.std(ddof=1) / np.sqrt(len(gaps)), rel=1e-3)


def test_a_workload_with_one_run_says_what_to_run(ledger: str) -> None:
    import_runs(FILE)
    name = own_workload()
    save_run(name)
    words = show("compare", workload=name).words
    assert "This workload has 1 run with rows; a comparison needs two." in words
    assert f"headrace run {shlex.quote(name)}" in words


def test_an_address_that_names_nothing_is_told_and_the_newest_two_are_shown(other: str) -> None:
    shown = show("compare", workload=RECORDED["workload"], a="zzz", b=other)
    assert [warning.value for warning in shown.test.warning]
    assert shown.test.query_params["b"] in (other, [other])
