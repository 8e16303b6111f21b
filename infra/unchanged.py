"""Whether a run would only repeat what a complete one has done: same rows, same workload, same bundle."""

from domain.workloads import Scope
from infra.db.session import transaction
from infra.db.store import audits, runs

_ORDER = (Scope.RECHECK, Scope.RETUNE, Scope.FULL)
"""What a scope does, those before it do less."""


def unchanged_since(run_id: str, version: str, *, scope: Scope) -> str | None:
    """The newest complete run of this kind if it did just what `run_id` would do with a dataset version, else None.

    A certificate that an audit has refuted since is a change too; so is another champion for a batch.
    """
    with transaction() as db:
        mine = runs.load_run(db, run_id)
        last = runs.last_completed(db, mine.kind, mine.workload)
        if last is None or (last.workload_hash, last.dataset_version) != (mine.workload_hash, version):
            return None
        if _ORDER.index(Scope(last.summary.get("scope", Scope.FULL))) < _ORDER.index(scope):
            return None
        if mine.kind == "route":
            same = last.bundle_hash == mine.bundle_hash and last.summary.get("void") == mine.summary.get("void")
            return last.id if same else None
        return None if last.bundle_hash and audits.alarms(db, last.bundle_hash) else last.id
