"""Two runs row by row: which rows flipped, and what each flip is put down to."""

from typing import Any

import pytest

from domain.requests import Frame
from domain.run_diffs import Ended, Part, Said, behind, diff_runs

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


def ended(row: str = "r", *, tier: str = "cheap", key: str = "k", quality: float | None = 1.0, usd: float = 0.001,
          **tiers: Said) -> Ended:  # fmt: skip
    answer = tiers[tier]
    return Ended(row, key, answer.output, tier if answer.output else None, usd, quality, tiers)


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
    assert behind(ended(cheap=said()), ended(cheap=other), other_threshold=True) == parts


def test_a_row_that_says_something_else_is_put_down_to_the_data_alone() -> None:
    other = ended(cheap=said("loan", asked="p", model="n"), key="another")
    assert behind(ended(cheap=said()), other, other_threshold=True) == (Part.DATA,)


def test_a_row_that_went_to_another_tier_is_put_down_to_the_threshold_or_to_what_moved_its_confidence() -> None:
    kept, up = ended(cheap=said()), ended(tier="strong", cheap=said(), strong=said("loan", asked="s"))
    assert behind(kept, up, other_threshold=True) == (Part.THRESHOLD,)
    unsure = ended(tier="strong", cheap=said(confidence=0.1), strong=said("loan", asked="s"))
    assert behind(kept, unsure, other_threshold=False) == (Part.PRIOR,)
    assert behind(kept, unsure, other_threshold=True) == (Part.PRIOR, Part.THRESHOLD)
    never_asked = ended(tier="strong", strong=said("loan", asked="s"))
    assert behind(kept, never_asked, other_threshold=True) == (Part.THRESHOLD,)


def test_what_is_not_on_record_is_not_guessed() -> None:
    gone = Said("p", None, 0, {"topic": "loan"}, 0.5)
    assert behind(ended(cheap=said()), ended(cheap=gone), other_threshold=True) == ()
    found = diff_runs([ended(cheap=said())], [ended(cheap=gone)], other_threshold=True)
    assert found.causes == {"not on record": 1}


def test_rows_are_matched_by_name_and_only_other_answers_are_flips() -> None:
    before = [ended(f"r{n}", cheap=said(), quality=1.0) for n in range(20)]
    after = [
        ended(f"r{n}", cheap=said("loan", asked="p", model="n") if n < 3 else said(), quality=float(n >= 3), usd=0.002)
        for n in reversed(range(1, 22))
    ]
    found = diff_runs(before, after, other_threshold=False)
    assert (found.rows, found.before_only, found.after_only) == (19, 1, 2)
    assert {flip.before.row for flip in found.flips} == {"r1", "r2"}
    assert found.causes == {"model": 2}
    assert found.quality.mean == pytest.approx(-2 / 19)
    assert found.usd_per_1000.mean == pytest.approx(1.0)


def test_quarantine_is_an_end_too_and_rows_without_gold_have_no_quality() -> None:
    found = diff_runs(
        [ended(cheap=said(), quality=None)], [ended(cheap=said(None), quality=None)], other_threshold=False
    )
    assert (len(found.flips), found.quality.n) == (1, 0)
    same = diff_runs([ended(cheap=said(None))], [ended(cheap=said(None))], other_threshold=False)
    assert same.flips == ()
