"""Router: the page tests every threshold as the run did, and shows what a threshold costs, keeps and proves."""

import re
from collections.abc import Generator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dashboards import frontier_figures, frontiers, queries
from dashboards.frontiers import Frontier, asked_for, frontier
from dashboards.pages import router
from domain.bundles import keeps
from domain.certificates import Bound, Certificate, Use, tune
from domain.confidences import auroc
from domain.datasets import Split
from domain.prompts import PromptVersion
from domain.routers import Routing
from domain.thresholds import tuning_share
from domain.workloads import SignalName, Target
from infra.db.session import transaction
from infra.db.store import runs
from infra.exchange import import_runs
from tests.integration.recorded_runs import FILE, lines
from tests.integration.shown_pages import RECORDED, downloads, own_workload, read, save_run, show

pytestmark = pytest.mark.timeout(120)
RUN = RECORDED["id"]
VERDICT = RECORDED["summary"]["verdict"]


@pytest.fixture(scope="module", autouse=True)
def imported(ledger: str) -> None:
    """The recorded run's rows are in the ledger."""
    import_runs(FILE)


@pytest.fixture(scope="module")
def found(imported: None) -> Frontier:
    """The recorded run's frontier, by its bundle's signal."""
    run = queries.one("SELECT * FROM router_runs WHERE run_id = :run", run=RUN)
    assert run is not None
    routing = Routing.model_validate(run["routing"])
    prompt = PromptVersion.model_validate(run["prompt"])
    rows = frontiers.load_rows(RUN, prompt, decisive=run["decisive"], with_inputs=frontiers.looks_at_length(routing))
    target = Target.model_validate(run["target"])
    use = router.use_of(run, target)
    declared = len(run["declared"])
    return frontier(rows, routing, target, decisive=run["decisive"], declared=declared, use=use, counts=True)


def test_the_rows_of_the_views_give_the_runs_certificate_again(found: Frontier) -> None:
    made = found.tuned.verdict
    assert isinstance(made, Certificate)
    again = made.model_dump(mode="json", exclude={"grid"})
    for name in ("threshold", "p_value", "gap", "cost", "cost_all_strong", "level", "n", "worse", "better"):
        assert again[name] == pytest.approx(VERDICT[name], rel=1e-12), name
    assert again["grid_hash"] == VERDICT["grid_hash"]
    assert again["gap_interval"] == pytest.approx(VERDICT["gap_interval"])
    assert again["cost_interval"] == pytest.approx(VERDICT["cost_interval"])
    last = max(i for i in range(len(found.tuned.curve)) if found.certified(i))
    assert sum(point.passed for point in found.tuned.curve) == RECORDED["summary"]["tested_thresholds"]
    assert found.tuned.curve[last].threshold == VERDICT["threshold"]
    test = RECORDED["summary"]["test"]
    point = frontiers.point_of(found, last)
    assert (point.tested.mean, point.tested.low, point.tested.n) == pytest.approx(
        (test["cascade"]["mean"], test["cascade"]["low"], test["cascade"]["n"])
    )
    assert point.test_usd == pytest.approx(test["cascade_usd"])
    assert point.test_escalated == pytest.approx(test["escalation_rate"])


def test_the_page_shows_the_deployed_threshold_as_certified_with_its_figures() -> None:
    shown = show("router", run=RUN, workload="support-triage")
    words = shown.words
    assert downloads(shown) == {"frontier", "frontier-test", "chosen-threshold", "reliability", "signals"}
    assert f"Threshold {VERDICT['threshold']:.4f} Certified p = {VERDICT['p_value']:.3g}" in words
    low, high = VERDICT["gap_interval"]
    assert (
        f"Quality lost against all-strong, calibration rows {VERDICT['gap']:+.3f} 95 % interval [{low:.3f}, {high:.3f}]"
        in words
    )
    assert f"${1000 * VERDICT['cost']:.4f}" in words
    assert f"headrace promote {RECORDED['bundle_hash'][:12]}" in words
    declared = RECORDED["spec"]["router"]["signals"]
    for name, told in RECORDED["summary"]["signals"].items():
        area = rf"{told['auroc']:.3f} \[(0\.\d{{3}}), (0\.\d{{3}})\]"
        line = rf"{name} {'yes' if name in declared else 'no'} {area} {told['aurc']:,.4g}"
        ends = re.search(line, words)
        assert ends is not None
        assert float(ends[1]) < told["auroc"] < float(ends[2])


