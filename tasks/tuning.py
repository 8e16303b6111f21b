"""Tune: certify the cheapest threshold that keeps the promised quality, and settle every row by it."""

from prefect import get_run_logger, task

from domain.bundles import BundledTier, Lineage, rendering
from domain.cascades import Cascade, bundle_of, decide_cascade
from domain.compiles import baseline_of
from domain.summaries import figure_metrics, tuning_summary, verdict_line
from domain.workloads import Target, TierName
from infra import tracking
from infra.db.session import transaction
from infra.db.store import answers, bundles, runs
from infra.figures import Anchor, cost_quality_curve
from infra.pairs import load_pairs
from infra.rows import Deployment
from infra.serving import served_answers
from tasks.chunking import deployment_of
from tasks.references import DatasetRef, PromptRef, RunRef, ScoredRef, TunedRef
from tasks.running import is_retryable, load_for, step


@task(retry_condition_fn=is_retryable)
def tune_router(run: RunRef, data: DatasetRef, prompts: list[PromptRef], _scored: list[ScoredRef]) -> TunedRef:
    """Choose the threshold on the calibration rows, look at it on the test rows, and make the bundle."""
    loaded = load_for(run)
    rows = load_pairs(run.run_id, data.version, loaded.workload.metric)
    cascade = decide_cascade(rows, loaded.workload.target)
    deployed = {prompt.tier: deployment_of(run, prompt, prompt.tier) for prompt in prompts}
    tiers = {name: _bundled(run, name, deployment) for name, deployment in deployed.items()}
    lineage = Lineage(
        workload_hash=run.workload_hash,
        dataset_version=data.version,
        calibration_rows=data.calibration,
        baseline=baseline_of(loaded.workload, loaded.schema).hash,
    )
    bundle = bundle_of(cascade, loaded.workload, loaded.schema, tiers, lineage)
    with transaction() as db:
        bundles.save_bundle(db, bundle, run_id=run.run_id)
        runs.change_run(db, run.run_id, bundle_hash=bundle.hash)
        runs.add_summary(db, run.run_id, tuning_summary(cascade.tuned, cascade.figures))
        answers.save_settled(db, run.run_id, data.version, cascade.settled)
    _track(run, cascade, loaded.workload.target)
    get_run_logger().info(verdict_line(cascade.tuned.verdict))
    return TunedRef(bundle_hash=bundle.hash, certified=cascade.threshold is not None)


def _bundled(run: RunRef, name: TierName, deployed: Deployment) -> BundledTier:
    with transaction() as db:
        served = served_answers(db, run.run_id, name)
    return BundledTier(
        tier=deployed.tier,
        prompt=deployed.prompt,
        prior=dict(deployed.prior.means),
        rendered=rendering(deployed.prompt),
        served=served,
    )


def _track(run: RunRef, cascade: Cascade, target: Target) -> None:
    """The curve goes to MLflow as figure and as JSON, the figures as metrics."""
    tuned, threshold, metrics = cascade.tuned, cascade.threshold, figure_metrics(cascade.figures)
    png = cost_quality_curve(
        tuned.curve,
        threshold=threshold,
        cheap=Anchor(tuned.cheap.quality, tuned.cheap.cost),
        strong=Anchor(tuned.strong.quality, tuned.strong.cost),
        floor=target.floor(tuned.strong.quality),
        title=f"{run.workload}: cost and quality of the cascade",
    )
    with step(run, "tune") as step_id:
        tracking.log(step_id, params={"threshold": str(threshold)}, metrics=metrics)
        tracking.log_figure(step_id, "cost-quality", png)
        tracking.log_json(step_id, "curve", [point.model_dump(mode="json") for point in tuned.curve])
    tracking.log(run.tracking_id, params={}, metrics=metrics)
    tracking.log_figure(run.tracking_id, "cost-quality", png)
    tracking.log_json(run.tracking_id, "certificate", tuned.verdict.model_dump(mode="json"))
