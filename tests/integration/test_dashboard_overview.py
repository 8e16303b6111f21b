"""Overview: the verdict in plain words, its figures as the ledger has them, and what changed between two runs."""

from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats
from sqlalchemy import delete, insert

from dashboards import queries, verdicts
from domain.bundles import Bundle
from domain.certificates import NotCertified
from domain.summaries import table
from infra.db.audit_tables import AuditRow
from infra.db.bundle_tables import AliasRow, BundleRow
from infra.db.session import transaction
from infra.db.store import bundles, runs
from infra.exchange import import_runs
from tests.integration.recorded_runs import FILE, lines
from tests.integration.shown_pages import RECORDED, ROUTED, downloads, own_workload, recorded_bundle, save_run, show

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", autouse=True)
def imported(ledger: str) -> None:
    """The recorded run's rows are in the ledger."""
    import_runs(FILE)


def deploy(workload: str, bundle: Bundle, **summary: object) -> str:
    """A run that made this bundle champion."""
    run_id = save_run(workload, bundle=bundle, **summary)
    with transaction() as db:
        bundles.set_alias(db, workload, "champion", bundle.hash)
    return run_id


def test_a_certified_workload_shows_the_certificates_figures_with_n_and_interval() -> None:
    name = own_workload()
    deploy(name, recorded_bundle(name))
    save_run(name, of=ROUTED, bundle=recorded_bundle(name))
    words = show("overview", workload=name).words

    made, test, batch = RECORDED["summary"]["verdict"], RECORDED["summary"]["test"], ROUTED["summary"]
    low, high = made["gap_interval"]
    assert "Promise Certified" in words
    assert (
        f"{made['gap']:+.3f} 95 % interval [{low:.3f}, {high:.3f}], allowed {made['eps']:g}; n = {made['n']}" in words
    )
    assert f"p = {made['p_value']:.3g}" in words
    low, high = made["cost_interval"]
    assert (
        f"${1000 * made['cost']:.4f} USD at list price, 95 % interval [${1000 * low:.4f}, ${1000 * high:.4f}]" in words
    )
    for tier, quality, interval, n, *_ in table(RECORDED["summary"]):
        assert f"Quality, {tier} {quality} 95 % interval {interval}, n = {n} test rows" in words

    n = test["cascade"]["n"]
    escalated = stats.binomtest(round(test["escalation_rate"] * n), n).proportion_ci(method="wilson")
    assert f"95 % interval {100 * escalated.low:.1f} % to {100 * escalated.high:.1f} %, n = {n} test rows" in words
    assert f"Escalated, last batch {100 * batch['escalation_rate']:.1f} %" in words


@pytest.fixture
def of_the_recorded_run() -> Iterator[str]:
    """A workload whose champion is said to be of the recorded run, so that its answers are the certificate's."""
    name = own_workload()
    bundle = recorded_bundle(name)
    with transaction() as db:
        bundles.save_bundle(db, bundle, run_id=RECORDED["id"])
    deploy(name, bundle)
    yield name
    with transaction() as db:  # other tests export this run, with every bundle that it made
        db.execute(delete(AliasRow).where(AliasRow.bundle_hash == bundle.hash))
        db.execute(delete(BundleRow).where(BundleRow.hash == bundle.hash))


def test_all_strongs_interval_is_that_of_the_calibration_rows_answers(of_the_recorded_run: str) -> None:
    split = {row["key"]: row["split"] for row in lines(FILE, "records")}
    mine = [row for row in lines(FILE, "answers") if row["run_id"] == RECORDED["id"] and row["tier"] == "strong"]
    usd = np.array([row["usd"] for row in mine if split[row["record_key"]] == "calibration"])
    low, high = stats.t.interval(0.95, len(usd) - 1, usd.mean(), stats.sem(usd))
    said = f"95 % interval [${1000 * low:.4f}, ${1000 * high:.4f}], n = {len(usd)} calibration rows; the cascade saves"
    assert said in show("overview", workload=of_the_recorded_run).words


