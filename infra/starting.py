"""Starting a run once, however often and by whomever it is asked for: by an idempotency key that is ours to check."""

from typing import Any
from uuid import UUID

from infra import deployments
from infra.db.session import transaction
from infra.db.store import changes


def start_once(flow: str, key: str, *, parameters: dict[str, Any], workload: str) -> UUID:
    """Start a deployed flow under an idempotency key; returns the run's id, the same for every call with this key.

    Prefect starts one run a key, and takes no notice of other parameters under the same key; the ledger does. Whatever
    dies in between, the next call finds or starts the one run. Raises KeyReused, NotFound when the flow is not
    deployed, PrefectError and StoreError.
    """
    with transaction() as db:
        known = changes.reserve(db, key, flow=flow, parameters=parameters)
    if known is not None:
        return UUID(known)
    run_id = deployments.start(flow, parameters=parameters, workload=workload, idempotency_key=key)
    with transaction() as db:
        changes.note_start(db, key, str(run_id))
    return run_id
