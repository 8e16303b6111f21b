"""Bundles: what is deployed, when it is stale, when it may become champion, and the router's rule."""

from typing import Literal

import pytest
from pydantic import BaseModel, ValidationError

from domain.bundles import Bundle, BundledTier, CascadeFigures, Lineage, gate, keeps
from domain.certificates import Certificate, NotCertified
from domain.errors import Place, StaleBundle
from domain.prompts import PromptVersion
from domain.schemas import OutputSchema
from domain.scores import Estimate
from domain.workloads import Prices, Target, Tier, TierName


class Answer(BaseModel):
    topic: Literal["card", "loan"]


class Wider(BaseModel):
    topic: Literal["card", "loan", "cash"]


PLACE = Place("workload.yaml")
SCHEMA = OutputSchema.of(Answer, decisive="topic", place=PLACE)
PROMPT = PromptVersion(instructions="i", answer_format="f", input_fields=("text",), output_fields=("topic",))
TARGET = Target(eps=0.05, delta=0.1, min_valid=0.98)
CERTIFIED = Certificate(
    kind="absolute", threshold=0.1 + 0.2, eps=0.05, delta=0.1, n=500, test="t", p_value=1e-9, gap=0.01, worse=7,
    better=2, cost=0.5, cost_all_strong=1.0, grid=(0.9, 0.1 + 0.2, 1e-12), promise="p",
)  # fmt: skip
REFUSED = NotCertified(kind="absolute", eps=0.05, delta=0.1, n=3, test="t", reason="few", rows_needed=45)


def bundle(**changes: object) -> Bundle:
    tier = BundledTier(
        tier=Tier(model="a", usd_per_million=Prices(input=1, output=2)), prompt=PROMPT, prior={"card": 1}
    )
    strong = tier.model_copy(update={"tier": tier.tier.model_copy(update={"model": "b"})})
    parts: dict[str, object] = {
        "workload": "w",
        "cheap": tier,
        "strong": strong,
        "json_schema": SCHEMA.json_schema,
        "decisive": "topic",
        "max_reasks": 1,
        "threshold": 0.1 + 0.2,
        "certificate": CERTIFIED,
        "lineage": Lineage(workload_hash="h", dataset_version="d", calibration_rows=500),
    }
    return Bundle.model_validate(parts | changes)


def figures(**changes: object) -> CascadeFigures:
    parts: dict[str, object] = {
        "cheap": Estimate(0.70, 0.65, 0.75, 300),
        "strong": Estimate(0.90, 0.86, 0.93, 300),
        "cascade": Estimate(0.88, 0.84, 0.91, 300),
        "valid_rate": 1.0,
        "escalation_rate": 0.4,
        "auroc": 0.8,
        "cheap_usd": 0.1,
        "strong_usd": 1.0,
        "cascade_usd": 0.5,
        "cheap_tokens": 50.0,
        "strong_tokens": 60.0,
        "cascade_tokens": 74.0,
    }
    return CascadeFigures(**(parts | changes))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("certificate", [CERTIFIED, REFUSED])
def test_a_bundle_written_as_json_comes_back_equal_with_the_same_hash(certificate: Certificate | NotCertified) -> None:
    made = bundle(certificate=certificate)
    back = Bundle.model_validate_json(made.model_dump_json())
    assert back == made
    assert back.hash == made.hash
    assert type(back.certificate) is type(certificate)


@pytest.mark.parametrize(
    "change",
    [
        {"workload": "other"},
        {"threshold": 0.3},
        {"threshold": None},
        {"certificate": REFUSED},
        {"max_reasks": 2},
        {"decisive": "other"},
        {"json_schema": {}},
        {"cheap": bundle().strong},
        {"lineage": Lineage(workload_hash="h", dataset_version="e", calibration_rows=500)},
    ],
)
def test_every_part_of_a_bundle_is_part_of_its_hash(change: dict[str, object]) -> None:
    assert bundle(**change).hash != bundle().hash


def test_a_bundle_gives_its_tiers_by_name_and_cannot_be_changed() -> None:
    made = bundle()
    assert (made[TierName.CHEAP].tier.model, made[TierName.STRONG].tier.model) == ("a", "b")
    with pytest.raises(ValidationError, match="frozen"):
        made.threshold = 0.0  # pyright: ignore[reportAttributeAccessIssue]


def test_a_bundle_is_stale_once_the_output_schema_or_the_decisive_field_changes() -> None:
    bundle().check_schema(SCHEMA)
    wider = OutputSchema.of(Wider, decisive="topic", place=PLACE)
    with pytest.raises(StaleBundle, match="output schema of 'w' has changed"):
        bundle().check_schema(wider)
    with pytest.raises(StaleBundle):
        bundle(decisive="kind").check_schema(SCHEMA)


def test_a_cascade_that_keeps_its_promise_and_saves_passes_the_gate() -> None:
    assert gate(CERTIFIED, figures(), TARGET).passed
    assert gate(CERTIFIED, figures(), TARGET).reasons == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cascade": Estimate(0.80, 0.76, 0.849, 300)}, "below 0.850"),
        ({"cascade_usd": 1.0}, "costs no less"),
        ({"valid_rate": 0.979}, "97.9% of the answers are valid; the gate asks 98.0%"),
        ({"cascade": Estimate(0.88, 0.84, 0.91, 0)}, "test split is empty"),
    ],
)
def test_the_gate_says_why_a_certified_cascade_stays_challenger(changes: dict[str, object], words: str) -> None:
    found = gate(CERTIFIED, figures(**changes), TARGET)
    assert not found.passed
    assert len(found.reasons) == 1
    assert words in found.reasons[0]


def test_the_gate_allows_a_shortfall_within_the_test_splits_own_noise() -> None:
    assert gate(CERTIFIED, figures(cascade=Estimate(0.80, 0.76, 0.851, 300)), TARGET).passed


def test_a_relative_target_allows_a_share_of_the_strong_tiers_quality() -> None:
    relative = Target(kind="relative", eps=0.05)
    assert gate(CERTIFIED, figures(cascade=Estimate(0.8, 0.8, 0.856, 300)), relative).passed
    assert not gate(CERTIFIED, figures(cascade=Estimate(0.8, 0.8, 0.854, 300)), relative).passed


def test_an_uncertified_bundle_is_all_strong_and_needs_only_valid_answers() -> None:
    costly = figures(cascade_usd=1.0, cascade=Estimate(0.1, 0.0, 0.2, 300))
    assert gate(REFUSED, costly, TARGET).passed
    assert not gate(REFUSED, figures(valid_rate=0.9), TARGET).passed


def test_every_reason_is_given_at_once() -> None:
    bad = figures(cascade=Estimate(0.1, 0.0, 0.2, 0), cascade_usd=2.0, valid_rate=0.5)
    assert len(gate(CERTIFIED, bad, TARGET).reasons) == 4


@pytest.mark.parametrize(
    ("confidence", "threshold", "kept"),
    [
        (0.5, 0.5, True),
        (0.5, 0.5 + 1e-12, False),
        (0.9, 0.5, True),
        (None, 0.0, False),
        (0.9, None, False),
        (None, None, False),
        (float("-inf"), 0.0, False),
        (float("nan"), 0.0, False),
        (0.0, 0.0, True),
    ],
)
def test_a_row_is_kept_at_its_threshold_or_above_and_never_without_confidence(
    confidence: float | None, threshold: float | None, *, kept: bool
) -> None:
    assert keeps(confidence, threshold) is kept
