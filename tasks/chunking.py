"""Chunks: which rows a task run works on, and the deployment that answers them."""

from dataclasses import replace

from domain.bundles import Bundle
from domain.confidences import LabelPrior
from domain.routers import Routing
from domain.signals import asked_signals
from domain.workloads import TierName
from infra.db.session import transaction
from infra.db.store import bundles
from infra.rows import Rows
from infra.tiers import Deployment
from infra.workloads import LoadedWorkload
from tasks.references import BundleRef, ChunkRef, DatasetRef, PromptRef, RunRef
from tasks.running import load_for


def plan_chunks(total: int, tier: TierName, *, size: int) -> list[ChunkRef]:
    """Cut `total` rows into chunks of at most `size`."""
    return [
        ChunkRef(tier=tier, index=index, first=first, rows=min(size, total - first), total=total)
        for index, first in enumerate(range(0, total, size))
    ]


def judged_chunks(run: RunRef, data: DatasetRef, tier: TierName) -> list[ChunkRef]:
    """The chunks of calibration and test rows."""
    return plan_chunks(data.calibration + data.test, tier, size=run.chunk_rows)


def incoming_chunks(run: RunRef, data: DatasetRef, tier: TierName) -> list[ChunkRef]:
    """The chunks of rows to route."""
    return plan_chunks(data.incoming, tier, size=run.chunk_rows)


def deployment_of(run: RunRef, plan: PromptRef | BundleRef, tier: TierName) -> Deployment:
    """How a tier answers: by the prompt being tuned, or as a bundle deploys it."""
    loaded = load_for(run)
    if isinstance(plan, PromptRef):
        deployed = _compiled(loaded, plan)
    else:
        with transaction() as db:
            bundle = bundles.load_bundle(db, plan.bundle_hash)
        deployed = _bundled(bundle, tier, loaded, void=bool(plan.void))
    if run.engine is None:
        return deployed
    return replace(deployed, tier=deployed.tier.model_copy(update={"engine": run.engine}))


def rows_of(run: RunRef, data: DatasetRef, plan: PromptRef | BundleRef, chunk: ChunkRef) -> Rows:
    """The rows of a chunk; a bundle's router leaves out some."""
    last = chunk.first + chunk.rows
    if isinstance(plan, PromptRef):
        return Rows(run.run_id, data.version, chunk.first, last)
    return Rows(run.run_id, data.version, chunk.first, last, cascade=True, threshold=threshold_of(plan))


def threshold_of(plan: BundleRef) -> float | None:
    """The confidence from which a cheap answer is kept; None when nothing may be: all rows go to the strong tier."""
    with transaction() as db:
        return None if plan.void else bundles.load_bundle(db, plan.bundle_hash).threshold


def _compiled(loaded: LoadedWorkload, prompt: PromptRef) -> Deployment:
    """A tier as it answers rows while a bundle is being made."""
    with transaction() as db:
        compiled = bundles.find_compiled(db, prompt.compile_key)
    if compiled is None:
        raise RuntimeError(f"the compiled prompt {prompt.compile_key} is gone from the ledger")
    return Deployment(
        name=prompt.tier,
        tier=loaded.workload.tiers[prompt.tier],
        prompt=compiled.prompt,
        prior=LabelPrior(compiled.report["prior"]),
        schema=loaded.schema,
        max_reasks=loaded.workload.max_reasks,
        code=loaded.code,
        signals=asked_signals(loaded.workload.router, prompt.tier),
        router=loaded.workload.router,
    )


def _bundled(bundle: Bundle, name: TierName, loaded: LoadedWorkload, *, void: bool = False) -> Deployment:
    """A tier as a bundle deploys it; once its certificate is void, with the model that the workload names today."""
    part, today = bundle[name], loaded.workload.tiers[name]
    routing = bundle.routing if name is TierName.CHEAP else Routing()
    return Deployment(
        name=name,
        tier=today if void else part.tier.answered_like(today),
        prompt=part.prompt,
        prior=LabelPrior(part.prior),
        schema=loaded.schema,
        max_reasks=bundle.max_reasks,
        code=loaded.code,
        signals=routing.looked_at,
        router=routing.router,
        routing=routing,
    )
