"""Route: which bundle answers, and what became of every row."""

from prefect import task

from domain.datasets import Split
from domain.outcomes import settle_row
from domain.summaries import batch_summary
from domain.workloads import TierName
from infra import tracking
from infra.db.session import transaction
from infra.db.store import answers, bundles, datasets, runs
from tasks.references import BundleRef, ChunkRef, DatasetRef, RunRef
from tasks.running import is_retryable, load_for, step


@task(retry_condition_fn=is_retryable)
def load_champion(run: RunRef) -> BundleRef:
    """The workload's champion; raises NotFound without one and StaleBundle when the schema has changed since."""
    loaded = load_for(run)
    with transaction() as db:
        bundle = bundles.champion(db, run.workload)
        bundle.check_schema(loaded.schema)
        runs.change_run(db, run.run_id, bundle_hash=bundle.hash)
    tracking.set_tags(run.tracking_id, {"headrace.bundle": bundle.hash})
    return BundleRef(bundle_hash=bundle.hash)


@task(task_run_name="settle-{chunk.index}", retry_condition_fn=is_retryable)
def settle_chunk(run: RunRef, data: DatasetRef, bundle: BundleRef, chunk: ChunkRef) -> ChunkRef:
    """Turn both tiers' answers to a chunk into outcomes, and quarantine what nobody could answer."""
    with transaction() as db:
        threshold = bundles.load_bundle(db, bundle.bundle_hash).threshold
        rows = datasets.load_records(db, data.version, Split.INCOMING, first=chunk.first, limit=chunk.rows)
        given = {
            tier: {k: a.as_tier_answer() for k, a in answers.load_answers(db, run.run_id, tier).items()}
            for tier in TierName
        }
        settled = [
            settle_row(row.key, given[TierName.CHEAP].get(row.key), given[TierName.STRONG].get(row.key), threshold)
            for row in rows
        ]
        answers.save_settled(db, run.run_id, data.version, settled)
    return chunk


@task(retry_condition_fn=is_retryable)
def summarise_batch(run: RunRef, bundle: BundleRef, _settled: list[ChunkRef]) -> BundleRef:
    """Write down what the batch cost and saved against all-strong."""
    with transaction() as db:
        threshold = bundles.load_bundle(db, bundle.bundle_hash).threshold
        strong = [a.usd for a in answers.load_answers(db, run.run_id, TierName.STRONG).values()]
        summary = batch_summary(answers.load_outcomes(db, run.run_id), strong, threshold)
        runs.add_summary(db, run.run_id, summary)
    with step(run, "route") as step_id:
        metrics = {key: value for key, value in summary.items() if isinstance(value, float)}
        tracking.log(step_id, params={"bundle": bundle.bundle_hash}, metrics=metrics)
        tracking.log(run.tracking_id, params={}, metrics=metrics)
    return bundle
