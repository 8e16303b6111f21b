"""The population stability index: by hand, at its edges, and against samples that have not drifted."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from domain.drifts import stability

COUNTS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=12)


def test_index_as_computed_by_hand() -> None:
    found = stability([60, 40], [30, 70])
    assert found is not None
    p, q = (60.5 / 101, 40.5 / 101), (30.5 / 101, 70.5 / 101)
    by_hand = (q[0] - p[0]) * math.log(q[0] / p[0]) + (q[1] - p[1]) * math.log(q[1] / p[1])
    assert found.index == pytest.approx(by_hand)
    assert found.by_chance == pytest.approx(0.02 * stats.chi2.ppf(0.95, 1))
    assert (found.before, found.after, found.buckets, found.drifted) == (100, 100, 2, True)


def test_equal_shares_are_no_drift() -> None:
    found = stability([500, 300, 200], [500, 300, 200])
    assert found is not None
    assert found.index == 0
    assert not found.drifted


@pytest.mark.parametrize(("before", "after"), [([], []), ([0, 0], [1, 2]), ([3, 4], [0, 0]), ([5, 0], [7, 0])])
def test_nothing_to_compare_gives_none(before: list[int], after: list[int]) -> None:
    assert stability(before, after) is None


def test_counts_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="2 buckets cannot be compared with 3"):
        stability([1, 2], [1, 2, 3])


@given(COUNTS)
def test_symmetric_finite_never_negative_and_blind_to_empty_buckets(pairs: list[tuple[int, int]]) -> None:
    before, after = [b for b, _ in pairs], [a for _, a in pairs]
    found, turned = stability(before, after), stability(after, before)
    if found is None or turned is None:
        assert found is turned
        return
    assert found.index == pytest.approx(turned.index)
    assert 0 <= found.index < math.inf
    assert stability([*before, 0], [*after, 0]) == found


def test_five_of_a_hundred_pairs_without_a_drift_are_called_one() -> None:
    random = np.random.default_rng(7)
    shares = np.full(10, 0.1)
    told = [
        stability(random.multinomial(2000, shares).tolist(), random.multinomial(3000, shares).tolist())
        for _ in range(2000)
    ]
    called = sum(found is not None and found.drifted for found in told)
    assert stats.binomtest(called, 2000, 0.05).pvalue > 1e-3
