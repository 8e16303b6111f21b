"""Promote: the gate looks at the test split and moves the aliases, in Postgres and in MLflow."""

from prefect import get_run_logger, task

from domain.bundles import gate
from domain.datasets import Split
from domain.figures import figures_of
from domain.workloads import TierName
from infra import registry, tracking
from infra.db.session import transaction
from infra.db.store import bundles, runs
from infra.pairs import load_pairs
from tasks.references import BundleRef, DatasetRef, RunRef, TunedRef
from tasks.running import is_retryable, load_for, step


@task(retry_condition_fn=is_retryable)
def promote_bundle(run: RunRef, data: DatasetRef, tuned: TunedRef) -> BundleRef:
    """Make the bundle challenger, and champion when it passes the gate."""
    workload = load_for(run).workload
    with transaction() as db:
        bundle = bundles.load_bundle(db, tuned.bundle_hash)
    test = [row for row in load_pairs(run.run_id, data.version, workload.metric) if row.split is Split.TEST]
    verdict = gate(bundle.certificate, figures_of(test, bundle.threshold), workload.target)
    aliases = ["challenger", "champion"] if verdict.passed else ["challenger"]
    with transaction() as db:
        bundles.save_promotion(db, bundle, verdict, run_id=run.run_id)
        for alias in aliases:
            bundles.set_alias(db, run.workload, alias, bundle.hash)
        runs.add_summary(db, run.run_id, {"promoted": verdict.passed, "gate": list(verdict.reasons)})
    with step(run, "promote") as step_id:
        name, version = registry.log_bundle(bundle, run_id=step_id)
        for alias in aliases:
            registry.set_alias(name, alias, version)
        for tier in TierName:
            prompt = registry.register_prompt(bundle[tier].prompt, workload=run.workload, tier=tier, run_id=step_id)
            for alias in aliases:
                registry.set_prompt_alias(registry.prompt_name(run.workload, tier), alias, prompt)
        tracking.log(step_id, params={"bundle": bundle.hash, "promoted": str(verdict.passed)}, metrics={})
        tracking.set_tags(run.tracking_id, {"headrace.bundle": bundle.hash, "headrace.promoted": str(verdict.passed)})
    get_run_logger().info("%s", "champion" if verdict.passed else f"challenger only: {'; '.join(verdict.reasons)}")
    return BundleRef(bundle_hash=bundle.hash)
