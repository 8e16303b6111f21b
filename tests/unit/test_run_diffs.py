"""Two runs row by row: which rows flipped, and what each flip is put down to."""

from typing import Any

import pytest

from domain.bundles import Bundle
from domain.requests import Frame, Request
from domain.routers import Routing
from domain.run_diffs import Ended, Part, Rule, Said, behind, diff_runs, one_metric
from domain.workloads import SignalName

BODY: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "system", "content": "s"}],
    "temperature": 0.0,
    "response_format": {"type": "json_schema", "json_schema": {"name": "A", "schema": {"title": "A"}}},
}


def said(
    output: str | None = "card", *, asked: str = "q", reasks: int = 0, confidence: float = 0.5, **body: Any
) -> Said:
    revision = body.pop("revision", None)
    answer = None if output is None else {"topic": output}
    return Said(asked, Frame({**BODY, **body}, revision), reasks, answer, confidence)


def ended(row: str = "r", *, tier: str = "cheap", inputs: str = "i", gold: str = "g", quality: float | None = 1.0,
          usd: float = 0.001, straight: bool = False, **tiers: Said) -> Ended:  # fmt: skip
    answer = tiers[tier]
    return Ended(
        row,
        inputs + gold,
        inputs,
        answer.output,
        tier if answer.output else None,
        None if answer.output is None else tier == "strong" and not straight,
        usd,
        quality,
        tiers,
    )


def rule(threshold: float | None = 0.5, *, kind: str = "route", **routing: Any) -> Rule:
    deployed = Routing(**routing)
    return Rule(deployed, threshold, deployed if kind == "route" else Routing())


SAME = (rule(), rule())
OTHER_THRESHOLD = (rule(), rule(0.9))
OTHER_SIGNAL = (rule(), rule(signal=SignalName.ENTROPY))


@pytest.mark.parametrize(
    ("other", "parts"),
    [
        (said("loan", asked="p", model="n"), (Part.MODEL,)),
        (said("loan", asked="p", revision="2"), (Part.MODEL,)),
        (said("loan", asked="p", messages=[]), (Part.PROMPT,)),
        (said("loan", asked="p"), (Part.PROMPT,)),
        (said("loan", asked="p", temperature=1.0), (Part.SAMPLING,)),
        (said("loan", asked="p", response_format={}), (Part.SCHEMA,)),
        (said("loan", asked="p", model="n", messages=[]), (Part.MODEL, Part.PROMPT)),
        (said("loan", asked="p", reasks=1), (Part.REASK,)),
        (said("loan"), (Part.PRIOR,)),
    ],
)
def test_a_flip_at_one_tier_is_put_down_to_what_differs_in_its_request(other: Said, parts: tuple[Part, ...]) -> None:
    assert behind(ended(cheap=said()), ended(cheap=other), rules=OTHER_THRESHOLD) == parts


def test_a_row_that_says_something_else_is_put_down_to_the_data_and_to_all_else_that_differs() -> None:
    edited = ended(cheap=said("loan", asked="p"), inputs="another")
    assert behind(ended(cheap=said()), edited, rules=OTHER_THRESHOLD) == (Part.DATA,), "its request cannot be the same"
    other = ended(cheap=said("loan", asked="p", model="n"), inputs="another")
    assert behind(ended(cheap=said()), other, rules=OTHER_THRESHOLD) == (Part.DATA, Part.MODEL)
    moved = ended(tier="strong", cheap=said("loan", asked="p", messages=[]), strong=said(asked="s"), inputs="another")
    assert behind(ended(cheap=said()), moved, rules=OTHER_THRESHOLD) == (Part.DATA, Part.PROMPT, Part.THRESHOLD)
    alone = ended(tier="strong", strong=said("loan", asked="s"), inputs="another")
    assert behind(ended(cheap=said()), alone, rules=SAME) == (Part.DATA,), "nothing else of it is in both"


def test_a_corrected_gold_answer_is_behind_no_flip() -> None:
    for other, parts in ((said("loan"), (Part.PRIOR,)), (said("loan", asked="p", model="n"), (Part.MODEL,))):
        assert behind(ended(cheap=said()), ended(cheap=other, gold="corrected"), rules=SAME) == parts
    kept, up = ended(cheap=said()), ended(tier="strong", cheap=said(), strong=said("loan"), gold="corrected")
    assert behind(kept, up, rules=OTHER_THRESHOLD) == (Part.THRESHOLD,)


def test_an_edit_that_no_prompt_looks_at_is_behind_no_flip() -> None:
    assert behind(ended(cheap=said()), ended(cheap=said("loan"), inputs="another"), rules=SAME) == (Part.PRIOR,)


