"""Bundles: everything a workload needs to run at a certified quality, hashed and diffable."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from domain.canonical import digest
from domain.certificates import Certificate, NotCertified
from domain.comparisons import Difference
from domain.prompts import PromptVersion
from domain.routers import Routing
from domain.scores import Estimate
from domain.servings import Served
from domain.workloads import Target, Tier, TierName


def _absent(value: object) -> bool:
    """Facts that older bundles do not hold are left out where they are not known: their hashes stay what they are."""
    return value is None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class BundledTier(_Part):
    """One tier as it is deployed: model, sampling and prices, its prompt and its label prior; what served it."""

    tier: Tier
    prompt: PromptVersion
    prior: dict[str, float]
    rendered: str | None = Field(default=None, exclude_if=_absent, description="Hash of the prompt as it was rendered.")
    served: Served | None = Field(default=None, exclude_if=_absent, description="What gave the answers behind it.")


class Lineage(_Part):
    """Where a bundle comes from."""

    workload_hash: str
    dataset_version: str
    calibration_rows: int
    baseline: str | None = Field(
        default=None, exclude_if=_absent, description="Hash of the prompt as the workload states it, before compiling."
    )


def rendering(prompt: PromptVersion) -> str:
    """sha256 of a prompt's messages as today's code renders them: other code may write another prompt."""
    return digest(cast(JsonValue, prompt.template()))


class Bundle(_Part):
    """A deployable cascade; its hash is its version."""

    workload: str
    cheap: BundledTier
    strong: BundledTier
    json_schema: dict[str, JsonValue]
    decisive: str
    max_reasks: int
    routing: Routing = Routing()
    threshold: float | None = Field(description="Keep the cheap answer iff confidence >= threshold; null: all strong.")
    certificate: Certificate | NotCertified
    lineage: Lineage

    @property
    def hash(self) -> str:
        """sha256 of the canonical form, lineage included."""
        return digest(self.model_dump(mode="json"))

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


def gate(
    certificate: Certificate | NotCertified,
    figures: CascadeFigures,
    loss: Difference,
    target: Target,
    *,
    void: Sequence[str] = (),
) -> Gate:
    """A certified cascade must promise what is asked or more, not be void, keep its promise on the test split within
    that split's own noise, answer validly often enough and cost less; an uncertified bundle is all-strong and needs
    only validity.

    `loss` is the quality that the cascade loses row by row against what the target asks of it (`figures.loss_of`).
    The certificate is the proof of the promise; the test split may refute it, and has too few rows to prove it again.
    """
    reasons: list[str] = []
    if figures.cascade.n == 0:
        reasons.append("the test split is empty")
    if figures.valid_rate < target.min_valid:
        reasons.append(f"{figures.valid_rate:.1%} of the answers are valid; the gate asks {target.min_valid:.1%}")
    if isinstance(certificate, Certificate):
        reasons += [f"the certificate is void: {reason}" for reason in void]
        if certificate.kind != target.kind or certificate.eps > target.eps or certificate.delta > target.delta:
            reasons.append(
                f"the certificate promises {certificate.kind} eps {certificate.eps:g} at delta {certificate.delta:g}; "
                f"the workload asks {target.kind} eps {target.eps:g} at delta {target.delta:g}"
            )
        if loss.low > target.allowed:
            reasons.append(
                f"on the test split the cascade loses {loss.mean:.3f} [{loss.low:.3f}, {loss.high:.3f}] "
                f"{target.lost_against}, row by row over {loss.n} rows ({loss.method}); "
                f"the whole interval is above the {target.allowed:g} allowed"
            )
        if figures.cascade_usd >= figures.strong_usd:
            reasons.append("the cascade costs no less than the strong tier alone on the test split")
    return Gate(passed=not reasons, reasons=tuple(reasons))


def gate_report(verdict: Gate, figures: CascadeFigures, loss: Difference) -> dict[str, JsonValue]:
    """What the gate saw and said, as JSON for the audit table; costs are USD per row."""
    return {
        "passed": verdict.passed,
        "reasons": list(verdict.reasons),
        "loss": cast(JsonValue, asdict(loss)),
        "valid_rate": figures.valid_rate,
        "cascade_usd": figures.cascade_usd,
        "strong_usd": figures.strong_usd,
    }


@dataclass(frozen=True, slots=True)
class Standing:
    """A bundle with a certificate: its hash, how it reads a row, and the confidence from which it keeps one."""

    hash: str
    routing: Routing
    threshold: float


def standing(bundle: Bundle, target: Target) -> Standing | None:
    """A bundle as far as it stands for a target: None without a certificate, or when it promises something else."""
    made = bundle.certificate
    asked = (target.kind, target.eps, target.delta)
    if not isinstance(made, Certificate) or bundle.threshold is None or (made.kind, made.eps, made.delta) != asked:
        return None
    return Standing(bundle.hash, bundle.routing, bundle.threshold)


def keeps(confidence: float | None, threshold: float | None) -> bool:
    """The router's rule for one row: keep the cheap answer, or escalate."""
    return threshold is not None and confidence is not None and confidence >= threshold
