"""E-processes: false alarms are as rare as promised, losses are found, and a state goes on as if never interrupted."""

import json
import math

import numpy as np
import pytest

from domain.confidences import FloatArray
from domain.eprocesses import (
    CEILING,
    DETECTOR_ALARM,
    STAKES,
    Evidence,
    Game,
    Rates,
    gather,
    interval,
    log_mean,
    watch_rate,
)

ALPHA = 0.05
EPS = 0.02
PROMISE = Game(-1.0, 1.0, EPS)
PATHS = 500


def losses(rng: np.random.Generator, n: int, *, gap: float, differ: float = 0.1) -> FloatArray:
    """Losses of 0/1 qualities with this mean and this share of rows that differ."""
    chances = [(differ + gap) / 2, (differ - gap) / 2]
    return rng.choice([1.0, -1.0, 0.0], size=n, p=[*chances, 1 - sum(chances)])


def alarmed(game: Game, draw: "list[FloatArray]", alpha: float = ALPHA) -> float:
    return float(np.mean([gather(Evidence(), path.tolist(), game, alpha=alpha).crossed is not None for path in draw]))


@pytest.mark.parametrize("differ", [0.03, 0.1, 0.5])
def test_at_the_very_bound_the_share_of_false_alarms_is_at_most_alpha(differ: float) -> None:
    rng = np.random.default_rng(31)
    paths = [losses(rng, 1500, gap=EPS, differ=differ) for _ in range(PATHS)]
    assert alarmed(PROMISE, paths) <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / PATHS)


def test_the_check_can_fail_a_bound_that_is_too_low_alarms_far_too_often() -> None:
    rng = np.random.default_rng(31)
    paths = [losses(rng, 1500, gap=EPS) for _ in range(100)]
    assert alarmed(Game(-1.0, 1.0, -EPS), paths) > 0.3


def test_a_relative_promise_at_its_bound_raises_few_false_alarms() -> None:
    rng, rho, game = np.random.default_rng(5), 0.1, Game(-1.0, 0.9, 0.0)
    paths: list[FloatArray] = []
    for _ in range(PATHS):
        strong = (rng.random(800) < 0.8).astype(float)
        lost = (rng.random(800) < 0.1) * strong  # E[loss] = .1 of E[strong]
        paths.append(lost - rho * strong)
    assert alarmed(game, paths) <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / PATHS)


def test_a_real_loss_is_found_about_as_soon_as_theory_says() -> None:
    rng = np.random.default_rng(7)
    found = [gather(Evidence(), losses(rng, 3000, gap=0.06).tolist(), PROMISE, alpha=ALPHA) for _ in range(60)]
    rows = [state.crossed for state in found if state.crossed is not None]
    assert len(rows) >= 57
    theory = 2 * math.log(1 / ALPHA) * 0.1 / (0.06 - EPS) ** 2
    assert theory == pytest.approx(375, abs=1)
    assert 0.5 * theory < float(np.median(rows)) < 2.5 * theory


def test_the_detector_sees_a_late_change_that_the_e_process_has_no_wealth_left_for() -> None:
    rng = np.random.default_rng(11)
    before = 6000
    path = [*losses(rng, before, gap=-0.03).tolist(), *losses(rng, 1500, gap=0.08).tolist()]
    state = gather(Evidence(), path, PROMISE, alpha=ALPHA)
    assert state.crossed is None
    assert state.detector_crossed is not None
    assert before < state.detector_crossed < before + 1200
    # At the bound the sum of wealth grows by one a row: a false alarm before so many rows is rare.
    quiet = [gather(Evidence(), losses(rng, 500, gap=EPS).tolist(), PROMISE, alpha=ALPHA) for _ in range(200)]
    assert np.mean([q.detector_crossed is not None for q in quiet]) <= 500 / DETECTOR_ALARM + 3 * 0.0158


