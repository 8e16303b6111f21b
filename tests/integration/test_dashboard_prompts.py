"""Prompts and promotion: what a search gained and cost, prompt texts, acts on the champion, and commands to copy."""

import shlex
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sqlalchemy import func, select

from dashboards import prompts
from dashboards.parts import usd
from domain.comparisons import paired_difference
from domain.promotions import Act
from domain.prompts import PromptVersion
from infra.db.session import transaction
from infra.db.store import bundles, promotions
from infra.db.store.bundles import CompiledPrompt
from infra.db.tables import AttemptRow
from infra.exchange import import_runs
from tests.integration.recorded_runs import FILE, lines
from tests.integration.shown_pages import RECORDED, own_workload, recorded_bundle, save_run, show

pytestmark = pytest.mark.timeout(120)

HOSTILE = "<script>window.ran = 1</script> ![](http://127.0.0.1:9/x)"


@pytest.fixture(scope="module", autouse=True)
def imported(ledger: str) -> None:
    """The recorded run's rows are in the ledger."""
    import_runs(FILE)


def prompt(tier: str) -> dict[str, Any]:
    """A recorded compile."""
    return next(row for row in lines(FILE, "prompt_versions") if row["tier"] == tier)


def test_each_version_shows_its_held_out_scores_with_intervals_and_what_its_search_cost() -> None:
    words = show("prompts", workload=RECORDED["workload"]).words
    with transaction() as db:
        mine = (AttemptRow.run_id == RECORDED["id"], AttemptRow.stage == "compile")
        query = select(AttemptRow.tier, AttemptRow.cached, func.sum(AttemptRow.usd)).where(*mine)
        found = db.execute(query.group_by(AttemptRow.tier, AttemptRow.cached)).tuples().all()
        spent = {(tier, cached): usd(amount) for tier, cached, amount in found}
    assert all(spent[tier, True] != spent[tier, False] for tier in ("cheap", "strong"))
    for tier in ("cheap", "strong"):
        report = prompt(tier)["report"]
        n = report["candidates"][0]["n"]
        for key in ("baseline", "best"):
            ends = stats.binomtest(round(report[key] * n), n).proportion_ci(method="wilson")
            assert f"{report[key]:.3f} [{ends.low:.3f}, {ends.high:.3f}]" in words
        gain = 100 * (report["best"] - report["baseline"]) if report["improved"] else 0
        made = f"{report['calls']} {report['budget_calls']} {spent[tier, False]} {spent[tier, True]}"
        assert f"{gain:+.1f} points {n} {made}" in words
        assert prompt(tier)["hash"][:12] in words


def test_a_gain_has_its_paired_interval_where_one_is_on_record_and_figures_are_numbers_for_a_file() -> None:
    name = own_workload()
    made, report = PromptVersion.model_validate(prompt("strong")["body"]), prompt("strong")["report"]
    before, after = np.zeros(10), np.array([1.0] * 6 + [0.0] * 4)
    paired = paired_difference(before, after)
    compiled = CompiledPrompt("3" + name.ljust(63, "0"), made, {**report, "gain": asdict(paired)})
    with transaction() as db:
        bundles.save_compiled(db, compiled, workload=name, tier="strong")
    save_run(name)
    words = show("prompts", workload=name).words
    assert f"+60.0 points [{100 * paired.low:+.1f}, {100 * paired.high:+.1f}] 10 {report['calls']}" in words
    (line,) = prompts.costs(prompts.versions(name))
    assert line["gain_points_low_95"] == pytest.approx(100 * paired.low)
    (recorded,) = (row for row in prompts.costs(prompts.versions(RECORDED["workload"])) if row["tier"] == "strong")
    texts = {key for key, value in recorded.items() if isinstance(value, str)}
    assert texts == {"version", "tier", "run_id"}
    each = recorded["usd"] / recorded["gain_points"]
    assert recorded["usd_per_point"] == pytest.approx(each)


