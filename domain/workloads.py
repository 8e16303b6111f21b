"""A workload: what the user writes in `workload.yaml`."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from domain.canonical import digest

Fraction = Annotated[float, Field(gt=0, lt=1)]
UsdPerMillion = Annotated[float, Field(ge=0)]


class _Written(BaseModel):
    """A part of the file: unknown keys are errors, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TierName(StrEnum):
    """The two steps of the cascade."""

    CHEAP = "cheap"
    STRONG = "strong"


class Splits(_Written):
    """Shares of the labelled rows; a row's split depends on its id alone."""

    train: Fraction = Field(default=0.25, description="Demos and the optimiser's own validation.")
    calibration: Fraction = Field(default=0.45, description="The threshold is certified on these.")
    test: Fraction = Field(default=0.30, description="The gate looks at these, once.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = self.train + self.calibration + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + calibration + test must be 1, not {total:g}")
        return self


class Dataset(_Written):
    """Where rows come from and what their columns mean."""

    uri: str = Field(description="Labelled rows: a path, a glob or any fsspec uri; csv, jsonl or parquet.")
    incoming: str | None = Field(default=None, description="Rows to route with the champion bundle.")
    id: str = Field(default="id", description="Column that names a row; unique, read as text.")
    inputs: tuple[str, ...] = Field(min_length=1, description="Columns shown to the model.")
    gold: dict[str, str] = Field(min_length=1, description="Output field -> column with the right answer.")
    max_row_bytes: int = Field(default=1_000_000, ge=1, description="A longer input row is quarantined, bytes.")
    splits: Splits = Splits()


class EngineName(StrEnum):
    """What answers a tier's rows: model servers, a Ray cluster, or batch files."""

    HTTP = "http"
    RAY = "ray"
    BATCH = "openai-batch"


class Prices(_Written):
    """What a tier costs, USD per million tokens."""

    input: UsdPerMillion
    output: UsdPerMillion
    cached_input: UsdPerMillion | None = Field(default=None, description="Default: the input price.")
    batch_discount: float = Field(
        default=0.0, ge=0, le=1, exclude=True, description="Share that a hosted batch is cheaper by."
    )

    def in_batches(self) -> "Prices":
        """The prices of a hosted batch."""
        left = 1 - self.batch_discount
        cached = None if self.cached_input is None else self.cached_input * left
        return Prices(input=self.input * left, output=self.output * left, cached_input=cached)


class Tier(_Written):
    """One model of the cascade and how it is asked."""

    model: str = Field(description="Served model name.")
    base_urls: tuple[str, ...] = Field(
        default=(), description="OpenAI-compatible servers, .../v1; none means the embedded server of that model."
    )
    engine: EngineName = Field(
        default=EngineName.HTTP,
        exclude=True,
        description="What answers rows; a run may choose another. Compiling always uses http.",
    )
    engine_args: dict[str, JsonValue] = Field(
        default={},
        exclude=True,
        description="vLLM's arguments for the engines ray and openai-batch, passed on verbatim.",
    )
    revision: str | None = Field(default=None, description="Weights' version, part of every request's identity.")
    temperature: float = Field(default=0.0, ge=0)
    seed: int = 0
    max_tokens: int = Field(default=64, ge=1, description="Tokens an answer may take.")
    max_demos: int = Field(default=4, ge=0, description="Examples the optimiser may put into the prompt.")
    usd_per_million: Prices

    def answered_like(self, other: "Tier") -> "Tier":
        """The same tier on the other's engine; who answers is no part of a tier's identity, nor of its dump.

        Addresses as well: a bundle may come from elsewhere, and would lead rows and keys to a server of its choice.
        """
        prices = self.usd_per_million.model_copy(update={"batch_discount": other.usd_per_million.batch_discount})
        engine = {"engine": other.engine, "engine_args": other.engine_args, "base_urls": other.base_urls}
        return self.model_copy(update={**engine, "usd_per_million": prices})


class Tiers(_Written):
    """Cheap first; strong when the cheap tier is unsure."""

    cheap: Tier
    strong: Tier

    def __getitem__(self, name: TierName) -> Tier:
        return self.cheap if name is TierName.CHEAP else self.strong

    def with_revisions(self, known: Mapping[str, str]) -> "Tiers":
        """The same tiers; those on an embedded server and without a revision get that of its weights."""

        def pinned(tier: Tier) -> Tier:
            if tier.base_urls or tier.revision is not None:
                return tier
            return tier.model_copy(update={"revision": known.get(tier.model)})

        return Tiers(cheap=pinned(self.cheap), strong=pinned(self.strong))


class OptimizerName(StrEnum):
    """DSPy's optimisers that Headrace offers."""

    BOOTSTRAP = "bootstrap-random-search"
    MIPRO = "miprov2"
    GEPA = "gepa"
    SIMBA = "simba"
    COPRO = "copro"
    NONE = "none"


