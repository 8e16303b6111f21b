"""Promote: the gate looks at the test split and moves the aliases, in Postgres and in MLflow."""

from prefect import get_run_logger, task

from domain.bundles import Bundle, Gate, gate, gate_report
from domain.datasets import Split
from domain.figures import figures_of, loss_of
from domain.promotions import Act
from domain.validities import examine
from domain.workloads import TierName
from infra import notices, registry, tracking
from infra.aliasing import os_user
from infra.db.session import transaction
from infra.db.store import audits, bundles, promotions, runs
from infra.pairs import bundled_pairs
from infra.serving import present_of
from infra.settings import load_settings
from tasks.references import BundleRef, DatasetRef, RunRef, TunedRef
from tasks.running import is_retryable, load_for, step


@task(task_run_name="promote-bundle", retry_condition_fn=is_retryable)
def promote_bundle(run: RunRef, data: DatasetRef, tuned: TunedRef) -> BundleRef:
    """Make the bundle challenger, and champion when it passes the gate; either is a row of the audit table.

    A champion that was kept stays what it is.
    """
    if tuned.kept:
        return BundleRef(bundle_hash=tuned.bundle_hash)
    loaded, settings = load_for(run), load_settings()
    workload = loaded.workload
    with transaction() as db:
        bundle = bundles.load_bundle(db, tuned.bundle_hash)
        alarms = audits.alarms(db, bundle.hash)
    test = bundled_pairs(bundle, run.run_id, data.version, workload.metric, Split.TEST)
    figures, loss = figures_of(test, bundle.threshold), loss_of(test, bundle.threshold, workload.target)
    void = examine(bundle, present_of(loaded, settings, run.engine), alarms).reasons
    verdict = gate(bundle.certificate, figures, loss, workload.target, void=void)
    with transaction() as db:
        bundles.save_promotion(db, bundle, verdict, run_id=run.run_id)
        new = promotions.record(
            db,
            Act.PROMOTED if verdict.passed else Act.REFUSED,
            workload=run.workload,
            to_hash=bundle.hash,
            who=os_user(),
            gate=gate_report(verdict, figures, loss),
            run_id=run.run_id,
        )
        if new:
            bundles.set_alias(db, run.workload, "challenger", bundle.hash)
        notices.gate(db, verdict, workload=run.workload, bundle_hash=bundle.hash, run_id=run.run_id)
        held = bundles.find_bundle(db, bundle.hash).aliases
        summary = {"promoted": verdict.passed, "gate": list(verdict.reasons), "void": list(void)}
        runs.add_summary(db, run.run_id, summary)
    _show(run, bundle, held, verdict)
    get_run_logger().info("%s", "champion" if verdict.passed else f"challenger only: {'; '.join(verdict.reasons)}")
    return BundleRef(bundle_hash=bundle.hash)


def _show(run: RunRef, bundle: Bundle, aliases: tuple[str, ...], verdict: Gate) -> None:
    """Bundle, prompts and aliases as they stand, in MLflow."""
    with step(run, "promote") as step_id:
        registry.log_bundle(bundle, run_id=step_id)
        for tier in TierName:
            registry.register_prompt(bundle[tier].prompt, workload=run.workload, tier=tier, run_id=step_id)
        for alias in aliases:
            registry.mirror(bundle, alias)
        tracking.log(step_id, params={"bundle": bundle.hash, "promoted": str(verdict.passed)}, metrics={})
        tracking.set_tags(run.tracking_id, {"headrace.bundle": bundle.hash, "headrace.promoted": str(verdict.passed)})
