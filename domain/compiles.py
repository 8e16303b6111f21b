"""Compiles: what the search for a prompt starts from, and everything it depends on."""

from collections.abc import Iterable

from domain.canonical import digest
from domain.prompts import PromptVersion, baseline
from domain.schemas import OutputSchema
from domain.workloads import TierName, Workload


def baseline_of(workload: Workload, schema: OutputSchema) -> PromptVersion:
    """The prompt as the user wrote it."""
    return baseline(workload.instructions, input_fields=workload.dataset.inputs, schema=schema)


def compile_key(workload: Workload, schema: OutputSchema, tier: TierName, *, code: str, train: Iterable[str]) -> str:
    """Everything a compile depends on: the tier, the options, the instructions, the code and the train rows' keys."""
    return digest(
        {
            "tier": workload.tiers[tier].model_dump(mode="json", exclude={"base_urls", "usd_per_million"}),
            "optimizer": workload.optimizer.model_dump(mode="json"),
            "baseline": baseline_of(workload, schema).model_dump(mode="json"),
            "code": code,
            "metric": workload.metric,
            "train": list(train),
        }
    )
