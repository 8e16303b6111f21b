"""Whether a bundle still speaks of what is deployed: every change voids it, what nobody says is unknown."""

from dataclasses import replace
from typing import Any

import pytest

from domain.bundles import Bundle, BundledTier, Lineage, rendering
from domain.certificates import NotCertified
from domain.errors import StaleBundle
from domain.prompts import PromptVersion
from domain.servings import Served, answered_by, declared, joined, merged
from domain.validities import Present, examine
from domain.workloads import Prices, Tier, TierName, Tiers

PROMPT = PromptVersion(instructions="i", answer_format="f", input_fields=("text",), output_fields=("topic",))
SERVED = Served(engine_version="0.32.0", weights="org/a", quantisation="awq", logprobs_mode="processed_logprobs")
TIER = Tier(model="a", base_urls=("http://x/v1",), revision="r1", usd_per_million=Prices(input=1, output=2))
SCHEMA: dict[str, Any] = {"type": "object", "title": "A"}
REFUSED = NotCertified(kind="absolute", eps=0.05, delta=0.1, n=3, test="t", reason="few", rows_needed=45)


def bundle(**cheap: Any) -> Bundle:
    part = BundledTier(tier=TIER, prompt=PROMPT, prior={}, rendered=rendering(PROMPT), served=SERVED)
    return Bundle(
        workload="w",
        cheap=part.model_copy(update=cheap),
        strong=part,
        json_schema=SCHEMA,
        decisive="topic",
        max_reasks=1,
        threshold=None,
        certificate=REFUSED,
        lineage=Lineage(workload_hash="h", dataset_version="d", calibration_rows=1, baseline="b" * 64),
    )


def present(tier: Tier = TIER, served: Served = SERVED, **changes: Any) -> Present:
    now = Present(
        tiers=Tiers(cheap=tier, strong=TIER),
        json_schema=SCHEMA,
        decisive="topic",
        max_reasks=1,
        baseline="b" * 64,
        served={TierName.CHEAP: served, TierName.STRONG: SERVED},
    )
    return replace(now, **changes)


def tier(**changes: Any) -> Tier:
    return TIER.model_copy(update=changes)


def test_a_bundle_that_is_deployed_as_it_was_made_is_valid_and_nothing_is_unknown() -> None:
    found = examine(bundle(), present())
    assert (found.changes, found.unknown, found.void) == ((), (), False)
    found.check_schema("w")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (present(tier(model="c")), "cheap: model was a, is c"),
        (present(tier(revision="r2")), "cheap: revision was r1, is r2"),
        (present(tier(revision=None)), "cheap: revision was r1, is none"),
        (
            present(tier(temperature=0.5)),
            "cheap: sampling was temperature 0.0, seed 0, max_tokens 64, is temperature 0.5",
        ),
        (present(tier(max_tokens=65)), "cheap: sampling was"),
        (
            present(tier(usd_per_million=Prices(input=1, output=3))),
            "cheap: prices was input 1.0, output 2.0 USD per million, is input 1.0, output 3.0 USD",
        ),
        (
            present(served=SERVED.model_copy(update={"engine_version": "0.33.0"})),
            "engine version was 0.32.0, is 0.33.0",
        ),
        (present(served=SERVED.model_copy(update={"weights": "org/b"})), "cheap: weights was org/a, is org/b"),
        (present(served=SERVED.model_copy(update={"quantisation": "fp8"})), "quantisation was awq, is fp8"),
        (present(served=SERVED.model_copy(update={"logprobs_mode": "raw_logprobs"})), "cheap: logprobs mode was"),
        (present(json_schema={"type": "object", "title": "B"}), "output schema was"),
        (present(decisive="kind"), "output schema was"),
        (present(max_reasks=2), "re-asks was 1, is 2"),
        (present(baseline="c" * 64), "prompt (instructions, answer format, fields) was bbbbbbbbbbbb, is cccccccccccc"),
    ],
)
def test_every_change_of_the_deployment_voids_the_certificate_and_is_named(now: Present, said: str) -> None:
    found = examine(bundle(), now)
    assert found.void
    (reason,) = found.reasons
    assert said in reason


