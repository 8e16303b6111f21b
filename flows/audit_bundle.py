"""Does the champion's certificate still hold? A share of the routed rows is answered by the strong tier as well."""

from prefect import flow

from domain.workloads import EngineName, TierName
from tasks.auditing import conclude_audit, pick_rows, raise_alarm
from tasks.chunking import incoming_chunks
from tasks.generating import generate_chunk
from tasks.naming import named
from tasks.references import AuditRef, Limits
from tasks.routing import load_champion, settle_chunk
from tasks.running import close_run, note_failure, open_run, stoppable
from tasks.validating import validate_chunk


@flow(
    name="audit-bundle",
    flow_run_name=named("audit"),
    on_failure=[note_failure],
    on_crashed=[note_failure],
    on_cancellation=[note_failure],
)
@stoppable
def audit_bundle(
    workload: str = "support-triage",
    share: float = 0.2,
    max_rows: int | None = 500,
    alpha: float = 0.05,
    engine: EngineName | None = None,
    max_usd: float | None = None,
    max_tokens: int | None = None,
) -> AuditRef:
    """Audit the champion on what it has routed since the last audit.

    Args:
        workload: Name of a folder below the workloads folder, or a path to one.
        share: Share of all routed rows that is looked at, chosen by hash; escalated rows among them cost nothing.
        max_rows: Ask the strong tier about so many rows at most.
        alpha: Chance that the e-process raises a false alarm, over the bundle's whole life.
        engine: What answers the rows, http, ray or openai-batch; empty means what each tier of the workload says.
        max_usd: Choose no more rows than this pays for, list price in USD, and pause the run before it has spent more.
        max_tokens: Pause the run before it has used more tokens; `headrace resume` raises it.
    """
    run = open_run("audit", workload, limits=Limits(engine=engine, max_usd=max_usd, max_tokens=max_tokens))
    bundle = load_champion(run)
    picked = pick_rows(run, bundle, share=share, max_rows=max_rows)
    data = picked.data
    asked = [generate_chunk(run, data, bundle, chunk) for chunk in incoming_chunks(run, data, TierName.STRONG)]
    checked = [validate_chunk(run, data, bundle, chunk) for chunk in asked]
    settled = [settle_chunk(run, data, bundle, chunk) for chunk in checked]
    audit = raise_alarm(run, conclude_audit(run, bundle, picked, settled, alpha=alpha))
    close_run(run, audit)
    return audit
