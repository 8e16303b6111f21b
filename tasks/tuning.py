"""Tune: certify the cheapest threshold that keeps the promised quality, and settle every row by it."""

from prefect import get_run_logger, task

from domain.bundles import BundledTier, Lineage, Standing, rendering, standing
from domain.cascades import Cascade, bundle_of, decide_cascade, evidence_of, holds, recheck_cascade
from domain.certificates import Use
from domain.compiles import baseline_of
from domain.datasets import Split
from domain.requests import Completion
from domain.summaries import figure_metrics, tuning_summary, verdict_line
from domain.thresholds import tuning_share
from domain.workloads import Scope, Target, TierName
from infra import reporting, tracking
from infra.db.session import transaction
from infra.db.store import answers, audits, bundles, calls, datasets, runs, tunings
from infra.figures import Anchor, cost_quality_curve
from infra.pairs import fit_pairs, load_pairs
from infra.routings import routings_of
from infra.serving import served_answers
from infra.tiers import Deployment
from tasks.chunking import deployment_of
from tasks.references import DatasetRef, PromptRef, RunRef, ScoredRef, TunedRef
from tasks.running import is_retryable, load_for, step


@task(task_run_name="tune-router", retry_condition_fn=is_retryable)
def tune_router(run: RunRef, data: DatasetRef, prompts: list[PromptRef], _scored: list[ScoredRef]) -> TunedRef:
    """Choose the threshold on the calibration rows, look at it on the test rows, and make the bundle.

    A run that is to look at the champion first ends with that one if its certificate holds on these rows.
    """
    loaded = load_for(run)
    workload, target = loaded.workload, loaded.workload.target
    deployed = {prompt.tier: deployment_of(run, prompt, prompt.tier) for prompt in prompts}
    rows = load_pairs(run.run_id, data.version, workload.metric, deployed[TierName.CHEAP].prompt)
    if (bundle := _standing(run, prompts, target)) is not None:
        found = recheck_cascade(
            rows, target, decisive=workload.decisive, routing=bundle.routing, threshold=bundle.threshold
        )
        if holds(found, target):
            return _keep(run, data, bundle, found)
        get_run_logger().info("the champion's certificate does not hold on these rows: a new threshold is looked for")
    with transaction() as db:
        train = datasets.load_records(db, data.version, Split.TRAIN)
    routings = routings_of(workload, fit_pairs(loaded, train, deployed, _known), unseen=[row.key for row in rows])
    use = _use(run, data, evidence_of(rows, target, routings.ways, decisive=workload.decisive), target)
    cascade = decide_cascade(rows, target, decisive=workload.decisive, routings=routings.ways, use=use)
    tiers = {name: _bundled(run, name, deployment) for name, deployment in deployed.items()}
    lineage = Lineage(
        workload_hash=run.workload_hash,
        dataset_version=data.version,
        calibration_rows=data.calibration,
        baseline=baseline_of(workload, loaded.schema).hash,
    )
    bundle = bundle_of(cascade, workload, loaded.schema, tiers, lineage)
    with transaction() as db:
        bundles.save_bundle(db, bundle, run_id=run.run_id)
        runs.change_run(db, run.run_id, bundle_hash=bundle.hash)
        runs.add_summary(db, run.run_id, tuning_summary(cascade))
        answers.save_settled(db, run.run_id, data.version, cascade.settled)
    _track(run, cascade, target)
    for line in (*routings.notes, verdict_line(cascade.tuned.verdict)):
        get_run_logger().info("%s", line)
    return TunedRef(bundle_hash=bundle.hash, certified=cascade.threshold is not None)


def _standing(run: RunRef, prompts: list[PromptRef], target: Target) -> Standing | None:
    """The champion, if this run is to look at it first and its certificate makes the promise that is asked today."""
    if run.scope is not Scope.RECHECK or prompts[0].champion is None:
        return None
    with transaction() as db:
        bundle = bundles.load_bundle(db, prompts[0].champion)
        refuted = audits.alarms(db, bundle.hash)
    return None if refuted else standing(bundle, target)


def _keep(run: RunRef, data: DatasetRef, bundle: Standing, found: Cascade) -> TunedRef:
    with transaction() as db:
        runs.change_run(db, run.run_id, bundle_hash=bundle.hash)
        runs.add_summary(db, run.run_id, {**tuning_summary(found), "kept": bundle.hash})
        answers.save_settled(db, run.run_id, data.version, found.settled)
    _track(run, found, load_for(run).workload.target)
    get_run_logger().info("the champion's certificate holds on these rows: %s", verdict_line(found.tuned.verdict))
    return TunedRef(bundle_hash=bundle.hash, certified=True, kept=True)


def _use(run: RunRef, data: DatasetRef, evidence: str, target: Target) -> Use:
    """Which use of these calibration rows this is; it is on record before anybody sees what comes of it."""
    where = {"workload": run.workload, "version": data.version, "evidence": evidence}
    with transaction() as db:
        number = tunings.tuning_number(db, run.run_id, **where)
        share = tuning_share(target.spend, number)
        tunings.save_tuning(db, run.run_id, **where, number=number, delta=target.delta * share)
    return Use(number, share)


def _known(hashes: set[str]) -> dict[str, Completion]:
    with transaction() as db:
        return calls.load_completions(db, hashes)


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
    """The curve goes to MLflow as figure and as JSON, to Prefect as a table; the figures are metrics."""
    tuned, threshold, metrics = cascade.tuned, cascade.threshold, figure_metrics(cascade)
    png = cost_quality_curve(
        tuned.curve,
        threshold=threshold,
        cheap=Anchor(tuned.cheap.quality, tuned.cheap.cost),
        strong=Anchor(tuned.strong.quality, tuned.strong.cost),
        floor=target.floor(tuned.strong.quality),
        title=f"{run.workload}: cost and quality of the cascade",
    )
    reporting.curve(run.workload, tuned.curve, threshold=threshold)
    with step(run, "tune") as step_id:
        tracking.log(
            step_id, params={"threshold": str(threshold), "signal": cascade.routing.signal.value}, metrics=metrics
        )
        tracking.log_figure(step_id, "cost-quality", png)
        tracking.log_json(step_id, "curve", [point.model_dump(mode="json") for point in tuned.curve])
    tracking.log(run.tracking_id, params={}, metrics=metrics)
    tracking.log_figure(run.tracking_id, "cost-quality", png)
    tracking.log_json(run.tracking_id, "certificate", tuned.verdict.model_dump(mode="json"))
