"""Tune: certify the cheapest threshold that keeps the promised quality, and settle every row by it."""

from prefect import get_run_logger, task

from domain.bundles import Bundle, BundledTier, Lineage
from domain.certificates import Certificate, NotCertified, Tuned, grid_of, tune
from domain.datasets import Split
from domain.figures import figures_of, paired_rows
from domain.outcomes import settle_row
from domain.summaries import figure_metrics, tuning_summary, verdict_line
from domain.workloads import Target, TierName
from infra import tracking
from infra.db.session import transaction
from infra.db.store import answers, bundles, runs
from infra.figures import Anchor, cost_quality_curve
from infra.pairs import load_pairs
from tasks.chunking import deployment_of
from tasks.references import DatasetRef, PromptRef, RunRef, ScoredRef, TunedRef
from tasks.running import is_retryable, load_for, step


@task(retry_condition_fn=is_retryable)
def tune_router(run: RunRef, data: DatasetRef, prompts: list[PromptRef], _scored: list[ScoredRef]) -> TunedRef:
    """Choose the threshold on the calibration rows, look at it on the test rows, and make the bundle."""
    workload = load_for(run).workload
    rows = load_pairs(run.run_id, data.version, workload.metric)
    calibration = paired_rows([row for row in rows if row.split is Split.CALIBRATION])
    tuned = tune(calibration, workload.target, grid=grid_of(calibration.confidence))
    threshold = tuned.verdict.threshold if isinstance(tuned.verdict, Certificate) else None
    figures = figures_of([row for row in rows if row.split is Split.TEST], threshold)
    bundle = _bundle(run, data, prompts, tuned.verdict, threshold)
    with transaction() as db:
        bundles.save_bundle(db, bundle, run_id=run.run_id)
        runs.change_run(db, run.run_id, bundle_hash=bundle.hash)
        runs.add_summary(db, run.run_id, tuning_summary(tuned, figures))
        settled = [settle_row(row.key, row.cheap, row.strong, threshold) for row in rows]
        answers.save_settled(db, run.run_id, data.version, settled)
    _track(run, tuned, threshold, figure_metrics(figures), workload.target)
    get_run_logger().info(verdict_line(tuned.verdict))
    return TunedRef(bundle_hash=bundle.hash, certified=threshold is not None)


def _bundle(
    run: RunRef,
    data: DatasetRef,
    prompts: list[PromptRef],
    verdict: Certificate | NotCertified,
    threshold: float | None,
) -> Bundle:
    loaded = load_for(run)
    deployed = {prompt.tier: deployment_of(run, prompt, prompt.tier) for prompt in prompts}
    tiers = {name: BundledTier(tier=d.tier, prompt=d.prompt, prior=dict(d.prior.means)) for name, d in deployed.items()}
    return Bundle(
        workload=run.workload,
        cheap=tiers[TierName.CHEAP],
        strong=tiers[TierName.STRONG],
        json_schema=loaded.schema.json_schema,
        decisive=loaded.schema.decisive,
        max_reasks=loaded.workload.max_reasks,
        threshold=threshold,
        certificate=verdict,
        lineage=Lineage(
            workload_hash=run.workload_hash, dataset_version=data.version, calibration_rows=data.calibration
        ),
    )


def _track(run: RunRef, tuned: Tuned, threshold: float | None, metrics: dict[str, float], target: Target) -> None:
    """The curve goes to MLflow as figure and as JSON, the figures as metrics."""
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
