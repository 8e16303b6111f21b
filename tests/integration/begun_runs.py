"""Runs that have begun, for tests that need one in the ledger and no flow."""

import uuid

from infra.db.session import transaction
from infra.db.store import runs


def open_run() -> str:
    """Begin a run; returns its id."""
    run_id = str(uuid.uuid4())
    with transaction() as db:
        runs.open_run(db, run_id, kind="optimize", workload="w", workload_hash="0" * 64, spec={}, meters={})
    return run_id