def test_a_workload_without_a_certificate_says_so_plainly() -> None:
    name = own_workload()
    kept = RECORDED["summary"]["verdict"]
    shared = {key: kept[key] for key in ("kind", "eps", "delta", "n", "test", "level")}
    refusal = NotCertified(reason="no threshold keeps the loss", rows_needed=4321, cost=0.001, **shared)
    verdict = refusal.model_dump(mode="json")
    deploy(name, recorded_bundle(name, certificate=verdict, threshold=None), verdict=verdict)
    words = show("overview", workload=name).words
    assert "Promise Not certified no threshold keeps the loss; all rows go to the strong tier" in words
    assert "about 4,321 would do" in words
    assert "Cost of 1,000 rows, all strong $1.0000" in words


def test_what_a_batch_or_an_audit_holds_against_a_certificate_makes_it_void() -> None:
    name = own_workload()
    bundle = recorded_bundle(name)
    deploy(name, bundle)
    save_run(name, of=ROUTED, bundle=bundle, void=["the cheap tier's model is another"])
    assert (
        "Promise Void the last batch found: the cheap tier's model is another" in show("overview", workload=name).words
    )

    other = own_workload()
    bundle = recorded_bundle(other)
    run_id = deploy(other, bundle)
    assert "Promise Certified" in show("overview", workload=other).words
    alarm = {"run_id": run_id, "workload": other, "bundle_hash": bundle.hash, "verdict": "alarm", "usd": 0.0}
    with transaction() as db:
        db.execute(insert(AuditRow).values(**alarm, state={}, report={}, routes=[]))
    assert "Promise Void an audit refuted the promise" in show("overview", workload=other).words


def test_the_quality_of_runs_is_drawn_and_given_with_the_n_of_each() -> None:
    name = own_workload()
    test = RECORDED["summary"]["test"]
    of = test["cascade"]
    save_run(name)
    save_run(name, test={**test, **{tier: {**of, "n": of["n"] + 7} for tier in ("cascade", "strong")}})
    shown = show("overview", workload=name)
    assert f"(n = {of['n']} to {of['n'] + 7} a run)" in shown.words
    assert downloads(shown) >= {"verdicts", "quality-of-runs", "last-runs"}


def test_a_workload_that_is_not_there_is_told_and_another_one_forgets_the_run() -> None:
    name, other = sorted([own_workload(), own_workload()])
    run_id = save_run(name)
    save_run(other)
    assert "What is shown is another" in show("overview", workload="nowhere").test.warning[0].value
    test = show("overview", workload=name, run=run_id).test
    assert not test.warning
    assert "run" in test.query_params
    test.selectbox[0].set_value(other)
    assert "run" not in test.run().query_params


def test_a_batch_that_another_bundle_routed_says_nothing_about_the_champion() -> None:
    name = own_workload()
    before = recorded_bundle(name, threshold=0.5)
    save_run(name, of=ROUTED, bundle=before, void=["the cheap tier's model is another"])
    deploy(name, recorded_bundle(name))
    words = show("overview", workload=name).words
    assert "Promise Certified" in words
    assert (
        f"Escalated, last batch, by bundle {before.hash[:8]} {100 * ROUTED['summary']['escalation_rate']:.1f} %"
        in words
    )


