"""Learned scores by themselves: one row and many, JSON and hash, missing features, ties, rows of the fit refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from domain.canonical import canonical
from domain.learned_scores import (
    Features,
    FeatureTable,
    FittedOn,
    IsotonicScore,
    LeakedRows,
    LearnedScore,
    Linear,
    Price,
    RegretScore,
    check_unseen,
    unseen_confidences,
)
from domain.workloads import SignalName

EXAMPLES = settings(max_examples=150, deadline=None, database=None, derandomize=True)
MARGIN, MASS = SignalName.MARGIN, SignalName.ALLOWED_MASS
SEEN = tuple(f"seen-{i}" for i in range(100))
ISOTONIC = IsotonicScore(
    signal=MARGIN,
    pooled=((0.0, 0.1), (0.3, 0.1 + 1e-9), (0.300001, 0.7), (1.0, 0.9)),
    labels={"card": ((0.0, 0.0), (0.123456789, 1 / 3), (0.9, 0.35), (1.0, 0.99))},
    fitted=FittedOn.of(SEEN),
)
REGRET = RegretScore(
    signals=(MARGIN, MASS),
    fills={MARGIN: 0.7, MASS: 2.1},
    labels=("card", "loan"),
    cheap=Linear(
        intercept=0.3,
        weights={"margin": 0.9, "allowed-mass": 0.2, "no margin": -0.4, "length": -0.1, "label card": 0.5},
    ),
    strong=Linear(intercept=2.2, weights={"margin": 0.1, "length": -0.05, "label loan": -0.3}),
    price=Price(base=0.4, per_char=0.003, low=0.2, high=6.0),
    fitted=FittedOn.of(SEEN),
)
SCORES = pytest.mark.parametrize("score", [ISOTONIC, REGRET], ids=["isotonic", "regret"])
VALUES = st.one_of(st.floats(0, 1), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0, -0.5, 2.0, 5e-324]))
ROWS = st.builds(
    Features,
    key=st.just("row"),
    signals=st.dictionaries(st.sampled_from([MARGIN, MASS, SignalName.ENTROPY]), VALUES, max_size=3),
    label=st.sampled_from([None, "card", "loan", "never seen"]),
    chars=st.sampled_from([0, 1, 17, 800, 10**12]),
)


def row(margin: float = 0.5, **changes: object) -> Features:
    return replace(Features("row", {MARGIN: margin, MASS: 0.9}, "card", 200), **changes)  # type: ignore[arg-type]


def confidence(score: IsotonicScore | RegretScore, one: Features) -> float:
    found = score.confidence(one)
    assert found is not None
    return found


@SCORES
@EXAMPLES
@given(rows=st.lists(ROWS, min_size=1, max_size=40))
def test_a_row_gets_the_same_bits_alone_and_among_others(
    score: IsotonicScore | RegretScore, rows: list[Features]
) -> None:
    together = score.confidences(FeatureTable.of(rows))
    alone = [score.confidence(one) for one in rows]
    assert [None if math.isnan(value) else value.hex() for value in together.tolist()] == [
        None if value is None else value.hex() for value in alone
    ]


@SCORES
def test_a_row_gets_the_same_bits_wherever_it_stands_in_a_long_table(score: IsotonicScore | RegretScore) -> None:
    rng = np.random.default_rng(0)
    n = 5_003
    signals = {MARGIN: rng.random(n), MASS: np.where(rng.random(n) < 0.1, np.nan, rng.random(n))}
    labels = tuple(rng.choice(["card", "loan", "other"], n).tolist())
    table = FeatureTable(tuple(map(str, range(n))), signals, labels, np.floor(np.exp(rng.normal(5, 1, n))))
    whole = score.confidences(table)
    some = rng.permutation(n)[:701]
    assert score.confidences(table.take(some)).tobytes() == whole[some].tobytes()


@SCORES
@EXAMPLES
@given(one=ROWS)
def test_nothing_but_a_number_between_0_and_1_comes_out_and_none_where_no_signal_is_known(
    score: IsotonicScore | RegretScore, one: Features
) -> None:
    wanted = [MARGIN] if isinstance(score, IsotonicScore) else [MARGIN, MASS]
    known = any(math.isfinite(one.signals.get(name, math.nan)) for name in wanted)
    found = score.confidence(one)
    assert (found is not None) == known
    assert found is None or 0 <= found <= 1


@SCORES
def test_a_table_without_any_column_of_signals_has_no_confidence(score: IsotonicScore | RegretScore) -> None:
    table = FeatureTable(("a", "b"), {}, ("card", None), np.array([1.0, np.nan]))
    assert np.isnan(score.confidences(table)).all()
    assert len(score.confidences(FeatureTable.of([]))) == 0


@SCORES
def test_a_score_survives_json_and_keeps_its_hash_whatever_the_order_of_its_keys(
    score: IsotonicScore | RegretScore,
) -> None:
    plain = score.model_dump(mode="json")
    turned = json.loads(json.dumps(dict(reversed(plain.items()))))
    read: IsotonicScore | RegretScore = TypeAdapter(LearnedScore).validate_python(turned)
    assert read == score
    assert read.hash == score.hash
    assert canonical(read.model_dump(mode="json")) == canonical(plain)
    rows = FeatureTable.of([row(m) for m in (0.0, 0.2, 0.55, 1.0)])
    assert read.confidences(rows).tobytes() == score.confidences(rows).tobytes()


def test_a_hash_tells_the_smallest_change_of_a_number_and_of_the_rows_of_the_fit() -> None:
    other = ISOTONIC.model_copy(update={"pooled": ((0.0, 0.1), (1.0, 0.9))})
    stranger = ISOTONIC.model_copy(update={"fitted": FittedOn.of(SEEN[1:])})
    price = REGRET.price.model_copy(update={"base": 0.400000000001})
    assert len({ISOTONIC.hash, other.hash, stranger.hash}) == 3
    assert REGRET.model_copy(update={"price": price}).hash != REGRET.hash


def test_a_score_holds_no_number_that_is_not_finite_and_no_word_that_is_not_known() -> None:
    for change in ({"base": math.nan}, {"high": math.inf}, {"low": 0.0}, {"slope": 1.0}):
        with pytest.raises(ValidationError):
            Price.model_validate(REGRET.price.model_dump() | change)


def test_the_isotonic_score_rises_with_its_signal_and_falls_back_to_the_pooled_map() -> None:
    grid = np.linspace(0, 1, 400)
    for label in ("card", "never seen", None):
        found = [confidence(ISOTONIC, row(float(m), label=label)) for m in grid]
        assert found == sorted(found)
        assert len(set(found)) == len(found)
    assert confidence(ISOTONIC, row(0.65, label=None)) == pytest.approx(0.7 + 0.2 * 0.349999 / 0.699999)
    assert confidence(ISOTONIC, row(0.0, label="card")) == 0.0
    assert confidence(ISOTONIC, row(-3.0)) == confidence(ISOTONIC, row(0.0))
    assert confidence(ISOTONIC, row(1.0)) == confidence(ISOTONIC, row(7.0)) == 0.99
    assert confidence(ISOTONIC, row(0.123456789)) == 1 / 3, "at a knot the knot's own value"


@SCORES
def test_equal_rows_have_equal_confidences(score: IsotonicScore | RegretScore) -> None:
    found = score.confidences(FeatureTable.of([row(0.4), row(0.4), row(0.4000001), row(0.4)]))
    assert found[0] == found[1] == found[3] < found[2]


def test_the_regret_score_is_the_loss_expected_for_each_unit_of_what_strong_would_cost() -> None:
    one = row(0.5, chars=200)
    odds = 0.3 + 0.9 * 0.0 + 0.2 * math.log(9) - 0.1 * math.log1p(200) + 0.5
    strong = 2.2 - 0.05 * math.log1p(200)
    lost = 1 / (1 + math.exp(-strong)) - 1 / (1 + math.exp(-odds))
    dear = lost / (0.4 + 0.003 * 200)
    assert REGRET.regrets(FeatureTable.of([one]))[0] == pytest.approx(lost, abs=1e-12)
    assert confidence(REGRET, one) == pytest.approx(0.5 - 0.5 * dear / (1 + dear), abs=1e-12)
    assert confidence(REGRET, row(0.9)) > confidence(REGRET, row(0.5)) > confidence(REGRET, row(0.1))


def test_of_two_rows_that_lose_as_much_the_one_that_costs_strong_more_is_kept_first() -> None:
    flat = Linear(intercept=1.0, weights={})
    score = REGRET.model_copy(update={"strong": Linear(intercept=2.0, weights={}), "cheap": flat})
    short, long, longest = (confidence(score, row(chars=chars)) for chars in (10, 1000, 10**9))
    assert short < long < longest < 0.5
    gains = score.model_copy(update={"strong": Linear(intercept=0.0, weights={})})
    assert confidence(gains, row()) > 0.5, "a row that gains is kept before any that loses"
    assert confidence(score, row(chars=0)) == confidence(score, row(chars=-5))


def test_a_missing_signal_is_filled_and_marked_and_an_unknown_label_counts_for_none() -> None:
    bare = Features("row", {MASS: 0.9}, "card", 200)
    fill = 1 / (1 + math.exp(-0.7))
    filled = replace(bare, signals={MARGIN: fill, MASS: 0.9})
    columns = REGRET.model_copy(update={"cheap": Linear(intercept=0.3, weights={"margin": 0.9})})
    assert confidence(columns, bare) == pytest.approx(confidence(columns, filled), abs=1e-12)
    assert confidence(REGRET, bare) < confidence(REGRET, filled), "the mark itself weighs against it"
    assert confidence(REGRET, row(label=None)) == confidence(REGRET, row(label="never seen"))
    assert confidence(REGRET, row(label="loan")) != confidence(REGRET, row(label=None))


def test_a_certificate_cannot_be_had_on_a_row_of_the_fit() -> None:
    table = FeatureTable.of([row(0.4), replace(row(0.6), key="fresh")])
    found = unseen_confidences(REGRET, table, fit_keys=SEEN[::-1])
    assert found.tobytes() == REGRET.confidences(table).tobytes()
    leaked = FeatureTable.of([row(0.4), replace(row(0.6), key=SEEN[7])])
    with pytest.raises(LeakedRows, match=r"1 of 2 rows, seen-7 among them"):
        unseen_confidences(REGRET, leaked, fit_keys=SEEN)


@pytest.mark.parametrize("named", [(), SEEN[1:], (*SEEN[1:], "another"), (*SEEN, "one more")])
def test_who_names_other_rows_than_those_of_the_fit_is_refused(named: tuple[str, ...]) -> None:
    with pytest.raises(LeakedRows, match=f"100 other rows than the {len(named)} named"):
        check_unseen(FittedOn.of(SEEN), fit_keys=named, keys=["fresh"])
