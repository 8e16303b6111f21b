"""Runs that have begun, for tests that need one in the ledger and no flow."""

import uuid

from infra.db.session import transaction
from infra.db.store import leases, runs


def open_run() -> str:
    """Begin a run, with a lease that outlasts the test; returns its id."""
    run_id = str(uuid.uuid4())
    with transaction() as db:
        leases.take(db, f"begun {run_id}", run_id, holder="a test", ttl_s=3600)
        runs.open_run(db, run_id, kind="optimize", workload="w", workload_hash="0" * 64, spec={}, meters={})
    return run_id