def test_the_wealth_is_the_mean_over_the_stakes_in_units_of_one_plus_eps() -> None:
    state = gather(Evidence(), [1.0, 0.0, -1.0], PROMISE, alpha=ALPHA)
    by_hand = [math.prod(1 + stake / (1 + EPS) * (loss - EPS) for loss in (1.0, 0.0, -1.0)) for stake in STAKES]
    assert [math.exp(wealth) for wealth in state.log_wealth] == pytest.approx(by_hand, rel=1e-12)
    assert math.exp(log_mean(state.log_wealth)) == pytest.approx(sum(by_hand) / len(STAKES), rel=1e-12)
    assert math.exp(state.peak) == pytest.approx(np.mean([1 + s / (1 + EPS) * (1 - EPS) for s in STAKES]), rel=1e-12)
    one = gather(Evidence(), [1.0], PROMISE, alpha=ALPHA)
    assert one.detector == pytest.approx([math.exp(wealth) for wealth in one.log_wealth], rel=1e-12)


@pytest.mark.parametrize("cuts", [[1], [13, 14, 400], list(range(1, 700, 7))])
def test_a_state_that_is_written_down_and_continued_is_that_of_one_long_run_bit_for_bit(cuts: list[int]) -> None:
    path = np.random.default_rng(3).uniform(-1, 1, 700)
    whole = gather(Evidence(), path.tolist(), PROMISE, alpha=ALPHA)
    state = Evidence()
    for piece in np.split(path, cuts):
        state = Evidence.model_validate(json.loads(json.dumps(state.model_dump(mode="json"))))
        state = gather(state, piece.tolist(), PROMISE, alpha=ALPHA)
    assert state == whole
    rates, pieces = watch_rate(Rates(), (path > 0).tolist(), (0.3, 0.4)), Rates()
    for piece in np.split(path, cuts):
        pieces = watch_rate(Rates.model_validate_json(pieces.model_dump_json()), (piece > 0).tolist(), (0.3, 0.4))
    assert pieces == rates


def test_the_wealth_does_not_depend_on_the_order_of_the_rows_and_the_alarm_stands_once_it_was_raised() -> None:
    path = losses(np.random.default_rng(9), 2000, gap=0.1).tolist()
    forward = gather(Evidence(), path, PROMISE, alpha=ALPHA)
    backward = gather(Evidence(), path[::-1], PROMISE, alpha=ALPHA)
    assert forward.log_wealth == pytest.approx(backward.log_wealth, rel=1e-9)
    assert forward.crossed is not None
    later = gather(forward, [-1.0] * 2000, PROMISE, alpha=ALPHA)
    assert later.crossed == forward.crossed
    assert log_mean(later.log_wealth) < math.log(1 / ALPHA) < later.peak


def test_the_confidence_sequence_holds_at_all_times_at_once_and_shrinks() -> None:
    rng, missed = np.random.default_rng(13), 0
    for _ in range(200):
        path, state, ok = losses(rng, 600, gap=0.05), Evidence(), True
        for piece in np.split(path, 30):
            state = gather(state, piece.tolist(), PROMISE, alpha=ALPHA)
            low, high = interval(state, PROMISE)
            ok &= low <= 0.05 <= high
        missed += not ok
    assert missed / 200 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    assert interval(Evidence(), PROMISE) == (-1.0, 1.0)
    long = gather(Evidence(), losses(rng, 20_000, gap=0.05).tolist(), PROMISE, alpha=ALPHA)
    low, high = interval(long, PROMISE)
    assert 0 < low < 0.05 < high < 0.1


def test_values_outside_of_the_game_are_refused_and_wealth_stays_a_number() -> None:
    with pytest.raises(ValueError, match="is not in"):
        gather(Evidence(), [1.01], PROMISE, alpha=ALPHA)
    state = gather(Evidence(), [1.0] * 5000, PROMISE, alpha=ALPHA)
    assert max(state.detector) == CEILING
    assert Evidence.model_validate(json.loads(json.dumps(state.model_dump(mode="json")))) == state


def test_a_share_that_leaves_its_band_on_either_side_is_found_and_one_inside_is_not() -> None:
    rng = np.random.default_rng(17)

    def crossed(rate: float, n: int = 3000) -> int | None:
        return watch_rate(Rates(), (rng.random(n) < rate).tolist(), (0.55, 0.61)).crossed

    assert all(crossed(0.82) is not None for _ in range(20))
    assert all(crossed(0.35) is not None for _ in range(20))
    assert sum(crossed(0.58) is not None for _ in range(100)) <= 5
    assert sum(crossed(rate, n=300) is not None for rate in (0.55, 0.61) for _ in range(100)) <= 6
