"""A dataset through the champion bundle: the cheap tier first, the strong one where it is unsure."""

from prefect import flow

from domain.workloads import EngineName, TierName
from tasks.chunking import incoming_chunks
from tasks.generating import generate_chunk
from tasks.naming import named
from tasks.references import BundleRef, Limits
from tasks.routing import load_champion, settle_chunk, summarise_batch
from tasks.running import close_run, note_failure, open_run, stoppable
from tasks.snapshotting import changed, snapshot_incoming
from tasks.validating import validate_chunk


@flow(
    name="route-batch",
    flow_run_name=named("route"),
    on_failure=[note_failure],
    on_crashed=[note_failure],
    on_cancellation=[note_failure],
)
@stoppable
def route_batch(
    workload: str = "support-triage",
    uri: str | None = None,
    max_rows: int | None = None,
    engine: EngineName | None = None,
    max_usd: float | None = None,
    max_tokens: int | None = None,
    only_changed: bool = False,
    version: str | None = None,
) -> BundleRef:
    """Answer a batch of rows with the workload's champion bundle.

    Args:
        workload: Name of a folder below the workloads folder, or a path to one.
        uri: Rows to answer; empty means the workload's `dataset.incoming`.
        max_rows: Answer the first rows only.
        engine: What answers the rows, http, ray or openai-batch; empty means what each tier of the workload says.
        max_usd: Pause the run before it has spent more than this, list price in USD; `headrace resume` raises it.
        max_tokens: The same in tokens, prompt and completion together.
        only_changed: End at once when neither rows, workload nor champion have changed since the last complete batch.
        version: A dataset version of the ledger, instead of reading the rows again.
    """
    limits = Limits(engine=engine, max_usd=max_usd, max_tokens=max_tokens)
    run = open_run("route", workload, uri=uri, limits=limits, only_changed=only_changed)
    bundle = load_champion(run)
    data = changed(snapshot_incoming(run, uri=uri, max_rows=max_rows, version=version))
    cheap = [generate_chunk(run, data, bundle, chunk) for chunk in incoming_chunks(run, data, TierName.CHEAP)]
    checked = [validate_chunk(run, data, bundle, chunk) for chunk in cheap]
    strong = [generate_chunk(run, data, bundle, chunk.at(TierName.STRONG)) for chunk in checked]
    rechecked = [validate_chunk(run, data, bundle, chunk) for chunk in strong]
    settled = [settle_chunk(run, data, bundle, chunk) for chunk in rechecked]
    close_run(run, summarise_batch(run, bundle, settled))
    return bundle