def talk(output: str | None = "card", *, row: str = "row", reasks: int = 0, opening: int = 1, **body: Any) -> Said:
    """An answer by the last request of its conversation, after an opening of so many examples."""
    turns = [{"role": role, "content": f"{n}"} for n in range(opening) for role in ("user", "assistant")]
    again = [{"role": role, "content": "again"} for _ in range(reasks) for role in ("assistant", "user")]
    messages: Any = [*BODY["messages"], *turns, {"role": "user", "content": row}, *again]
    asked = Request.of({**BODY, **body, "messages": messages}, None)
    return Said(asked.hash, asked.frame, reasks, None if output is None else {"topic": output}, 0.5)


def refused(**asked: Any) -> Said:
    """An answer whose re-ask was refused: it stands under its first request."""
    first = talk(None, **asked)
    return Said(first.request_hash, first.frame, 1, None, None)


@pytest.mark.parametrize(
    ("one", "other", "parts"),
    [
        (talk(), talk("loan", reasks=1), {Part.REASK}),
        (talk(reasks=1), talk("loan", reasks=2), {Part.REASK}),
        (talk(None, reasks=1), talk("loan", reasks=2), {Part.REASK}),
        (talk(), refused(), {Part.REASK}),
        (talk(), talk("loan", reasks=1, model="n"), {Part.MODEL, Part.REASK}),
        (talk(reasks=1), talk("loan", reasks=1, model="n"), {Part.MODEL}),
        (talk(reasks=1), talk("loan", reasks=1, opening=3), {Part.PROMPT}),
        (talk(reasks=2), talk("loan", reasks=1, opening=3), {Part.PROMPT, Part.REASK}),
        (talk(reasks=1), talk("loan", reasks=1, row="put otherwise"), {Part.PROMPT}),
        (talk(reasks=1), talk("loan", reasks=1, temperature=1.0), {Part.SAMPLING}),
        (talk(), refused(opening=4), {Part.PROMPT, Part.REASK}),
        (talk(), refused(model="n"), {Part.MODEL, Part.REASK}),
        (talk(reasks=1), talk("loan", reasks=1), {Part.PRIOR}),
        (talk(), talk(None), set[Part]()),
    ],
)
def test_a_re_ask_hides_nothing_of_the_request_before_it(one: Said, other: Said, parts: set[Part]) -> None:
    before, after = ended(tier="strong", strong=one), ended(tier="strong", strong=other)
    assert set(behind(before, after, rules=SAME)) == parts
    assert set(behind(after, before, rules=SAME)) == parts


def test_re_asks_of_which_nothing_else_is_on_record_are_named() -> None:
    gone = Said("p", None, 1, {"topic": "loan"}, 0.5)
    also = Said("q", None, 1, {"topic": "card"}, 0.5)
    assert behind(ended(cheap=said()), ended(cheap=gone), rules=SAME) == (Part.REASK,)
    assert behind(ended(cheap=also), ended(cheap=gone), rules=SAME) == (Part.REASK,)


def test_another_signal_is_not_taken_for_another_label_prior() -> None:
    kept, unsure = ended(cheap=said()), ended(tier="strong", cheap=said(confidence=0.1), strong=said("loan", asked="s"))
    assert behind(kept, unsure, rules=OTHER_SIGNAL) == (Part.SIGNAL,)
    assert behind(kept, unsure, rules=(rule(), rule(0.9, signal=SignalName.ENTROPY))) == (Part.SIGNAL, Part.THRESHOLD)
    more = (rule(signal=SignalName.SELF_CONSISTENCY, samples=3), rule(signal=SignalName.SELF_CONSISTENCY, samples=9))
    assert behind(kept, unsure, rules=more) == (Part.SIGNAL,)
    relabelled = ended(tier="strong", cheap=said("cash", confidence=0.1), strong=said("loan", asked="s"))
    assert behind(kept, relabelled, rules=OTHER_SIGNAL) == (Part.PRIOR, Part.SIGNAL)
    assert behind(kept, ended(cheap=said("cash")), rules=OTHER_SIGNAL) == (Part.PRIOR,), "no tier changed"


def test_an_optimisation_stores_the_margin_whatever_its_router_reads() -> None:
    kept, up = ended(cheap=said()), ended(tier="strong", cheap=said(), strong=said("loan", asked="s"))
    tuned = [rule(kind="optimize", signal=name) for name in (SignalName.MARGIN, SignalName.ENTROPY)]
    assert behind(kept, up, rules=(tuned[0], tuned[1])) == (Part.SIGNAL,)
    moved = ended(tier="strong", cheap=said(confidence=0.1), strong=said("loan", asked="s"))
    other = rule(0.9, signal=SignalName.ENTROPY)
    assert behind(kept, moved, rules=(tuned[1], other)) == (Part.THRESHOLD,), "the margin is not the entropy"


def test_a_runs_rule_follows_from_its_bundle_its_kind_and_its_certificate() -> None:
    entropy = Routing(signal=SignalName.ENTROPY)
    bundle = Bundle.model_construct(routing=entropy, threshold=0.7)
    assert Rule.of(bundle, kind="route", void=False) == Rule(entropy, 0.7, entropy)
    assert Rule.of(bundle, kind="route", void=True).threshold is None
    assert Rule.of(bundle, kind="optimize", void=False) == Rule(entropy, 0.7, Routing())
    assert Rule.of(None, kind="optimize", void=False).threshold is None