def test_a_batch_in_which_nothing_was_answered_is_shown_with_its_own_rows() -> None:
    name = own_workload()
    bundle = recorded_bundle(name)
    deploy(name, bundle)
    nothing = {"answered": 0, "unanswered": 45, "escalation_rate": 0.0, "valid_rate": 0.0}
    save_run(name, of=ROUTED, bundle=bundle, **nothing)
    words = show("overview", workload=name).words
    share = stats.binomtest(0, 45).proportion_ci(method="wilson")
    assert f"Valid answers, last batch 0.0 % 95 % interval 0.0 % to {100 * share.high:.1f} %, n = 45 rows" in words
    assert "Escalated, last batch not known" in words
    row = queries.one("SELECT * FROM verdicts WHERE workload = :workload", workload=name)
    assert row is not None
    shown, told = verdicts.line(row), verdicts.numbers(row)
    assert (shown["Escalated"], shown["of answered"]) == (None, None)
    assert (shown["Valid"], shown["of rows"]) == (f"0.0 % [0.0, {100 * share.high:.1f}]", 45)
    assert (told["valid"], told["valid_high"], told["valid_n"]) == (0.0, pytest.approx(share.high), 45)


def test_escalated_is_of_the_answered_rows_and_valid_of_all() -> None:
    name = own_workload()
    bundle = recorded_bundle(name)
    deploy(name, bundle)
    counts = {"answered": 40, "unanswered": 10, "escalation_rate": 0.25, "valid_rate": 0.8}
    save_run(name, of=ROUTED, bundle=bundle, **counts)
    row = queries.one("SELECT * FROM verdicts WHERE workload = :workload", workload=name)
    assert row is not None
    shown, told = verdicts.line(row), verdicts.numbers(row)
    assert (shown["of answered"], shown["of rows"], shown["Rates of"]) == (40, 50, "last batch")
    assert (told["escalated_n"], told["valid_n"], told["escalated"]) == (40, 50, 0.25)
    made = RECORDED["summary"]["verdict"]
    assert told["usd_per_1000_low"] == pytest.approx(1000 * made["cost_interval"][0])
    assert (told["loss"], told["loss_high"]) == (made["gap"], made["gap_interval"][1])


def test_a_verdict_without_test_rows_does_not_know_their_quality() -> None:
    name = own_workload()
    none = {"mean": 0.0, "low": 0.0, "high": 1.0, "n": 0}
    test = {**RECORDED["summary"]["test"], "cascade": none, "strong": none, "cheap": none, "escalation_rate": 1.0}
    deploy(name, recorded_bundle(name), test=test)
    words = show("overview", workload=name).words
    assert "Quality, cascade not known n = 0 test rows" in words
    assert "Escalated, test rows not known" in words


def test_what_changed_between_two_runs_is_named_and_what_did_not_is_not() -> None:
    name = own_workload()
    one = recorded_bundle(name)
    other = recorded_bundle(name, threshold=0.5, routing={"signal": "entropy"})
    before = save_run(name, bundle=one)
    after = save_run(name, bundle=other, code="f" * 64)
    words = show("overview", workload=name).words.split("What changed")[0]
    changed = words[words.rindex(f"{before[:8]} {after[:8]}") :]
    assert f"Threshold {one.threshold:.4g} 0.5" in changed
    assert "Signal margin entropy" in changed
    assert "Code that decides" in changed
    assert "ffffffffffff" in changed
    for same in ("Prompt", "Data version", "Model", "Target", "Engine", "Output schema"):
        assert same not in changed


def test_a_run_without_a_process_is_lost_and_one_without_figures_says_what_to_run() -> None:
    name = own_workload()
    run_id = save_run(name)
    with transaction() as db:
        runs.change_run(db, run_id, state="running", ended_at=None, summary={})
    words = show("overview", workload=name).words
    assert f"{run_id[:8]} optimize lost" in words
    assert f"headrace run {name}" in words


def test_text_of_strangers_stays_text() -> None:
    hostile = f"<script>alert(1)</script>![](http://127.0.0.1:9/x) {own_workload()}"
    save_run(hostile, bundle=recorded_bundle(hostile), gate=["<img src=x onerror=alert(2)>"])
    shown = show("overview", workload=hostile)
    assert "<script>" in shown.words
    assert "<img src=x" in shown.words
    assert not any("<script>" in block or "<img" in block for block in shown.blocks)
