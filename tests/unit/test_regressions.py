"""Whether a run is worse than allowed: proven, refuted, or too few rows to tell."""

import pytest

from domain.comparisons import Difference
from domain.regressions import judge_regression


def quality(low: float, mean: float, high: float) -> Difference:
    return Difference(mean, low, high, 100, up=1, down=2, p_value=0.5, method="m")


@pytest.mark.parametrize(
    ("found", "passes", "passes_proof", "said"),
    [
        (quality(-0.30, -0.20, -0.10), False, False, "larger than 0.05, whole interval included"),
        (quality(-0.30, -0.20, -0.05), True, False, "too few to tell"),
        (quality(-0.06, 0.00, 0.06), True, False, "too few to tell"),
        (quality(-0.05, 0.00, 0.05), True, True, "no larger than 0.05, interval included"),
        (quality(0.10, 0.20, 0.30), True, True, "no larger than 0.05"),
    ],
)
def test_only_what_the_rows_prove_fails_and_with_proof_asked_for_only_that_passes(
    found: Difference, passes: bool, passes_proof: bool, said: str
) -> None:
    lenient = judge_regression(found, max_drop=0.05, prove=False)
    strict = judge_regression(found, max_drop=0.05, prove=True)
    assert (lenient.passed, strict.passed) == (passes, passes_proof)
    assert said in lenient.reason
    assert (lenient.drop, lenient.low, lenient.high) == (-found.mean, -found.high, -found.low)