def test_a_threshold_that_the_bundles_certificate_proves_too_has_the_command_that_makes_it_a_challenger(
    found: Frontier,
) -> None:
    proven = [i for i in range(len(found.tuned.curve)) if found.certified(i)]
    wanted = found.tuned.curve[proven[0]].threshold
    assert wanted != VERDICT["threshold"]
    words = show("router", run=RUN, workload="support-triage", threshold=repr(wanted)).words
    assert f"headrace bundle challenger {RECORDED['bundle_hash'][:12]} --threshold {wanted!r}" in words
    assert "retune" not in words


@pytest.fixture
def strict() -> Generator[Target]:
    """The recorded run with a target that not every threshold reaches; afterwards it is as it was."""
    target = Target.model_validate({**RECORDED["spec"]["target"], "eps": 0.1})
    for spec in ({**RECORDED["spec"], "target": target.model_dump(mode="json")}, RECORDED["spec"]):
        router.forget()
        with transaction() as db:
            runs.change_run(db, RUN, spec=spec)
        if spec is not RECORDED["spec"]:
            yield target


def test_the_slider_leads_past_the_certified_region_and_says_what_would_certify_it(strict: Target) -> None:
    test = show("router", run=RUN, workload="support-triage").test
    confidence, (worse, better) = _confidences(), _worse_and_better()
    lowest = float(confidence.min())
    test.select_slider[0].set_value(len(test.select_slider[0].options) - 1)
    words = read(test.run()).words
    n, kept = len(confidence), int((confidence >= lowest).sum())
    assert f"Threshold {lowest:.4f} Not certified p = " in words
    assert f"n = {n}; {worse} rows worse, {better} better" in words
    share = stats.binomtest(n - kept, n).proportion_ci(method="wilson")
    assert f"{100 * (1 - kept / n):.1f} % 95 % interval {100 * share.low:.1f} % to {100 * share.high:.1f} %" in words
    (eps,) = re.findall(r"target: eps: ([\d.]+)", words)
    assert strict.eps < float(eps) < 0.5
    assert f"With a loss of {eps} allowed (a weaker promise than today's, {strict.eps:g})" in words
    assert "use 2 of them" in words
    assert "headrace run support-triage --scope retune --no-route" in words


def test_the_address_leads_to_a_point_and_another_run_starts_anew(found: Frontier) -> None:
    first = show("router", run=RUN[:8], workload="support-triage").test
    assert not first.warning
    place = len(found.tuned.curve) - 1
    first.select_slider[0].set_value(place)
    address = {key: _one(value) for key, value in first.run().query_params.items()}
    assert (address["run"], address["signal"]) == (RUN, "margin")
    assert float(address["threshold"]) == found.tuned.curve[place].threshold
    again = show("router", **address)
    assert f"Threshold {found.tuned.curve[place].threshold:.4f} " in again.words
    again.test.selectbox[2].set_value(SignalName.ENTROPY.value)
    other = again.test.run()
    assert _one(other.query_params["signal"]) == "entropy"
    assert not other.info  # the margin's threshold is not looked for among the entropies


def test_an_address_that_names_no_run_signal_or_threshold_is_told(found: Frontier) -> None:
    wrong = {"run": "zzz", "signal": "luck", "threshold": "7.5"}
    test = show("router", workload="support-triage", **wrong).test
    said = [warning.value for warning in test.warning]
    assert [text.split(" that ")[0] for text in said] == [
        "No run of this workload",
        "This run has no thresholds by the signal",
    ]
    assert "none of those that were tried" in test.info[0].value
    assert float(_one(test.query_params["threshold"])) == max(point.threshold for point in found.tuned.curve)


def _one(value: object) -> str:
    return str(value[0] if isinstance(value, list) else value)


