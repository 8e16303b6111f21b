"""Cohen's kappa and its interval: against scikit-learn, a published example and resampled cases."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score  # pyright: ignore[reportUnknownVariableType]

from domain.agreements import agreement

TABLE = [[40, 9, 1], [6, 30, 4], [2, 3, 25]]


def cases(table: list[list[int]]) -> tuple[list[int], list[int]]:
    """The verdicts behind a table, case by case."""
    pairs = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return [one for one, _ in pairs], [two for _, two in pairs]


def test_kappa_is_scikit_learns() -> None:
    one, two = cases(TABLE)
    assert agreement(TABLE).kappa == pytest.approx(cohen_kappa_score(one, two), abs=1e-12)


def test_the_published_example_of_fleiss_cohen_and_everitt() -> None:
    found = agreement([[106, 10, 4], [22, 28, 10], [2, 12, 6]])
    assert found.kappa == pytest.approx(0.429, abs=5e-4)
    assert (found.high - found.low) / 2 / 1.959964 == pytest.approx(0.054, abs=1e-3)


def test_the_interval_is_as_wide_as_that_of_resampled_cases() -> None:
    counts = np.array(TABLE)
    draws = np.random.default_rng(1).multinomial(counts.sum(), counts.ravel() / counts.sum(), size=4000)
    kappas = [found for draw in draws if (found := agreement(draw.reshape(3, 3).tolist()).kappa) is not None]
    found = agreement(TABLE)
    low, high = np.quantile(kappas, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


def test_a_judge_who_says_the_same_of_everything_has_no_kappa() -> None:
    assert agreement([[5, 0], [0, 0]]).kappa is None
    assert agreement([[0, 0], [0, 0]]).kappa is None
    assert agreement([[5, 3], [0, 0]]).kappa == pytest.approx(0)


def test_the_share_of_agreement_has_wilsons_interval_and_a_table_must_be_square() -> None:
    share = agreement([[20, 4], [3, 13]]).share
    assert (share.n, share.mean) == (40, pytest.approx(33 / 40))
    assert share.low < share.mean < share.high
    with pytest.raises(ValueError, match="square"):
        agreement([[1, 2, 3], [4, 5, 6]])
