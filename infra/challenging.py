"""Challengers made by hand: from a threshold that somebody chose to a bundle of the ledger, and to MLflow."""

from dataclasses import dataclass

from domain.bundles import Bundle
from domain.challengers import at_threshold
from domain.datasets import Split
from domain.figures import paired_rows
from domain.promotions import Act
from infra import registry, tracking
from infra.aliasing import judged_rows, os_user
from infra.db.session import transaction
from infra.db.store import bundles, promotions

ALIAS = "challenger"


@dataclass(frozen=True, slots=True)
class Challenged:
    """The challenger, the bundle that it was made of, the run of that one's rows, and whether it is challenger only
    now."""

    bundle: Bundle
    of: str
    run_id: str | None
    new: bool


def challenge(reference: str, threshold: float, *, reason: str | None) -> Challenged:
    """Make a bundle with another threshold challenger, which the audit table keeps; doing so again changes nothing.

    Raises NotFound, and PromotionRefused where the threshold is not certified.
    """
    with transaction() as db:
        stored = bundles.find_bundle(db, reference)
    made = at_threshold(stored.bundle, paired_rows(judged_rows(stored, Split.CALIBRATION)), threshold)
    with transaction() as db:
        bundles.save_bundle(db, made, run_id=stored.run_id)
        new = ALIAS not in bundles.find_bundle(db, made.hash).aliases
        if new:
            who, workload = os_user(), made.workload
            promotions.record(db, Act.CHALLENGER, workload=workload, to_hash=made.hash, who=who, reason=reason)
            bundles.set_alias(db, workload, ALIAS, made.hash)
    return Challenged(made, stored.bundle.hash, stored.run_id, new)


def show_in_mlflow(made: Challenged) -> bool:
    """Register the challenger beside the bundle that it was made of, and move the alias.

    Returns False when MLflow does not know the run. Raises TraceStoreError when it cannot be reached or refuses.
    """
    run = made.run_id and tracking.find_run(workload=made.bundle.workload, flow_run_id=made.run_id)
    if not run:
        return False
    registry.log_bundle(made.bundle, run_id=run)
    return registry.mirror(made.bundle, ALIAS)