def test_a_prompt_that_todays_code_renders_in_another_way_voids_it() -> None:
    (reason,) = examine(bundle(rendered="e" * 64), present()).reasons
    assert reason.startswith("cheap: rendered prompt was eeeeeeeeeeee, is ")


@pytest.mark.parametrize(
    "change",
    [{"engine": "ray"}, {"engine_args": {"max_model_len": 9}}, {"max_demos": 9}, {"base_urls": ("http://y/v1",)}],
)
def test_who_answers_and_what_compiling_may_spend_voids_nothing(change: dict[str, Any]) -> None:
    assert not examine(bundle(), present(tier(**change))).void


def test_what_nobody_says_is_unknown_and_no_change() -> None:
    old = bundle(rendered=None, served=None)
    lineage = Lineage(workload_hash="h", dataset_version="d", calibration_rows=1)
    found = examine(old.model_copy(update={"lineage": lineage}), present())
    assert not found.void
    assert set(found.unknown) == {
        f"cheap: {part} (not recorded in the bundle)"
        for part in ("rendered prompt", "engine version", "quantisation", "logprobs mode", "weights")
    } | {"prompt (instructions, answer format, fields) (not recorded in the bundle)"}
    silent = examine(bundle(), present(served=Served()))
    assert not silent.void
    assert "cheap: engine version (nobody says it now)" in silent.unknown


def test_weights_without_a_revision_on_either_side_are_unknown() -> None:
    found = examine(bundle(tier=tier(revision=None)), present(tier(revision=None)))
    assert "cheap: revision (not recorded in the bundle)" in found.unknown
    assert not found.void


def test_weights_of_embedded_servers_are_told_by_their_revision_alone() -> None:
    embedded = tier(base_urls=())
    found = examine(bundle(tier=embedded, served=SERVED.model_copy(update={"weights": None})), present(embedded))
    assert (found.changes, found.unknown) == ((), ())


@pytest.mark.parametrize("now", [present(json_schema={"type": "object", "title": "B"}), present(decisive="kind")])
def test_a_bundle_is_stale_once_the_answer_itself_has_changed(now: Present) -> None:
    with pytest.raises(StaleBundle, match="output schema of 'w' has changed"):
        examine(bundle(), now).check_schema("w")
    examine(bundle(), present(tier(model="c"))).check_schema("w")


@pytest.mark.parametrize(
    ("fingerprints", "version"),
    [
        (["vllm-0.32.0-2a49f5de"], "0.32.0"),
        (["vllm-0.32.0-2a49f5de", "vllm-0.32.0-tp2-f80c1a9e"], "0.32.0"),
        (["vllm-0.33.0-2a49f5de", "vllm-0.32.1rc1+cpu-2a49f5de"], "0.32.1rc1+cpu, 0.33.0"),
        (["vllm-0.32.0-2a49f5de", None], None),
        (["vllm-0.32.0-2a49f5de", "fp_123"], None),
        (["fp_123"], None),
        ([], None),
    ],
)
def test_answers_tell_the_engines_version_only_when_each_of_them_does(
    fingerprints: list[str | None], version: str | None
) -> None:
    assert answered_by(fingerprints) == version


def test_different_values_stand_side_by_side_and_one_unknown_makes_all_unknown() -> None:
    assert (joined(["b", "a", "b"]), joined(["a", None]), joined([])) == ("a, b", None, None)
    both = merged([SERVED, SERVED.model_copy(update={"quantisation": "fp8", "weights": None})])
    assert both == SERVED.model_copy(update={"quantisation": "awq, fp8", "weights": None})
    assert merged([]) == Served()


def test_engine_arguments_are_read_in_either_spelling() -> None:
    assert declared({"quantization": "awq", "logprobs-mode": "raw_logits"}) == ("awq", "raw_logits")
    assert declared({"logprobs_mode": "raw_logits", "quantization": None}) == (None, "raw_logits")
