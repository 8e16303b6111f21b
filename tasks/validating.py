"""Validate: check every completion against the schema, and re-ask those that fail."""

import uvloop
from prefect import get_run_logger, task

from infra.progress import Progress
from infra.rows import validate
from infra.settings import load_settings
from tasks.chunking import deployment_of, rows_of
from tasks.references import BundleRef, ChunkRef, DatasetRef, PromptRef, RunRef
from tasks.running import is_retryable


@task(task_run_name="validate-{chunk.tier} {chunk.span}", retry_condition_fn=is_retryable)
def validate_chunk(run: RunRef, data: DatasetRef, plan: PromptRef | BundleRef, chunk: ChunkRef) -> ChunkRef:
    """Re-ask about every answer of a chunk that failed its schema; then each row has an answer or a reason."""
    deployment = deployment_of(run, plan, chunk.tier)
    rows = rows_of(run, data, plan, chunk)
    progress = Progress(run.run_id, f"validate {chunk.tier}", chunk.total, done=chunk.first)
    tally = uvloop.run(validate(deployment, rows, settings=load_settings(), progress=progress))
    progress.finish(chunk.first + chunk.rows)
    get_run_logger().info(
        "%s rows %s: %d asked again, %d without a valid answer", chunk.tier, chunk.span, tally.reasks, tally.failed
    )
    return chunk.model_copy(update={"reasks": tally.reasks, "failed": chunk.failed + tally.failed})
