"""The product on one screen: from a dataset to a certified, promoted bundle."""

from prefect import flow

from domain.workloads import EngineName, Scope, TierName
from tasks.approving import await_approval
from tasks.chunking import judged_chunks
from tasks.compiling import compile_prompt
from tasks.evaluating import confirm_spans, export_evaluation, score_tier
from tasks.generating import generate_chunk
from tasks.naming import named
from tasks.promoting import promote_bundle
from tasks.references import BundleRef, Limits
from tasks.running import close_run, note_failure, open_run, stoppable
from tasks.snapshotting import changed, snapshot_dataset
from tasks.tuning import tune_router
from tasks.validating import validate_chunk


@flow(
    name="optimize-workload",
    flow_run_name=named("optimize"),
    on_failure=[note_failure],
    on_crashed=[note_failure],
    on_cancellation=[note_failure],
)
@stoppable
def optimize_workload(
    workload: str = "support-triage",
    max_rows: int | None = None,
    engine: EngineName | None = None,
    max_usd: float | None = None,
    max_tokens: int | None = None,
    approval: bool = False,
    scope: Scope = Scope.FULL,
    only_changed: bool = False,
    version: str | None = None,
) -> BundleRef:
    """Find the cheapest way to run a workload at the promised quality.

    Args:
        workload: Name of a folder below the workloads folder, or a path to one.
        max_rows: Use the first labelled rows only, for a quick look.
        engine: What answers the rows, http, ray or openai-batch; empty means what each tier of the workload says.
        max_usd: Pause the run before it has spent more than this, list price in USD; `headrace resume` raises it.
        max_tokens: The same in tokens, prompt and completion together.
        approval: Wait until somebody resumes the run; an audit's alarm starts it so where `router.retune` says so.
        scope: full compiles, tunes and promotes; retune keeps the champion's prompts and looks for a new threshold;
            recheck keeps the champion if its certificate holds on the rows as they are now, and retunes if not.
        only_changed: End at once when neither rows nor workload have changed since the last complete run.
        version: A dataset version of the ledger, instead of reading the dataset again.
    """
    await_approval(approval)
    limits = Limits(engine=engine, max_usd=max_usd, max_tokens=max_tokens)
    run = open_run("optimize", workload, limits=limits, scope=scope, only_changed=only_changed)
    data = changed(snapshot_dataset(run, max_rows=max_rows, version=version))
    prompts = [compile_prompt(run, data, tier) for tier in TierName]
    generated = {p.tier: [generate_chunk(run, data, p, c) for c in judged_chunks(run, data, p.tier)] for p in prompts}
    validated = {p.tier: [validate_chunk(run, data, p, c) for c in generated[p.tier]] for p in prompts}
    scored = [score_tier(run, data, p, validated[p.tier]) for p in prompts]
    shown = [export_evaluation(run, data, p, s) for p, s in zip(prompts, scored, strict=True)]
    tuned = tune_router(run, data, prompts, scored)
    bundle = promote_bundle(run, data, tuned)
    confirmed = confirm_spans(run, bundle)
    close_run(run, [shown, confirmed])
    return bundle
