"""Route: which bundle answers, and what became of every row."""

from typing import cast

from prefect import get_run_logger, task
from pydantic import JsonValue

from domain.batches import batch_summary
from domain.certificates import Certificate
from domain.outcomes import settle_row
from domain.summaries import void_line
from domain.validities import examine
from infra import tracking
from infra.db.session import transaction
from infra.db.store import answers, audits, bundles, paging, runs
from infra.db.store.batches import batch_figures
from infra.serving import present_of
from infra.settings import load_settings
from tasks.chunking import threshold_of
from tasks.references import BundleRef, ChunkRef, DatasetRef, RunRef
from tasks.running import is_retryable, load_for, step

PAGE_ROWS = 2_000


@task(task_run_name="load-champion", retry_condition_fn=is_retryable)
def load_champion(run: RunRef) -> BundleRef:
    """The workload's champion, and why its certificate is void if it is: then every row goes to the strong tier.

    A run that is resumed keeps its bundle, whoever is champion by then. Raises NotFound without a champion and
    StaleBundle when the output schema has changed since.
    """
    loaded = load_for(run)
    present = present_of(loaded, load_settings(), run.engine)
    with transaction() as db:
        begun = runs.load_run(db, run.run_id).bundle_hash
        bundle = bundles.load_bundle(db, begun) if begun else bundles.champion(db, run.workload)
        found = examine(bundle, present, audits.alarms(db, bundle.hash))
        found.check_schema(run.workload)
        runs.change_run(db, run.run_id, bundle_hash=bundle.hash)
        runs.add_summary(db, run.run_id, {"void": list(found.reasons)})
    tracking.set_tags(run.tracking_id, {"headrace.bundle": bundle.hash, "headrace.void": "; ".join(found.reasons)})
    if found.void:
        get_run_logger().warning("%s", void_line(found.reasons, run.workload))
    return BundleRef(bundle_hash=bundle.hash, void=found.reasons)


@task(task_run_name="settle {chunk.span}", retry_condition_fn=is_retryable)
def settle_chunk(run: RunRef, data: DatasetRef, bundle: BundleRef, chunk: ChunkRef) -> ChunkRef:
    """Turn both tiers' answers to a chunk into outcomes, and quarantine what nobody could answer."""
    threshold = threshold_of(bundle)
    after, last = chunk.first - 1, chunk.first + chunk.rows
    while True:
        with transaction() as db:
            rows = paging.load_given(db, run.run_id, after=after, last=last, limit=PAGE_ROWS)
            settled = [settle_row(row.key, row.cheap, row.strong, threshold) for row in rows]
            answers.save_settled(db, run.run_id, data.version, settled)
        if not rows:
            return chunk
        after = rows[-1].position


@task(task_run_name="summarise-batch", retry_condition_fn=is_retryable)
def summarise_batch(run: RunRef, bundle: BundleRef, _settled: list[ChunkRef]) -> BundleRef:
    """Write down what the batch cost and saved against all-strong."""
    threshold = threshold_of(bundle)
    with transaction() as db:
        certificate = bundles.load_bundle(db, bundle.bundle_hash).certificate
        usual = certificate.cost_all_strong if isinstance(certificate, Certificate) else certificate.cost
        summary = batch_summary(batch_figures(db, run.run_id), threshold, usual_strong_usd=usual)
        runs.add_summary(db, run.run_id, summary)
    with step(run, "route") as step_id:
        metrics = {key: value for key, value in summary.items() if isinstance(value, float)} | _latencies(summary)
        tracking.log(step_id, params={"bundle": bundle.bundle_hash}, metrics=metrics)
        tracking.log(run.tracking_id, params={}, metrics=metrics)
    return bundle


def _latencies(summary: dict[str, JsonValue]) -> dict[str, float]:
    """Seconds by tier and quantile, under names that a tracking store can plot."""
    found = cast(dict[str, dict[str, float]], summary["latency_s"])
    return {f"latency_{name}_{q}_s": found[name][q] for name in found for q in ("p50", "p95")}
