"""Bundles: everything a workload needs to run at a certified quality, hashed and diffable."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from domain.canonical import digest
from domain.certificates import Certificate, NotCertified
from domain.errors import StaleBundle
from domain.prompts import PromptVersion
from domain.schemas import OutputSchema
from domain.scores import Estimate
from domain.workloads import Target, Tier, TierName


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class BundledTier(_Part):
    """One tier as it is deployed: model, sampling and prices, its prompt and its label prior."""

    tier: Tier
    prompt: PromptVersion
    prior: dict[str, float]


class Lineage(_Part):
    """Where a bundle comes from."""

    workload_hash: str
    dataset_version: str
    calibration_rows: int


class Bundle(_Part):
    """A deployable cascade; its hash is its version."""

    workload: str
    cheap: BundledTier
    strong: BundledTier
    json_schema: dict[str, JsonValue]
    decisive: str
    max_reasks: int
    signal: Literal["calibrated-margin"] = "calibrated-margin"
    threshold: float | None = Field(description="Keep the cheap answer iff confidence >= threshold; null: all strong.")
    certificate: Certificate | NotCertified
    lineage: Lineage

    @property
    def hash(self) -> str:
        """sha256 of the canonical form, lineage included."""
        return digest(self.model_dump(mode="json"))

    def check_schema(self, schema: OutputSchema) -> None:
        """Raise StaleBundle when the workload's output schema is no longer the one this was certified for."""
        if schema.json_schema != self.json_schema or schema.decisive != self.decisive:
            raise StaleBundle(f"the output schema of {self.workload!r} has changed since its champion was certified")

    def __getitem__(self, name: TierName) -> BundledTier:
        return self.cheap if name is TierName.CHEAP else self.strong


@dataclass(frozen=True, slots=True)
class CascadeFigures:
    """What the gate looks at: both tiers and the cascade on the test split; costs are tokens and USD per row."""

    cheap: Estimate
    strong: Estimate
    cascade: Estimate
    valid_rate: float
    escalation_rate: float
    auroc: float | None
    cheap_usd: float
    strong_usd: float
    cascade_usd: float
    cheap_tokens: float
    strong_tokens: float
    cascade_tokens: float


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether a challenger becomes champion, with every reason why not."""

    passed: bool
    reasons: tuple[str, ...]


def gate(certificate: Certificate | NotCertified, figures: CascadeFigures, target: Target) -> Gate:
    """A certified cascade must hold its promise on the test split within that split's own noise, answer
    validly often enough and cost less; an uncertified bundle is all-strong and needs only validity."""
    reasons: list[str] = []
    if figures.cascade.n == 0:
        reasons.append("the test split is empty")
    if figures.valid_rate < target.min_valid:
        reasons.append(f"{figures.valid_rate:.1%} of the answers are valid; the gate asks {target.min_valid:.1%}")
    if isinstance(certificate, Certificate):
        floor = target.floor(figures.strong.mean)
        if figures.cascade.high < floor:
            reasons.append(
                f"quality {figures.cascade} on the test split stays below {floor:.3f}, the lowest allowed beside the "
                f"strong tier's {figures.strong.mean:.3f}, interval included"
            )
        if figures.cascade_usd >= figures.strong_usd:
            reasons.append("the cascade costs no less than the strong tier alone on the test split")
    return Gate(passed=not reasons, reasons=tuple(reasons))


def keeps(confidence: float | None, threshold: float | None) -> bool:
    """The router's rule for one row: keep the cheap answer, or escalate."""
    return threshold is not None and confidence is not None and confidence >= threshold
