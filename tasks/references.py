"""What travels between tasks: small frozen references. Rows stay in Postgres."""

from pydantic import BaseModel, ConfigDict

from domain.workloads import EngineName, Scope, TierName


class Reference(BaseModel):
    """A small immutable JSON object."""

    model_config = ConfigDict(frozen=True)


class Limits(Reference):
    """What answers a run's rows if not what the tiers say, and what it may spend, USD and tokens."""

    engine: EngineName | None = None
    max_usd: float | None = None
    max_tokens: int | None = None


class RunRef(Reference):
    """A run under way and the workload it runs."""

    run_id: str
    workload: str
    folder: str
    workload_hash: str
    tracking_id: str
    engine: EngineName | None = None
    chunk_rows: int
    scope: Scope = Scope.FULL
    only_changed: bool = False


class DatasetRef(Reference):
    """A snapshot and the rows in each of its splits; `same_as` is the complete run since which nothing has changed."""

    version: str
    uri: str
    train: int = 0
    calibration: int = 0
    test: int = 0
    incoming: int = 0
    bad_rows: int = 0
    new: bool = True
    same_as: str | None = None


class PromptRef(Reference):
    """A tier's compiled prompt; `champion` is the hash of the bundle that it was taken from instead of compiled."""

    tier: TierName
    compile_key: str
    prompt_hash: str
    calls: int
    improved: bool
    champion: str | None = None


class BundleRef(Reference):
    """A bundle by its hash; `void` says why its certificate does not hold any more, and then all rows go to strong."""

    bundle_hash: str
    void: tuple[str, ...] = ()


class ChunkRef(Reference):
    """A chunk of a run's rows at one tier: rows `first` to `first + rows` of the run, and what happened to them."""

    tier: TierName
    index: int
    first: int
    rows: int
    total: int
    calls: int = 0
    cached: int = 0
    reasks: int = 0
    failed: int = 0

    @property
    def span(self) -> str:
        """Which rows of how many, as people count."""
        return f"{self.first + 1:,}-{self.first + self.rows:,} of {self.total:,}"

    def at(self, tier: TierName) -> "ChunkRef":
        """The same rows at another tier."""
        return ChunkRef(tier=tier, index=self.index, first=self.first, rows=self.rows, total=self.total)


class ScoredRef(Reference):
    """One tier's scores over a run."""

    tier: TierName
    metric: str
    n: int
    mean: float


class TunedRef(Reference):
    """A tuned bundle and whether its threshold is certified; one that was `kept` is the champion, looked at again."""

    bundle_hash: str
    certified: bool
    kept: bool = False


class PickedRef(Reference):
    """An audit's rows: its dataset holds those that the strong tier is asked about; the batches that all came from as
    (run, dataset version); from which share of the rows, and how many the budget left out."""

    data: DatasetRef
    routes: tuple[tuple[str, str], ...] = ()
    share: float = 0.0
    cut: int = 0


class AuditRef(Reference):
    """A concluded audit: its verdict, and what it holds against the certificate."""

    bundle_hash: str
    verdict: str
    alarms: tuple[str, ...] = ()


class PastRunRef(Reference):
    """A run of the past, and the folder with its workload's code."""

    run_id: str
    workload: str
    folder: str