def test_a_versions_text_and_what_changed_since_the_one_before_are_shown_escaped() -> None:
    name = own_workload()
    made = PromptVersion.model_validate(prompt("strong")["body"])
    report = prompt("strong")["report"]
    other = made.model_copy(update={"instructions": HOSTILE})
    for key, version in (("1", made), ("2", other)):
        with transaction() as db:
            bundles.save_compiled(
                db, CompiledPrompt(key + name.ljust(63, "0"), version, report), workload=name, tier="strong"
            )
    save_run(name)
    shown = show("prompts", workload=name, version="2" + name.ljust(63, "0"))
    assert not any("<script" in block or "<img" in block for block in shown.blocks)
    (diff,) = (block for block in shown.blocks if 'aria-label="Against the version before"' in block)
    assert '<span class="plus">+&lt;script&gt;window.ran' in diff
    (text,) = (block for block in shown.blocks if 'aria-label="Text of the version"' in block)
    assert "&lt;script&gt;window.ran = 1&lt;/script&gt; ![](http://127.0.0.1:9/x)" in text


def test_the_audit_log_says_who_did_what_and_why_and_rollback_names_the_champion_before() -> None:
    name = own_workload()
    one, two = recorded_bundle(name), recorded_bundle(name, threshold=0.5)
    for bundle in (one, two):
        save_run(name, bundle=bundle)
    gate = {"passed": False, "reasons": ["the share of valid answers is 0.5"]}
    with transaction() as db:
        promotions.record(db, Act.PROMOTED, workload=name, to_hash=one.hash, who="ann")
        promotions.record(db, Act.REFUSED, workload=name, to_hash=two.hash, who="bob", gate=gate)
        promotions.record(db, Act.FORCED, workload=name, to_hash=two.hash, who="bob", reason=HOSTILE, gate=gate)
    shown = show("prompts", workload=name, bundle=one.hash)
    says = "refused: the share of valid answers is 0.5"
    assert f"bob forced {one.hash[:12]} {two.hash[:12]} {HOSTILE} {says} by hand" in shown.words
    assert f"bob refused {one.hash[:12]} {two.hash[:12]} – {says} by hand" in shown.words
    assert f"ann promoted none {one.hash[:12]} – – by hand" in shown.words
    assert f"Back to the champion before, {one.hash[:12]}:" in shown.words
    assert f"headrace rollback {shlex.quote(name)} --reason 'why'" in shown.words
    assert f"headrace promote {one.hash[:12]} --force --reason 'why'" in shown.words
    assert not any("<script" in block for block in shown.blocks)


def test_bundles_show_the_test_figures_of_the_run_that_made_them() -> None:
    name = own_workload()
    bundle = recorded_bundle(name)
    save_run(name, bundle=bundle)
    with transaction() as db:
        bundles.set_alias(db, name, "challenger", bundle.hash)
    test = RECORDED["summary"]["test"]
    found = test["cascade"]
    words = show("prompts", workload=name).words
    quality = f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}] {found['n']}"
    assert f"challenger {bundle.threshold:.4f} {quality} {usd(1000 * test['cascade_usd'])} " in words
    assert "No bundle of this workload was promoted or refused yet." in words


def test_a_bundles_price_has_the_interval_of_its_own_runs_test_rows() -> None:
    recorded = lines(FILE, "bundles")[0]["hash"]
    test = {row["key"] for row in lines(FILE, "records") if row["split"] == "test"}
    ended = [row for row in lines(FILE, "outcomes") if row["run_id"] == RECORDED["id"]]
    prices = np.array([1000 * row["usd"] for row in ended if row["record_key"] in test])
    half = float(stats.t.ppf(0.975, len(prices) - 1) * prices.std(ddof=1) / np.sqrt(len(prices)))
    (found,) = (row for row in prompts.bundles(RECORDED["workload"]) if row["hash"] == recorded)
    assert found["usd_per_1000"] == pytest.approx(prices.mean())
    ends = found["usd_per_1000_low_95"], found["usd_per_1000_high_95"]
    assert ends == pytest.approx((prices.mean() - half, prices.mean() + half))
    words = show("prompts", workload=RECORDED["workload"]).words
    assert f"{usd(prices.mean())} [{usd(ends[0])}, {usd(ends[1])}]" in words


def test_a_workload_without_a_prompt_says_what_to_run() -> None:
    name = own_workload()
    save_run(name)
    words = show("prompts", workload=name).words
    assert f"Nothing was compiled for this workload yet. This fills it: headrace run {name}" in words