def test_without_a_threshold_no_signal_is_read() -> None:
    kept, up = ended(cheap=said()), ended(tier="strong", strong=said("loan", asked="s"))
    assert behind(kept, up, rules=(rule(), rule(None, signal=SignalName.ENTROPY))) == (Part.THRESHOLD,)


def test_a_row_too_long_for_the_cheap_tier_of_one_run_is_put_down_to_that_limit() -> None:
    skipped = Said("q", None, 0, None, None)
    long = ended(tier="strong", straight=True, cheap=skipped, strong=said("loan", asked="s"))
    limited = rule(0.9, straight_from=100)
    assert behind(ended(cheap=said()), long, rules=(rule(), limited)) == (Part.LENGTH,)
    assert behind(long, ended(cheap=said()), rules=(limited, rule())) == (Part.LENGTH,)
    longer = ended(cheap=said(asked="p"), inputs="shorter")
    assert behind(longer, long, rules=(limited, limited)) == (Part.DATA,), "the limit is the same, the row is longer"
    short = ended(tier="strong", cheap=said(), strong=said("loan", asked="s"))
    assert behind(ended(cheap=said()), short, rules=(rule(), limited)) == (Part.THRESHOLD,), "it was asked about"


def test_a_row_that_the_strong_tier_could_not_answer_did_not_change_tiers() -> None:
    lost = ended(tier="strong", cheap=said(), strong=said(None, asked="p", model="n"))
    answered = ended(tier="strong", cheap=said(), strong=said(asked="s"))
    assert behind(answered, lost, rules=OTHER_THRESHOLD) == (Part.MODEL,)
    assert behind(ended(cheap=said()), lost, rules=OTHER_THRESHOLD) == (Part.THRESHOLD,)


def test_runs_of_two_metrics_have_no_difference_of_quality() -> None:
    rows = [ended(cheap=said())], [ended(cheap=said("loan"))]
    found = diff_runs(*rows, rules=SAME, comparable=one_metric("exact_match", "token_f1"))
    assert (found.quality, found.rows, len(found.flips)) == (None, 1, 1)
    assert one_metric("exact_match", "exact_match")
    assert one_metric("exact_match", None), "one that nobody scored has no quality to compare"


def test_a_row_that_went_to_another_tier_is_put_down_to_the_threshold_or_to_what_moved_its_confidence() -> None:
    kept, up = ended(cheap=said()), ended(tier="strong", cheap=said(), strong=said("loan", asked="s"))
    assert behind(kept, up, rules=OTHER_THRESHOLD) == (Part.THRESHOLD,)
    unsure = ended(tier="strong", cheap=said(confidence=0.1), strong=said("loan", asked="s"))
    assert behind(kept, unsure, rules=SAME) == (Part.PRIOR,)
    assert behind(kept, unsure, rules=OTHER_THRESHOLD) == (Part.PRIOR, Part.THRESHOLD)
    never_asked = ended(tier="strong", strong=said("loan", asked="s"))
    assert behind(kept, never_asked, rules=OTHER_THRESHOLD) == (Part.THRESHOLD,)


def test_what_is_not_on_record_is_not_guessed() -> None:
    gone = Said("p", None, 0, {"topic": "loan"}, 0.5)
    assert behind(ended(cheap=said()), ended(cheap=gone), rules=OTHER_THRESHOLD) == ()
    found = diff_runs([ended(cheap=said())], [ended(cheap=gone)], rules=OTHER_THRESHOLD)
    assert found.causes == {"not on record": 1}


def test_rows_are_matched_by_name_and_only_other_answers_are_flips() -> None:
    before = [ended(f"r{n}", cheap=said(), quality=1.0) for n in range(20)]
    after = [
        ended(f"r{n}", cheap=said("loan", asked="p", model="n") if n < 3 else said(), quality=float(n >= 3), usd=0.002)
        for n in reversed(range(1, 22))
    ]
    found = diff_runs(before, after, rules=SAME)
    assert (found.rows, found.before_only, found.after_only) == (19, 1, 2)
    assert {flip.before.row for flip in found.flips} == {"r1", "r2"}
    assert found.causes == {"model": 2}
    assert found.quality is not None
    assert found.quality.mean == pytest.approx(-2 / 19)
    assert found.usd_per_1000.mean == pytest.approx(1.0)


def test_quarantine_is_an_end_too_and_rows_without_gold_have_no_quality() -> None:
    found = diff_runs([ended(cheap=said(), quality=None)], [ended(cheap=said(None), quality=None)], rules=SAME)
    assert found.quality is not None
    assert (len(found.flips), found.quality.n) == (1, 0)
    same = diff_runs([ended(cheap=said(None))], [ended(cheap=said(None))], rules=SAME)
    assert same.flips == ()
