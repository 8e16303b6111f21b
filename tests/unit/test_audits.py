"""Audits: which rows are looked at, what each lost, when gold may be counted, and the words of a verdict."""

import re
from typing import Any

import numpy as np
import pytest

from domain import audit_verdicts
from domain.audit_verdicts import SIGHTS, lines, metrics, report, sights, uncertified_report, void_report
from domain.audits import (
    Candidate,
    Pending,
    Reference,
    Terms,
    Watched,
    affordable,
    choose,
    countable,
    differs,
    loss,
    place_of,
)
from domain.eprocesses import Evidence, Rates, gather, watch_rate
from domain.validities import Change, Validity
from infra.drifting import count_drifts

BUNDLE = "b" * 64


def candidates(n: int, *, keep: float = 0.4) -> list[Candidate]:
    rng = np.random.default_rng(1)
    return [
        Candidate(place_of(f"key-{i}", BUNDLE), f"key-{i}", bool(rng.random() < keep), "run", "version")
        for i in range(n)
    ]


# ---- which rows


def test_a_row_is_chosen_by_hash_of_bundle_and_row_whatever_else_there_is() -> None:
    rows = candidates(4000)
    chosen = choose(rows, share=0.2, most=None)
    assert {c.key for c in choose(rows[::-1], share=0.2, most=None).rows} == {c.key for c in chosen.rows}
    assert {c.key for c in choose(rows[:1000], share=0.2, most=None).rows} == {
        c.key for c in chosen.rows if int(c.key[4:]) < 1000
    }
    assert len(chosen.rows) == pytest.approx(800, abs=4 * np.sqrt(4000 * 0.2 * 0.8))
    assert {c.kept for c in chosen.rows} == {True, False}, "escalated rows belong to it"
    assert place_of("key-1", BUNDLE) != place_of("key-1", "c" * 64)


def test_a_budget_leaves_a_uniform_sample_and_says_what_it_cut() -> None:
    rows = candidates(4000)
    whole, cut = choose(rows, share=0.2, most=None), choose(rows, share=0.2, most=100)
    assert sum(c.kept for c in cut.rows) == 100
    assert cut.rows[-1].kept, "it ends behind the last row that it pays for"
    assert cut.rows == whole.rows[: len(cut.rows)]
    assert cut.cut == len(whole.rows) - len(cut.rows) > 0
    assert cut.share == cut.rows[-1].place < 0.2
    assert cut.rows == sorted([c for c in rows if c.place <= cut.share], key=lambda c: c.place)
    assert choose(rows, share=0.2, most=0).rows == []
    assert choose(rows, share=0.2, most=100_000) == whole


def test_what_a_budget_leaves_keeps_the_rate_of_kept_rows_and_the_order_of_arrival_plays_no_part() -> None:
    rows = candidates(20_000, keep=0.4)
    cut = choose(rows, share=1.0, most=2000)
    assert np.mean([c.kept for c in cut.rows]) == pytest.approx(0.4, abs=0.03)
    arrived = [int(c.key[4:]) for c in cut.rows]
    assert np.mean(arrived) == pytest.approx(10_000, abs=4 * 20_000 / np.sqrt(12 * len(arrived)))


def test_a_row_that_came_twice_is_chosen_once_as_it_was_first() -> None:
    first = Candidate(0.1, "k", kept=True, run_id="early", version="v")
    again = Candidate(0.1, "k", kept=False, run_id="late", version="v")
    assert choose([first, again], share=1.0, most=None).rows == [first]


@pytest.mark.parametrize(
    ("rows", "usd", "price", "expected"),
    [(None, None, 0.1, None), (7, None, 0.1, 7), (None, 1.0, 0.1, 8), (3, 1.0, 0.1, 3), (None, 1.0, None, None)],
)
def test_a_budget_is_rows_or_usd_at_the_mean_price_with_room_for_dearer_ones(
    rows: int | None, usd: float | None, price: float | None, expected: int | None
) -> None:
    assert affordable(rows, usd, price) == expected


# ---- what each lost