def test_what_is_downloaded_are_numbers_with_interval_and_n(found: Frontier) -> None:
    place = len(found.tuned.curve) // 2
    point = frontiers.point_of(found, place)
    lines = {(row["rows"], row["measure"]): row for row in frontier_figures.measured(found, point)}
    usd = np.array(
        [
            row.cheap.usd + (row.strong.usd if not keeps(row.cheap.confidence, point.seen.threshold) else 0)
            for row in found.test
        ]
    )
    cost = lines["test", "Cost of 1,000 rows"]
    assert cost["value"] == pytest.approx(1000 * usd.mean())
    low, high = stats.t.interval(0.95, len(usd) - 1, usd.mean(), stats.sem(usd))
    assert (cost["low"], cost["high"], cost["n"]) == (pytest.approx(1000 * low), pytest.approx(1000 * high), len(usd))
    tested = frontier_figures.tested_points(found)
    assert len(tested) == len(found.tuned.curve)
    assert tested[place]["usd"] == pytest.approx(cost["value"])
    assert tested[place]["quality"] == pytest.approx(lines["test", "Quality"]["value"])


def test_without_test_rows_nothing_is_known_of_them(found: Frontier) -> None:
    bare = replace(found, test=[])
    lines = frontier_figures.measured(bare, frontiers.point_of(bare, 0))
    none = [row for row in lines if row["rows"] == "test"]
    assert len(none) == 4
    assert all((row["value"], row["low"], row["high"], row["n"]) == (None, None, None, 0) for row in none)
    assert frontier_figures.tested_points(bare) == []
    assert all(row["value"] is not None for row in lines if row["rows"] == "calibration")


def test_the_loss_that_is_asked_for_is_the_least_that_certifies_the_threshold(found: Frontier) -> None:
    place = len(found.tuned.curve) - 1
    asked = asked_for(found, place, uses=1)
    assert asked is not None
    eps, made = asked
    assert made.threshold <= found.tuned.curve[place].threshold
    assert (made.eps, made.tuning) == (eps, 2)
    grid = np.array([point.threshold for point in found.tuned.curve])
    use = Use(2, tuning_share(found.target.spend, 2))
    for allowed, so in ((eps, True), (eps - 0.001, False)):
        goal = Bound("absolute", allowed, found.target.delta)
        verdict = tune(found.pairs, goal, grid=grid, declared=found.declared, use=use).verdict
        assert (isinstance(verdict, Certificate) and verdict.threshold <= made.threshold) is so


def test_a_signal_that_was_not_declared_certifies_nothing(found: Frontier) -> None:
    test = show("router", run=RUN, workload="support-triage").test
    test.selectbox[2].set_value(SignalName.ENTROPY.value)
    words = read(test.run()).words
    assert "This signal was not declared" in words
    assert " Certified p = " not in words
    assert f"signals: [{', '.join(RECORDED['spec']['router']['signals'])}, entropy]" in words


def test_the_reliability_of_the_confidence_counts_every_row_once(found: Frontier) -> None:
    bins = frontiers.reliability(found)
    confidence = _confidences()
    assert sum(one.right.n for one in bins) == len(confidence)
    weighted = sum(one.right.n * one.right.mean for one in bins) / len(confidence)
    assert weighted == pytest.approx(float(found.pairs.cheap.mean()))
    assert all(before.high < after.low for before, after in pairwise(bins))
    assert auroc(found.pairs.confidence, found.pairs.cheap >= 1) == pytest.approx(
        RECORDED["summary"]["signals"]["margin"]["auroc"]
    )


def test_a_workload_whose_runs_looked_for_no_threshold_says_what_to_run() -> None:
    name = own_workload()
    save_run(name)
    words = show("router", workload=name).words
    assert f"headrace run {name}" in words
    assert "Cost and quality" not in words


def _confidences() -> Any:
    """The recorded run's margins on its calibration rows."""
    return np.array([row["confidence"] for row in _calibration("answers") if row["tier"] == "cheap"])


def _worse_and_better() -> tuple[int, int]:
    """Calibration rows on which the cheap tier is wrong where the strong one is right, and the other way round."""
    value = {(row["tier"], row["record_key"]): row["value"] for row in _calibration("scores")}
    gaps = [value["strong", key] - value["cheap", key] for tier, key in value if tier == "cheap"]
    return sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)


def _calibration(table: str) -> list[dict[str, Any]]:
    split = {row["key"]: row["split"] for row in lines(FILE, "records")}
    mine = [row for row in lines(FILE, table) if row["run_id"] == RUN and split[row["record_key"]] == Split.CALIBRATION]
    return [row for row in mine if row.get("metric", RECORDED["spec"]["metric"]) == RECORDED["spec"]["metric"]]
