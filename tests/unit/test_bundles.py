"""Bundles: what is deployed, when it is stale, when it may become champion, and the router's rule."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ValidationError

from domain.bundles import Bundle, BundledTier, CascadeFigures, Gate, Lineage, gate, gate_report, keeps, rendering
from domain.certificates import Certificate, NotCertified
from domain.comparisons import Difference
from domain.errors import Place
from domain.prompts import PromptVersion
from domain.schemas import OutputSchema
from domain.scores import Estimate
from domain.servings import Served
from domain.workloads import Prices, Target, Tier, TierName


class Answer(BaseModel):
    topic: Literal["card", "loan"]


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


def test_what_older_bundles_do_not_say_leaves_their_hashes_as_they_were() -> None:
    old = bundle()
    body = old.model_dump(mode="json")
    assert not {"rendered", "served"} & body["cheap"].keys()
    assert "baseline" not in body["lineage"]
    for part in (
        {"cheap": old.cheap.model_copy(update={"served": Served(engine_version="0.32.0")})},
        {"strong": old.strong.model_copy(update={"rendered": rendering(PROMPT)})},
        {"lineage": old.lineage.model_copy(update={"baseline": "b"})},
    ):
        new = bundle(**part)
        assert new.hash != old.hash
        assert Bundle.model_validate_json(new.model_dump_json()) == new


def lost(low: float = -0.01, mean: float = 0.02, n: int = 300) -> Difference:
    return Difference(mean, low, 0.2, n, up=9, down=3, p_value=0.1, method="m")


def decided(
    certificate: Certificate | NotCertified,
    seen: CascadeFigures,
    loss: Difference | None = None,
    target: Target = TARGET,
) -> Gate:
    return gate(certificate, seen, loss or lost(), target)


def test_a_cascade_that_keeps_its_promise_and_saves_passes_the_gate() -> None:
    assert decided(CERTIFIED, figures()).passed
    assert decided(CERTIFIED, figures()).reasons == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cascade_usd": 1.0}, "costs no less"),
        ({"valid_rate": 0.979}, "97.9% of the answers are valid; the gate asks 98.0%"),
        ({"cascade": Estimate(0.88, 0.84, 0.91, 0)}, "test split is empty"),
    ],
)
def test_the_gate_says_why_a_certified_cascade_stays_challenger(changes: dict[str, object], words: str) -> None:
    found = decided(CERTIFIED, figures(**changes))
    assert not found.passed
    assert len(found.reasons) == 1
    assert words in found.reasons[0]


def test_the_gate_allows_a_loss_within_the_test_splits_own_noise_and_no_other() -> None:
    assert decided(CERTIFIED, figures(), lost(0.05, mean=0.09)).passed
    (reason,) = decided(CERTIFIED, figures(), lost(0.051, mean=0.09)).reasons
    assert "loses 0.090 [0.051, 0.200] against the strong tier, row by row over 300 rows (m)" in reason
    assert "above the 0.05 allowed" in reason


def test_a_relative_target_counts_the_loss_from_its_share_of_the_strong_tiers_quality() -> None:
    relative = Target(kind="relative", eps=0.05)
    assert (relative.asked, relative.allowed) == (0.95, 0.0)
    certified = CERTIFIED.model_copy(update={"kind": "relative"})
    assert decided(certified, figures(), lost(0.0), relative).passed
    (reason,) = decided(certified, figures(), lost(0.001), relative).reasons
    assert "against 0.95 of the strong tier" in reason


def test_an_uncertified_bundle_is_all_strong_and_needs_only_valid_answers() -> None:
    assert gate(REFUSED, figures(cascade_usd=1.0), lost(0.5), TARGET, void=["prices"]).passed
    assert not decided(REFUSED, figures(valid_rate=0.9)).passed


@pytest.mark.parametrize(
    ("asked", "passed"),
    [
        ({"eps": 0.05}, True),
        ({"eps": 0.08, "delta": 0.2}, True),
        ({"eps": 0.02}, False),
        ({"delta": 0.05}, False),
        ({"kind": "relative"}, False),
    ],
)
def test_a_certificate_that_promises_less_than_is_asked_now_does_not_pass(asked: dict[str, Any], passed: bool) -> None:
    target = TARGET.model_copy(update=asked)
    found = decided(CERTIFIED, figures(), lost(-0.1), target)
    assert found.passed is passed
    assert passed or "the certificate promises absolute eps 0.05 at delta 0.1; the workload asks" in found.reasons[0]


def test_a_void_certificate_does_not_pass_the_gate() -> None:
    found = gate(CERTIFIED, figures(), lost(), TARGET, void=["cheap: model was a, is b"])
    assert found == Gate(passed=False, reasons=("the certificate is void: cheap: model was a, is b",))


def test_every_reason_is_given_at_once() -> None:
    bad = figures(cascade=Estimate(0.1, 0.0, 0.2, 0), cascade_usd=2.0, valid_rate=0.5)
    found = gate(CERTIFIED, bad, lost(0.3), TARGET, void=["x"])
    assert len(found.reasons) == 5
    report = gate_report(found, bad, lost(0.3))
    assert (report["passed"], report["reasons"]) == (False, list(found.reasons))


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
