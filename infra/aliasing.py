"""Champions made by hand: promote and roll back, through the gate or past it, and always into the audit table."""

import os
import pwd
from dataclasses import dataclass

from domain.bundles import Bundle, Gate, gate, gate_report
from domain.datasets import Split
from domain.errors import InputError, NotFound, Place, PromotionRefused
from domain.figures import Row, figures_of, loss_of
from domain.promotions import Act, former_champion
from domain.validities import examine
from infra import notices
from infra.db.session import transaction
from infra.db.store import audits, bundles, promotions, runs
from infra.db.store.bundles import StoredBundle
from infra.db.store.runs import RunRecord
from infra.pairs import bundled_pairs
from infra.serving import present_of
from infra.settings import Settings
from infra.workloads import LoadedWorkload


@dataclass(frozen=True, slots=True)
class Moved:
    """A champion that was made: the bundle, who was champion before, what was done (None: it was champion already), and
    what the gate said (None: not asked)."""

    bundle: Bundle
    before: str | None
    act: Act | None
    verdict: Gate | None


def os_user() -> str:
    """The name of the user that this process runs as, whatever the environment says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def promote(reference: str, loaded: LoadedWorkload, settings: Settings, *, forced: bool, reason: str | None) -> Moved:
    """Make a bundle champion when it passes the gate, or in spite of it; the champion itself is left alone.

    Raises NotFound, and PromotionRefused with the gate's reasons, which are on record by then.
    """
    with transaction() as db:
        stored = bundles.find_bundle(db, reference)
        champion = promotions.champion_hash(db, stored.bundle.workload)
        alarms = audits.alarms(db, stored.bundle.hash)
    bundle, target = stored.bundle, loaded.workload.target
    if bundle.workload != loaded.workload.name:
        raise NotFound(
            f"the bundle {bundle.hash[:12]} belongs to the workload {bundle.workload!r}, not {loaded.workload.name!r}.",
            hint="Give that workload's folder with --workload.",
        )
    if champion == bundle.hash:
        return Moved(bundle, champion, None, None)
    test = judged_rows(stored, Split.TEST)
    figures, loss = figures_of(test, bundle.threshold), loss_of(test, bundle.threshold, target)
    void = examine(bundle, present_of(loaded, settings), alarms).reasons
    verdict = gate(bundle.certificate, figures, loss, target, void=void)
    act = Act.PROMOTED if verdict.passed else Act.FORCED if forced else Act.REFUSED
    with transaction() as db:
        report = gate_report(verdict, figures, loss)
        promotions.record(
            db, act, workload=bundle.workload, to_hash=bundle.hash, who=os_user(), reason=reason, gate=report
        )
        reasons = [*verdict.reasons, *([reason] if reason else [])]
        notices.promotion(db, act, workload=bundle.workload, bundle_hash=bundle.hash, reasons=reasons)
    if act is Act.REFUSED:
        raise PromotionRefused(f"the gate refuses {bundle.hash[:12]}: {'; '.join(verdict.reasons)}.")
    return Moved(bundle, champion, act, verdict)


def roll_back(workload: str, *, reason: str | None) -> Moved:
    """Make the champion before this one champion again; the gate is not asked.

    Raises NotFound without a champion, and PromotionRefused when there was none before it.
    """
    with transaction() as db:
        now = bundles.find_bundle(db, f"champion@{workload}").bundle.hash
        before = former_champion((entry.move for entry in promotions.load_entries(db, workload)), now)
        if before is None:
            raise PromotionRefused(
                f"the workload {workload!r} had no champion before {now[:12]}.",
                hint="Promote another bundle with `headrace promote HASH`; `headrace bundles` lists them.",
            )
        bundle = bundles.load_bundle(db, before)
        promotions.record(db, Act.ROLLED_BACK, workload=workload, to_hash=before, who=os_user(), reason=reason)
        reasons = [reason] if reason else []
        notices.promotion(db, Act.ROLLED_BACK, workload=workload, bundle_hash=before, reasons=reasons)
    return Moved(bundle, now, Act.ROLLED_BACK, None)


def judged_rows(stored: StoredBundle, *splits: Split) -> list[Row]:
    """The rows of these splits with both tiers' answers in the run that made a bundle; none without that run."""
    run = _maker(stored)
    if run is None or run.dataset_version is None:
        return []
    return bundled_pairs(stored.bundle, run.id, run.dataset_version, run.spec["metric"], *splits)


def require_one_metric(one: StoredBundle, two: StoredBundle) -> None:
    """Raises InputError when the runs that made two bundles were scored by different metrics: no difference of such
    scores means anything."""
    a, b = (run.spec["metric"] if run else None for run in (_maker(one), _maker(two)))
    if a and b and a != b:
        raise InputError(
            Place(f"bundles {one.bundle.hash[:12]} and {two.bundle.hash[:12]}"),
            f"the one was scored by {a!r}, the other by {b!r}",
            hint="Compare bundles of one metric; `headrace run` makes one with the metric of today.",
        )


def _maker(stored: StoredBundle) -> RunRecord | None:
    if stored.run_id is None:
        return None
    with transaction() as db:
        return runs.load_run(db, stored.run_id)
