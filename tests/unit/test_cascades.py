"""Cascades: rows read by a signal, shortcuts, what each use of the rows may spend, and what a batch came to."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from domain.batches import BatchFigures, Latency, batch_summary
from domain.cascades import decide_cascade, evidence_of
from domain.certificates import Certificate, NotCertified, Use
from domain.datasets import Split
from domain.figures import Row, routed
from domain.outcomes import STRAIGHT, Outcome, TierAnswer, settle_row
from domain.routers import MEANINGS, Routing
from domain.scores import mean_field, worst_field
from domain.shortcuts import straight_from
from domain.workloads import SignalName, Target, TierName

MARGIN, P_TRUE, ENTROPY = SignalName.MARGIN, SignalName.P_TRUE, SignalName.ENTROPY
TARGET = Target(kind="absolute", eps=0.05, delta=0.10)
STRONG = TierAnswer({"topic": "card"}, 1.0, tokens=40, usd=10.0, failed=None)


def row(
    n: int,
    *,
    margin: float | None,
    cheap: float,
    signals: dict[str, float] | None = None,
    extra: dict[str, float] | None = None,
    chars: int = 50,
    split: Split = Split.CALIBRATION,
    cheap_usd: float = 1.0,
) -> Row:
    usd = cheap_usd + sum((extra or {}).values())
    answer = TierAnswer({"topic": "card"}, margin, 20, usd, None, signals=signals or {}, signal_usd=extra or {})
    return Row(f"{n:064d}", split, answer, STRONG, cheap, 1.0, chars=chars, inputs=f"i{n}")


def rows_of(n: int, *, wrong_below: float = 0.2) -> list[Row]:
    """Rows whose cheap answer is wrong where the margin is low; p-true says nothing."""
    margins = np.linspace(0, 1, n)
    return [
        row(i, margin=float(m), cheap=float(m >= wrong_below), signals={P_TRUE: 0.5}, extra={P_TRUE: 0.5})
        for i, m in enumerate(margins)
    ]


def by_signal(rows: Sequence[Row], name: SignalName, *, straight_from: int | None = None) -> list[Row]:
    return routed(rows, Routing(signal=name, straight_from=straight_from), decisive="topic")


def routings(*names: SignalName) -> dict[SignalName, Routing]:
    return {name: Routing(signal=name) for name in names}


def test_a_row_read_by_a_signal_has_its_value_and_pays_for_its_calls_only() -> None:
    one = row(1, margin=0.3, cheap=1.0, signals={P_TRUE: 0.9}, extra={P_TRUE: 0.5, "self-consistency": 2.0})
    (by_margin,), (by_asking,), (by_nothing,) = (by_signal([one], name) for name in (MARGIN, P_TRUE, ENTROPY))
    assert (by_margin.cheap.confidence, by_margin.cheap.usd) == (0.3, pytest.approx(1.0))
    assert (by_asking.cheap.confidence, by_asking.cheap.usd) == (0.9, pytest.approx(1.5))
    assert by_nothing.cheap.confidence is None


def test_an_answer_that_is_not_valid_has_no_confidence_whatever_its_signals_say() -> None:
    broken = replace(row(1, margin=0.3, cheap=0.0), cheap=TierAnswer(None, 0.9, 3, 1.0, "schema", {ENTROPY: 0.9}))
    for name in (MARGIN, ENTROPY):
        (read,) = by_signal([broken], name)
        assert read.cheap.confidence is None
        assert read.cheap.usd == pytest.approx(1.0), "what it cost stays in the table"


def test_the_cheapest_certified_signal_is_chosen_and_its_calls_are_in_the_price() -> None:
    rows = rows_of(600)
    found = decide_cascade(rows, TARGET, decisive="topic", routings=routings(P_TRUE, MARGIN))
    assert found.routing.signal is MARGIN
    assert isinstance(found.tuned.verdict, Certificate)
    assert (found.tuned.verdict.declared, found.tuned.verdict.level) == (2, pytest.approx(0.05))
    assert found.tuned.verdict.cost == pytest.approx(np.mean([o.usd for o in found.settled if isinstance(o, Outcome)]))
    assert isinstance(found.signals[P_TRUE].verdict, NotCertified)


def test_each_use_of_the_rows_is_tested_at_what_is_left_of_delta() -> None:
    rows = rows_of(600)
    first, third = (decide_cascade(rows, TARGET, decisive="topic", use=Use(n, 0.5**n)).tuned.verdict for n in (1, 3))
    assert isinstance(first, Certificate)
    assert isinstance(third, Certificate)
    assert (first.level, first.tuning) == (pytest.approx(0.05), 1)
    assert (third.level, third.tuning) == (pytest.approx(0.0125), 3)
    assert third.threshold >= first.threshold
    assert first.p_value <= 0.05
    assert third.p_value <= 0.0125
    assert "at least 0.9" in first.promise, "all uses together break the promise with probability delta at most"


def test_rows_that_nothing_is_left_for_certify_nothing_and_say_so() -> None:
    verdict = decide_cascade(rows_of(600), TARGET, decisive="topic", use=Use(2, 0.0)).tuned.verdict
    assert isinstance(verdict, NotCertified)
    assert "tuned on 1 times before and nothing of delta is left" in verdict.reason
    assert verdict.rows_needed == 45, "fresh ones, at least"


def test_rows_with_the_same_inputs_count_as_fewer() -> None:
    rows = rows_of(100)
    twins = [replace(one, inputs="the same") if n < 10 else one for n, one in enumerate(rows)]
    assert decide_cascade(rows, TARGET, decisive="topic").tuned.verdict.effective_n == pytest.approx(100)
    assert decide_cascade(twins, TARGET, decisive="topic").tuned.verdict.effective_n == pytest.approx(
        100**2 / (90 + 100)
    )


def evidence(rows: Sequence[Row], *names: SignalName, target: Target = TARGET) -> str:
    return evidence_of(rows, target, routings(*names), decisive="topic")


def test_the_evidence_is_all_that_the_certificate_looks_at_and_nothing_else() -> None:
    rows = rows_of(50)
    seen = evidence(rows, MARGIN)
    assert evidence(rows[::-1], MARGIN) == seen
    assert evidence([*rows, row(99, margin=0.4, cheap=1.0, split=Split.TEST)], MARGIN) == seen
    other_answer = [replace(rows[0], cheap=replace(rows[0].cheap, confidence=0.77)), *rows[1:]]
    other_label = [replace(rows[0], cheap_quality=1.0), *rows[1:]]
    assert len({seen, *(evidence(r, MARGIN) for r in (other_answer, other_label, rows[1:]))}) == 4
    assert evidence(rows, MARGIN, target=Target(eps=0.06)) != seen
    assert evidence(rows, MARGIN, P_TRUE) != seen


def long_rows_are_hard(n: int) -> list[Row]:
    """Half of the rows are long, and the cheap tier is never sure of these."""
    short = [row(i, margin=0.9, cheap=1.0, chars=50 + i % 20) for i in range(n // 2)]
    return short + [row(n + i, margin=0.0, cheap=0.0, chars=500 + i % 20) for i in range(n // 2)]


def test_rows_whose_escalation_is_certain_go_straight_to_the_strong_tier_and_are_cheaper_so() -> None:
    rows = long_rows_are_hard(400)
    found = straight_from(by_signal(rows, MARGIN), TARGET)
    assert found is not None
    assert found == 500
    there, past = (
        decide_cascade(rows, TARGET, decisive="topic", routings={MARGIN: way}).tuned.verdict
        for way in ways(None, found)
    )
    assert isinstance(there, Certificate)
    assert isinstance(past, Certificate)
    assert past.cost == pytest.approx(there.cost - 0.5), "half of the rows spare a cheap call of 1 USD"
    assert past.gap == there.gap


def ways(*lengths: int | None) -> list[Routing]:
    return [Routing(straight_from=length) for length in lengths]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (long_rows_are_hard(40), "20 rows do not show that escalation is certain enough"),
        (
            [replace(r, cheap=replace(r.cheap, usd=0.01)) for r in long_rows_are_hard(400)],
            "the cheap call costs nothing",
        ),
        (rows_of(400), "all are of one length"),
        ([row(i, margin=None, cheap=0.0) for i in range(100)], "nothing has a confidence"),
    ],
)
def test_no_row_goes_straight_where_that_is_not_cheaper_for_sure(rows: Sequence[Row], why: str) -> None:
    assert straight_from(by_signal(rows, MARGIN), TARGET) is None, why


def test_a_row_that_skipped_the_cheap_tier_pays_no_cheap_call_and_counts_as_not_escalated() -> None:
    (read,) = by_signal([row(1, margin=0.9, cheap=1.0, chars=80)], MARGIN, straight_from=80)
    assert (read.cheap.failed, read.cheap.usd) == (STRAIGHT, 0.0)
    settled = settle_row(read.key, read.cheap, read.strong, 0.1)
    assert isinstance(settled, Outcome)
    assert (settled.tier, settled.usd, settled.escalated) == (TierName.STRONG, 10.0, False)


def test_fields_are_scored_each_by_itself_and_the_worst_one_or_their_mean_is_the_answers() -> None:
    gold = {"topic": "card", "reply": "your card is blocked", "amount": 3}
    said = {"topic": "card", "reply": "your card is lost", "amount": 4}
    assert worst_field(gold, said) == 0.0
    assert worst_field(gold, {**said, "amount": 3}) == pytest.approx(0.75)
    assert mean_field(gold, said) == pytest.approx((1 + 0.75 + 0) / 3)
    assert worst_field(gold, gold) == mean_field(gold, gold) == 1.0


BATCH = BatchFigures(
    answered=100,
    unanswered=25,
    on_cheap=60,
    escalated=30,
    straight=10,
    cheap_asked=90,
    cheap_invalid=9,
    usd=520.0,
    kept_usd=60.0,
    strong_usd=440.0,
    both_cheap_usd=30.0,
    both_strong_usd=330.0,
    latencies={TierName.CHEAP: Latency(90, 0.1, 0.4)},
)


def test_a_batch_is_compared_with_what_all_strong_would_have_cost() -> None:
    summary = batch_summary(BATCH, 0.5, usual_strong_usd=9.0)
    # Kept rows cost 60 on cheap; where both answered strong cost 11 times as much.
    assert summary["usd_per_1000_all_strong"] == pytest.approx(10 * (440 + 60 * 11))
    assert summary["saving"] == pytest.approx(1 - 520 / (440 + 660))
    assert (summary["escalation_rate"], summary["valid_rate"]) == (pytest.approx(0.4), pytest.approx(0.8))
    assert (summary["answered"], summary["unanswered"]) == (BATCH.answered, BATCH.unanswered)
    assert (summary["cheap_valid_rate"], summary["straight_to_strong"]) == (pytest.approx(0.9), 10)
    assert summary["usd_per_row"] == pytest.approx(5.2)
    assert summary["latency_s"] == {"cheap": {"calls": 90, "p50": 0.1, "p95": 0.4}}


def test_without_a_row_that_both_answered_the_calibration_rows_price_tells_and_without_it_nothing_is_said() -> None:
    alone = replace(BATCH, both_cheap_usd=0.0, both_strong_usd=0.0)
    assert batch_summary(alone, 0.5, usual_strong_usd=9.0)["saving"] == pytest.approx(1 - 520 / (440 + 60 * 9))
    assert "saving" not in batch_summary(alone, 0.5, usual_strong_usd=None)
    assert batch_summary(replace(alone, on_cheap=0, usd=440.0), None, usual_strong_usd=None)["saving"] == 0.0


def test_every_signal_has_its_meaning_in_words() -> None:
    assert set(MEANINGS) == set(SignalName)