def test_an_escalated_row_loses_nothing_and_a_relative_target_counts_what_it_may_lose() -> None:
    assert loss(kept=False, cheap=0.0, strong=1.0) == 0.0
    assert (loss(kept=True, cheap=0.0, strong=1.0), loss(kept=True, cheap=1.0, strong=0.0)) == (1.0, -1.0)
    assert loss(kept=False, cheap=0.0, strong=1.0, rho=0.1) == pytest.approx(-0.1)
    assert loss(kept=True, cheap=0.0, strong=1.0, rho=0.1) == pytest.approx(0.9)


def test_agreement_looks_at_the_fields_of_gold_only_and_bounds_the_loss() -> None:
    given: dict[str, Any] = {"cheap": {"a": 1, "b": 2}, "strong": {"a": 1, "b": 3}}
    assert differs(kept=True, **given, fields=["a"]) == 0.0
    assert differs(kept=True, **given, fields=["a", "b"]) == 1.0
    assert differs(kept=False, **given, fields=["a", "b"]) == 0.0
    assert differs(kept=True, cheap={"a": 1}, strong=None, fields=["a"]) == 0.0
    assert differs(kept=True, cheap=None, strong={"a": 1}, fields=["a"]) == 1.0


def pending(spec: str) -> list[Pending]:
    """K: kept with a label, k: kept without, e: escalated."""
    return [Pending(key=f"{i}", needs_gold=c in "Kk", has_gold=c == "K") for i, c in enumerate(spec)]


def test_escalated_rows_are_counted_with_the_kept_row_behind_them_and_not_before() -> None:
    assert [row.key for row in countable(pending("eeKeke" + "K" + "ee"))] == ["0", "1", "2", "5", "6"]
    assert countable(pending("eee")) == []
    assert countable(pending("kkk")) == []
    assert len(countable(pending("KKK"))) == 3


@pytest.mark.parametrize("labelled", [0.1, 0.5, 1.0])
def test_whatever_share_of_kept_rows_is_labelled_the_mean_loss_is_that_of_the_traffic(labelled: float) -> None:
    rng, n = np.random.default_rng(2), 200_000
    kept, lost = rng.random(n) < 0.3, rng.random(n) < 0.2
    rows = [
        Pending(key=str(i), needs_gold=bool(k), has_gold=bool(k and rng.random() < labelled))
        for i, k in enumerate(kept)
    ]
    counted = [int(row.key) for row in countable(rows)]
    mean = float(np.mean([kept[i] and lost[i] for i in counted]))
    assert mean == pytest.approx(0.3 * 0.2, abs=4 * np.sqrt(0.06 / len(counted)))


# ---- what is tested


def terms(**changes: Any) -> Terms:
    given: dict[str, Any] = {"kind": "absolute", "eps": 0.02, "alpha": 0.05, "differing": 0.1, "band": (0.5, 0.6)}
    return Terms(**{**given, **changes})


def watched(*, gold: list[float] | None = None, agreement: list[float] | None = None, **changes: Any) -> Watched:
    t = terms(**changes)
    return Watched(
        gold=gather(Evidence(), gold or [], t.gold, alpha=0.05),
        agreement=gather(Evidence(), agreement or [], t.agreement, alpha=0.05),
    )


def test_only_gold_can_break_the_promise_and_agreement_only_advises() -> None:
    found = report(terms(), watched(agreement=[1.0] * 200), counts={"audited": 200}, share=0.2, drifts=0)
    assert (found.verdict, found.alarms) == ("untested", ())
    assert any("import labels" in line for line in found.advice)
    assert any("not tested" in line for line in found.advice)
    alarm = report(terms(), watched(gold=[1.0] * 200), counts={"audited": 200}, share=0.2, drifts=0)
    assert alarm.verdict == "alarm"
    assert "the loss of quality is more than the 0.02 promised" in alarm.alarms[0]
    assert len(alarm.alarms) == 2, "e-process and e-detector"
    quiet = report(terms(), watched(gold=[0.0] * 200), counts={"audited": 200}, share=0.2, drifts=0)
    assert (quiet.verdict, quiet.alarms) == ("quiet", ())


