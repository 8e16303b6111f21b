"""Two bundles side by side: every part that differs is shown, and rows are compared with themselves."""

import pytest

from domain.bundle_diffs import Changed, compare_cascades, compare_repeats, diff_bundles, prompt_text
from domain.datasets import Split
from domain.figures import Row
from domain.outcomes import TierAnswer
from domain.workloads import TierName
from tests.unit.test_bundles import CERTIFIED, PROMPT, REFUSED, bundle


def row(key: str, *, cheap: float, strong: float, confidence: float | None = 0.9) -> Row:
    return Row(
        key=key,
        split=Split.TEST,
        cheap=TierAnswer({}, confidence, tokens=1, usd=0.001, failed=None),
        strong=TierAnswer({}, None, tokens=1, usd=0.01, failed=None),
        cheap_quality=cheap,
        strong_quality=strong,
    )


def test_equal_bundles_are_identical() -> None:
    assert diff_bundles(bundle(), bundle()).identical


def test_a_prompt_is_shown_as_a_text_diff_of_its_tier_alone() -> None:
    one = bundle()
    longer = PROMPT.model_copy(update={"instructions": "i\nand more"})
    two = bundle(cheap=one.cheap.model_copy(update={"prompt": longer}))
    found = diff_bundles(one, two)
    assert found.prompts[TierName.STRONG] == ""
    assert found.prompts[TierName.CHEAP].splitlines() == [
        f"--- {one.hash[:12]}",
        f"+++ {two.hash[:12]}",
        "@@ -1,4 +1,5 @@",
        " [system]",
        " i",
        "+and more",
        " f",
        " ",
    ]
    assert (found.schema, found.changed, found.identical) == ("", (), False)
    assert prompt_text(longer).startswith("[system]\ni\nand more\nf\n\n[user]\nText: {{text}}\n")


def test_the_schema_is_shown_as_a_text_diff() -> None:
    found = diff_bundles(bundle(), bundle(json_schema={"title": "Other"}))
    assert '+  "title": "Other"' in found.schema
    assert '-  "title": "Answer",' in found.schema or '-  "title": "Answer"' in found.schema
    assert not found.changed


def test_every_other_value_that_differs_is_named() -> None:
    one = bundle()
    dearer = one.cheap.tier.usd_per_million.model_copy(update={"input": 7.0})
    tier = one.cheap.tier.model_copy(update={"usd_per_million": dearer, "model": "c"})
    two = bundle(
        cheap=one.cheap.model_copy(update={"tier": tier, "prior": {"card": 1, "loan": 0.5}}),
        max_reasks=2,
        threshold=0.4,
        certificate=CERTIFIED.model_copy(update={"worse": 8}),
        lineage=one.lineage.model_copy(update={"dataset_version": "e"}),
    )
    found = diff_bundles(one, two)
    assert {part.name: (part.before, part.after) for part in found.changed} == {
        "cheap.tier.model": ("a", "c"),
        "cheap.tier.usd_per_million.input": (1.0, 7.0),
        "cheap.prior.loan": (None, 0.5),
        "max_reasks": (1, 2),
        "threshold": (0.1 + 0.2, 0.4),
        "certificate.worse": (7, 8),
        "lineage.dataset_version": ("d", "e"),
    }


def test_a_certificate_that_is_lost_is_shown() -> None:
    found = diff_bundles(bundle(), bundle(certificate=REFUSED, threshold=None))
    assert Changed("certificate.certified", before=True, after=False) in found.changed
    assert Changed("certificate.reason", before=None, after="few") in found.changed


def test_rows_are_compared_with_themselves_and_those_of_one_side_are_counted() -> None:
    keys = [f"k{n}" for n in range(30)]
    before = [row(key, cheap=0, strong=1) for key in (*keys, "only before")]
    after = [row(key, cheap=1, strong=1) for key in (*reversed(keys), "only after", "only after too")]
    found = compare_cascades(before, after, thresholds=(0.5, 0.5))
    assert (found.quality.n, found.before_only, found.after_only) == (30, 1, 2)
    assert (found.quality.mean, found.quality.up, found.quality.down) == (1, 30, 0)
    assert found.usd_per_1000.mean == 0


@pytest.mark.parametrize(
    ("thresholds", "quality", "usd"),
    [
        ((0.5, 0.5), 0.0, 0.0),
        ((None, 0.5), -1.0, 1000 * (0.001 - 0.01)),
        ((0.95, 0.5), -1.0, 1000 * (0.001 - 0.011)),
        ((None, None), 0.0, 0.0),
    ],
)
def test_a_row_counts_as_its_bundle_routes_it(
    thresholds: tuple[float | None, float | None], quality: float, usd: float
) -> None:
    rows = [row("a", cheap=0, strong=1), row("b", cheap=0, strong=1)]
    found = compare_cascades(rows, rows, thresholds=thresholds)
    assert found.quality.mean == quality
    assert found.usd_per_1000.mean == pytest.approx(usd)


def test_a_row_counts_once_by_its_mean_over_repeats() -> None:
    before = [row(f"k{n}", cheap=1, strong=1) for n in range(20)]
    luck = [[row(f"k{n}", cheap=float((n + seed) % 2), strong=1) for n in range(20)] for seed in (0, 1)]
    alone = compare_repeats((before, 0.5), [(luck[0], 0.5)]).quality
    both = compare_repeats((before, 0.5), [(rows, 0.5) for rows in luck]).quality
    assert (alone.n, alone.mean, both.n, both.mean) == (20, -0.5, 20, -0.5)
    assert (alone.down, both.down) == (10, 20), "every row is worse by a half in the mean"
    assert both.high - both.low < 0.9 * (alone.high - alone.low)
    shorter = compare_repeats((before, 0.5), [(luck[0], 0.5), (luck[1][:15], 0.5)])
    assert (shorter.quality.n, shorter.before_only) == (15, 5)


def test_a_row_without_confidence_is_the_strong_tiers() -> None:
    rows = [row("a", cheap=0, strong=1, confidence=None)]
    assert compare_cascades(rows, rows, thresholds=(None, 0.0)).quality.mean == 0


def test_without_common_rows_nothing_is_compared() -> None:
    found = compare_cascades([row("a", cheap=0, strong=1)], [], thresholds=(0.5, 0.5))
    assert (found.quality.n, found.before_only) == (0, 1)
