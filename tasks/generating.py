"""Generate: an answer for every row of a chunk, from an earlier run, from the ledger or from the model."""

import uvloop
from prefect import get_run_logger, task

from infra.progress import Progress
from infra.rows import generate
from infra.settings import load_settings
from tasks.chunking import deployment_of, rows_of
from tasks.references import BundleRef, ChunkRef, DatasetRef, PromptRef, RunRef
from tasks.running import is_retryable


@task(task_run_name="generate-{chunk.tier} {chunk.span}", retry_condition_fn=is_retryable)
def generate_chunk(run: RunRef, data: DatasetRef, plan: PromptRef | BundleRef, chunk: ChunkRef) -> ChunkRef:
    """Ask a tier about every row of a chunk that it has not answered; a repeated task goes on where it stopped."""
    deployment = deployment_of(run, plan, chunk.tier)
    rows = rows_of(run, data, plan, chunk)
    progress = Progress(run.run_id, f"generate {chunk.tier}", chunk.total, done=chunk.first)
    tally = uvloop.run(generate(deployment, rows, settings=load_settings(), progress=progress))
    progress.finish(chunk.first + chunk.rows)
    known = tally.cached + tally.reused
    get_run_logger().info(
        "%s rows %s: %d calls, %d from the ledger, %d failed", chunk.tier, chunk.span, tally.calls, known, tally.failed
    )
    return chunk.model_copy(update={"calls": tally.calls, "cached": known, "failed": tally.failed})