def test_an_agreement_certificate_is_tested_by_agreement() -> None:
    found = watched(agreement=[1.0] * 200, kind="agreement")
    said = report(terms(kind="agreement"), found, counts={"audited": 200}, share=1, drifts=None)
    assert (said.verdict, terms(kind="agreement").agreement.bound) == ("alarm", 0.02)
    assert terms().agreement.bound == 0.1
    assert terms(differing=None).agreement.bound == 1.0


def test_a_moved_escalation_rate_is_a_matter_of_cost_and_a_drift_of_advice() -> None:
    state = Watched(
        gold=gather(Evidence(), [0.0] * 50, terms().gold, alpha=0.05),
        escalation=watch_rate(Rates(), [True] * 500, (0.5, 0.6)),
    )
    said = report(terms(), state, counts={"audited": 50}, share=0.2, drifts=2, cut=7)
    assert said.verdict == "quiet"
    text = "\n".join(said.advice)
    assert "cost alarm: 100.0% of the rows escalate" in text
    assert "re-audit advised" in text
    assert "the budget left out 7 rows" in text


def test_the_calibration_rows_say_what_is_expected_within_what_they_can_say() -> None:
    few, many = Reference(rows=40, kept=20, differing=4), Reference(rows=40_000, kept=20_000, differing=4000)
    assert many.band() == pytest.approx((0.47, 0.53), abs=1e-6)
    assert few.band() == pytest.approx((0.338, 0.662), abs=1e-3), "the exact interval of 20 in 40"
    assert few.most_differing(0.05) == pytest.approx(0.2141, abs=1e-3)
    assert Reference().band() is None
    assert Reference().most_differing(0.05) is None
    assert Reference(rows=5, kept=5, differing=5).most_differing(0.05) == 1.0


def test_adwin_sees_another_input_and_is_blind_to_a_drop_of_quality() -> None:
    rng = np.random.default_rng(4)
    calibration = rng.beta(5, 2, 1500).tolist()
    # A tier that answers worse while it is as sure as ever: the confidences are drawn from the very same law.
    unchanged, shifted = rng.beta(5, 2, 3000).tolist(), rng.beta(2, 3, 3000).tolist()
    assert count_drifts([*calibration, *unchanged], after=1500) == 0
    assert count_drifts([*calibration, *shifted], after=1500) > 0
    assert count_drifts([*calibration, *shifted], after=4500) == 0, "what lies before is the reference"


# ---- words


def test_every_detector_says_what_it_sees_and_what_it_does_not() -> None:
    assert SIGHTS.keys() == {"gold", "agreement", "escalation", "confidences"}
    assert all(sight.sees and sight.misses for sight in SIGHTS.values())
    assert "quality" in SIGHTS["escalation"].misses
    assert "quality" in SIGHTS["confidences"].misses
    assert "not the promise" in SIGHTS["agreement"].misses
    assert len(sights()) == len(SIGHTS)
    assert all(re.search(r"sees .+; it does not see .+", line) for line in sights())


def test_a_report_is_told_in_sentences_and_survives_as_json() -> None:
    found = report(terms(), watched(gold=[0.0, 1.0], agreement=[0.0, 1.0]), counts={"audited": 2}, share=0.2, drifts=0)
    assert audit_verdicts.Report.model_validate_json(found.model_dump_json()) == found
    text = "\n".join(lines(found))
    assert "mean loss 0.5000" in text
    assert "agreement, not correctness: 0.5000" in text
    assert metrics(found)["audit_gap"] == 0.5
    assert metrics(found)["audit_alarm"] == 0.0
    assert lines(void_report(["prices changed"], ()))[1] == "already void: prices changed"
    assert void_report([], ["audit x: y"]).alarms == ("audit x: y",)
    assert uncertified_report().verdict == "nothing"


def test_an_alarm_voids_a_certificate_like_a_change_does() -> None:
    assert not Validity((), ()).void
    assert Validity((), (), ("audit x: lost",)).reasons == ("audit x: lost",)
    both = Validity((Change("part", "a", "b"),), (), ("audit x: lost",))
    assert both.void
    assert both.reasons == ("part was a, is b", "audit x: lost")
