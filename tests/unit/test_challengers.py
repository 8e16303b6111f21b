"""Challengers by hand: which thresholds of a certified bundle may be chosen, and what the certificate then says."""

import numpy as np
import pytest

from domain.bundles import Bundle
from domain.canonical import digest
from domain.certificates import Bound, Certificate, CurvePoint, Tuned, Use, grid_of, tune
from domain.challengers import at_threshold
from domain.errors import PromotionRefused
from domain.tallies import PairedRows
from domain.thresholds import tuning_share
from tests.unit.test_bundles import REFUSED, bundle

GOAL, SECOND = Bound("absolute", 0.05, 0.1), Use(2, tuning_share(0.5, 2))


def rows(n: int = 900, *, seed: int = 1) -> PairedRows:
    """A cheap tier that is right as often as it is sure, a strong one that is nearly always right, ten times as
    dear."""
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    cheap, strong = (rng.random(n) < confidence) * 1.0, (rng.random(n) < 0.95) * 1.0
    return PairedRows(confidence, cheap, strong, np.full(n, 0.1), np.full(n, 1.0))


def certified(given: PairedRows, *, declared: int = 2, use: Use = SECOND) -> tuple[Bundle, Tuned]:
    """A bundle with the certificate of these rows, and what its tuning saw."""
    tuned = tune(given, GOAL, grid=grid_of(given.confidence), signal="margin", declared=declared, use=use)
    made = tuned.verdict
    assert isinstance(made, Certificate)
    return bundle(threshold=made.threshold, certificate=made), tuned


def proven(tuned: Tuned) -> list[CurvePoint]:
    """What may be chosen, the most cautious first: it passed, and costs less than the strong tier alone."""
    return [point for point in tuned.curve if point.passed and point.cost < 0.999 * tuned.strong.cost]


def test_every_threshold_that_passed_can_be_chosen_and_the_certificate_says_what_was_seen_there() -> None:
    given = rows()
    made, tuned = certified(given)
    assert len(proven(tuned)) > 5
    for point in proven(tuned):
        found = at_threshold(made, given, point.threshold)
        certificate = found.certificate
        assert isinstance(certificate, Certificate)
        assert found.threshold == certificate.threshold == point.threshold
        assert (certificate.p_value, certificate.gap, certificate.cost) == (point.p_value, point.gap, point.cost)
        assert (certificate.worse, certificate.better) == (point.worse, point.better)
        assert certificate.gap_interval is not None
        assert certificate.gap_interval[0] <= point.gap <= certificate.gap_interval[1]
        assert certificate.cost_interval is not None
        assert certificate.cost_interval[0] <= point.cost <= certificate.cost_interval[1]
        rest = made.model_copy(update={"threshold": found.threshold, "certificate": certificate})
        assert found == rest, "nothing else of the bundle is another"


def test_the_terms_of_the_certificate_stay_what_they_were() -> None:
    given = rows()
    made, tuned = certified(given)
    first = proven(tuned)[0].threshold
    before, after = made.certificate.model_dump(), at_threshold(made, given, first).certificate.model_dump()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"threshold", "p_value", "gap", "worse", "cost", "gap_interval", "cost_interval", "better"}
    assert (after["level"], after["tuning"], after["declared"]) == (0.1 * 0.25 / 2, 2, 2)


def test_the_bundles_own_threshold_gives_the_bundle_and_a_way_back_there_is_too() -> None:
    given = rows()
    made, tuned = certified(given)
    own = made.threshold
    assert own is not None
    assert at_threshold(made, given, own).hash == made.hash
    higher = at_threshold(made, given, proven(tuned)[3].threshold)
    assert higher.hash != made.hash
    assert at_threshold(higher, given, own).hash == made.hash


def test_a_threshold_that_did_not_pass_or_was_not_tried_is_refused_with_those_that_may_be_chosen() -> None:
    given = rows()
    made, tuned = certified(given)
    passed = [point.threshold for point in proven(tuned)]
    failed = [point.threshold for point in tuned.curve if not point.passed]
    assert failed
    between = (passed[0] + passed[1]) / 2
    for wrong in (failed[0], failed[-1], between, passed[0] + 1, np.nan, np.inf):
        with pytest.raises(PromotionRefused, match="none of those that are proven") as caught:
            at_threshold(made, given, wrong)
        assert f"{len(passed)} are, from {passed[-1]!r} to {passed[0]!r}" in caught.value.fix


def test_a_threshold_that_saves_nothing_is_refused() -> None:
    n = 600
    given = PairedRows(np.linspace(0, 1, n), np.ones(n), np.ones(n), np.linspace(0.9, 0.1, n), np.full(n, 1.0))
    made, tuned = certified(given)
    first = tuned.curve[0]
    assert first.passed
    assert first.cost > tuned.strong.cost, "one row is kept, and every row pays for the cheap answer"
    with pytest.raises(PromotionRefused, match="at a saving"):
        at_threshold(made, given, first.threshold)


def test_a_bundle_that_is_not_certified_has_none() -> None:
    with pytest.raises(PromotionRefused, match="is not certified"):
        at_threshold(bundle(threshold=None, certificate=REFUSED), rows(), 0.5)


@pytest.mark.parametrize("other", [rows(899), rows(seed=2), rows(0)])
def test_rows_other_than_those_of_the_certificate_prove_nothing(other: PairedRows) -> None:
    made, tuned = certified(rows())
    with pytest.raises(PromotionRefused, match=r"do not give the certificate of .* again"):
        at_threshold(made, other, proven(tuned)[3].threshold)


def test_rows_that_give_the_same_p_value_are_not_taken_for_those_of_the_certificate() -> None:
    def flat(n: int, *, wrong: int, usd: float) -> PairedRows:
        """The tiers agree but for a few rows that the cheap one alone has right, and as many the other way round."""
        cheap, strong = np.ones(n), np.ones(n)
        cheap[:wrong] = 0
        strong[wrong : 2 * wrong] = 0
        return PairedRows(np.full(n, 0.5), cheap, strong, np.full(n, usd), np.ones(n))

    given = flat(3000, wrong=5, usd=0.1)
    made, tuned = certified(given)
    threshold = tuned.curve[0].threshold
    assert at_threshold(made, given, threshold).hash == made.hash
    for other in (flat(3001, wrong=5, usd=0.1), flat(3000, wrong=6, usd=0.1), flat(3000, wrong=5, usd=0.11)):
        same, _ = certified(other)
        assert same.certificate.p_value == made.certificate.p_value, "the least that the paired test can give"
        with pytest.raises(PromotionRefused, match=r"do not give the certificate of .* again"):
            at_threshold(made, other, threshold)


def test_a_certificate_of_before_levels_were_written_is_taken_at_all_of_delta() -> None:
    given = rows()
    made, tuned = certified(given, declared=1, use=Use())
    told = made.certificate.model_dump(exclude={"level", "gap_interval", "cost_interval", "declared", "tuning"})
    old = made.model_copy(update={"certificate": Certificate.model_validate(told)})
    found = at_threshold(old, given, proven(tuned)[3].threshold).certificate
    assert isinstance(found, Certificate)
    assert found.level is None
    assert found.p_value == proven(tuned)[3].p_value
    assert digest(old.model_dump(mode="json")) == old.hash