class Optimizer(_Written):
    """Which optimiser compiles the prompts and what it may spend."""

    name: OptimizerName = OptimizerName.BOOTSTRAP
    candidates: int = Field(default=4, ge=1, le=64, description="Candidate prompts beside the baseline.")
    max_bootstrapped_demos: int = Field(default=2, ge=0, description="Demos the model answered rightly itself.")
    validation_rows: int = Field(default=60, ge=2, description="Rows each candidate is scored on.")
    threads: int = Field(default=16, ge=1, description="Calls under way at once.")
    seed: int = 0


class Target(_Written):
    """The quality that the certificate must promise."""

    kind: Literal["absolute", "relative"] = "absolute"
    eps: Fraction = Field(default=0.05, description="Largest loss against all-strong (relative: share of it).")
    delta: Fraction = Field(default=0.10, description="Chance that the promise fails over the draw of the rows.")
    spend: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of what is left of delta that a tuning on the same rows takes: 0.5 is delta/2, delta/4, …",
    )
    min_valid: float = Field(default=0.98, ge=0, le=1, description="Gate: share of rows with a valid answer.")

    def floor(self, strong: float) -> float:
        """The lowest quality allowed beside a strong tier of this quality."""
        return strong - self.eps if self.kind == "absolute" else strong * (1 - self.eps)

    @property
    def asked(self) -> float:
        """The share of a strong answer's quality that a row's loss is counted from."""
        return 1.0 if self.kind == "absolute" else 1 - self.eps

    @property
    def allowed(self) -> float:
        """The largest mean loss, counted from that share."""
        return self.eps if self.kind == "absolute" else 0.0

    @property
    def lost_against(self) -> str:
        """What a loss is counted from, in words."""
        return "against the strong tier" if self.kind == "absolute" else f"against {self.asked:g} of the strong tier"


class SignalName(StrEnum):
    """What a row's confidence can be read from; the last two are learned from rows that no certificate looks at."""

    MARGIN = "margin"
    PROBABILITY = "probability"
    ENTROPY = "entropy"
    MINIMUM = "min-token"
    ALLOWED_MASS = "allowed-mass"
    JOINT = "joint"
    WORST_FIELD = "worst-field"
    SELF_CONSISTENCY = "self-consistency"
    P_TRUE = "p-true"
    ISOTONIC = "isotonic"
    REGRET = "regret"


class Scope(StrEnum):
    """How much of the loop a run goes through: all of it; a new threshold for the champion's prompts; or no more than
    whether the champion's certificate holds on the rows as they are now, and a new threshold if it does not."""

    FULL = "full"
    RETUNE = "retune"
    RECHECK = "recheck"


class Retune(StrEnum):
    """What an alarm of an audit starts: a new tuning, one that waits for somebody's approval, or nothing."""

    AUTOMATIC = "automatic"
    APPROVAL = "approval"
    NEVER = "never"


class Router(_Written):
    """Which confidences may decide whether a cheap answer is kept; the certificate pays delta/m for m of them."""

    signals: tuple[SignalName, ...] = Field(
        default=(SignalName.MARGIN,), min_length=1, max_length=10, description="Declared before the rows are seen."
    )
    samples: int = Field(default=5, ge=2, le=20, description="Further answers that self-consistency asks for.")
    temperature: float = Field(default=0.7, gt=0, description="Sampling temperature of those answers.")
    retune: Retune = Field(
        default=Retune.AUTOMATIC,
        exclude=True,
        description="What an alarm of an audit starts: optimize-workload or not.",
    )


class Judge(_Written):
    """An LLM that grades answers; one of the tiers plays it."""

    enabled: bool = False
    tier: TierName = TierName.STRONG
    rows: int = Field(default=50, ge=1, description="Rows judged, per tier.")
    question: str = "Is the answer right for this input?"


class Workload(_Written):
    """The whole file."""

    version: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="Lower case, digits, dashes.")
    description: str = ""
    dataset: Dataset
    instructions: str = Field(min_length=1, description="What the model is asked to do; the prompt's baseline.")
    output: str = Field(pattern=r"^[\w.]+:\w+$", description="module:Model, a pydantic model beside this file.")
    decisive: str = Field(description="Output field with a closed set of values that carries the confidence.")
    metric: str = Field(default="exact_match", description="A built-in name or module:function beside this file.")
    tiers: Tiers
    optimizer: Optimizer = Optimizer()
    max_reasks: int = Field(default=1, ge=0, le=5, description="Times a row that fails validation is asked again.")
    max_quarantined: float = Field(
        default=0.2, ge=0, le=1, exclude=True, description="Share of a run's rows; with more in quarantine it fails."
    )
    target: Target = Target()
    router: Router = Router()
    judge: Judge = Judge()

    def identity(self, *, code: str) -> str:
        """sha256 of the canonical form; `code` is the source of schema and metric."""
        return identity_of(self.model_dump(mode="json"), code=code)


def identity_of(spec: dict[str, JsonValue], *, code: str) -> str:
    """The same of a workload that is on record as plain JSON."""
    return digest({"workload": spec, "code": code})
