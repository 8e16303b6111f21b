"""Audit: which routed rows are looked at again, what they prove, and what an alarm sets in motion."""

from prefect import get_run_logger, task

from domain.audit_verdicts import lines, metrics, report, uncertified_report, void_report
from domain.audits import Terms, affordable, choose
from domain.datasets import Split
from infra import auditing, notices, reporting, retuning, tracking
from infra.audit_figures import Look, gap_over_audits
from infra.auditing import News, reference_of, terms_of
from infra.db.session import transaction
from infra.db.store import audits, bundles, calls, datasets, runs
from infra.drifting import count_drifts
from tasks.naming import name_run
from tasks.references import AuditRef, BundleRef, ChunkRef, DatasetRef, PickedRef, RunRef
from tasks.running import is_retryable, load_for, step


@task(task_run_name="pick-rows", retry_condition_fn=is_retryable)
def pick_rows(run: RunRef, bundle: BundleRef, *, share: float, max_rows: int | None) -> PickedRef:
    """Choose a share of all rows that the champion has routed since its last audit; the kept ones among them become the
    run's own. A run that is resumed keeps its rows. Of a bundle that is void, or promises nothing, no row is taken."""
    load_for(run)
    with transaction() as db:
        record = runs.load_run(db, run.run_id)
        promised = bundles.load_bundle(db, bundle.bundle_hash).threshold is not None and not bundle.void
        routes = audits.unaudited_routes(db, bundle.bundle_hash) if promised else []
        price = audits.mean_strong_usd(db, bundle.bundle_hash)
    if record.dataset_version is None:
        found = auditing.look(bundle.bundle_hash, routes, share=share)
        most = affordable(max_rows, record.max_usd, price)
        choice = choose(found.candidates, share=share, most=most)
        auditing.take(run.run_id, bundle.bundle_hash, choice, routes)
    with transaction() as db:
        record = runs.load_run(db, run.run_id)
        version = record.dataset_version or ""
        sizes = datasets.split_sizes(db, version)
    name_run("audit", run.workload, bundle.bundle_hash)
    data = DatasetRef(version=version, uri="routed rows", incoming=sizes.get(Split.INCOMING, 0))
    get_run_logger().info("%d kept rows are asked of the strong tier", data.incoming)
    return PickedRef(data=data, **record.summary["picked"])


@task(task_run_name="conclude-audit", retry_condition_fn=is_retryable)
def conclude_audit(
    run: RunRef, bundle: BundleRef, picked: PickedRef, _settled: list[ChunkRef], *, alpha: float
) -> AuditRef:
    """Show the detectors what is new and write down what they say. What a run has concluded it does not conclude again,
    so that no row is counted twice."""
    with transaction() as db:
        stored = bundles.find_bundle(db, bundle.bundle_hash)
        known = audits.is_concluded(db, run.run_id)
    reference = reference_of(stored, list(load_for(run).workload.dataset.gold))
    terms = terms_of(stored.bundle, reference, alpha=alpha)
    if not known:
        _conclude(run, bundle, picked, None if bundle.void else terms, reference.confidences)
    with transaction() as db:
        concluded = audits.load_audit(db, run.run_id)
        every = audits.load_audits(db, workload=run.workload, bundle_hash=bundle.bundle_hash)
        runs.add_summary(db, run.run_id, {"audit": concluded.report.model_dump(mode="json")})
    said = lines(concluded.report)
    for line in said:
        get_run_logger().info("%s", line)
    reporting.audit(run.workload, said)
    with step(run, "audit") as step_id:
        for tracked in (step_id, run.tracking_id):
            tracking.log(tracked, params={}, metrics=metrics(concluded.report))
        looks = [Look(a.report.gap_rows, a.report.gap, *a.report.gap_interval) for a in every if a.report.gap_interval]
        if looks and terms is not None:
            tracking.log_figure(run.tracking_id, "gap", gap_over_audits(looks, allowed=terms.gold.bound))
    found = concluded.report
    return AuditRef(bundle_hash=bundle.bundle_hash, verdict=found.verdict, alarms=found.alarms)


def _conclude(run: RunRef, bundle: BundleRef, picked: PickedRef, terms: Terms | None, reference: list[float]) -> None:
    loaded = load_for(run)
    routes = auditing.still_unaudited(bundle.bundle_hash, picked.routes)
    looked = auditing.look(bundle.bundle_hash, routes, share=0.0)
    newest = looked.confidences[-auditing.NEWEST :]
    drifts = count_drifts([*reference, *newest], after=len(reference)) if newest and terms else None
    fields, hash_ = list(loaded.workload.dataset.gold), bundle.bundle_hash
    with transaction() as db:
        before = audits.last_state(db, hash_)
        own = audits.load_own(db, hash_, run.run_id)
        uncounted = audits.load_waiting(
            db,
            hash_,
            run.run_id,
            workload=run.workload,
            fields=fields,
            every=terms is not None and terms.kind == "relative",
        )
        earlier = audits.alarms(db, hash_)
        usd = sum(spent.usd for spent in calls.spending(db, run.run_id))
    state, differing, losses = before, dict[str, float](), dict[str, float]()
    if terms is None:
        said = void_report(bundle.void, earlier) if bundle.void else uncertified_report()
    else:
        judged = auditing.judge(before, terms, News(own, uncounted, looked.escalated), loaded)
        state, differing, losses = judged.state, judged.differing, judged.losses
        counts = {
            "routed": len(looked.escalated),
            "audited": len(own),
            "asked of strong": picked.data.incoming,
            "newly counted by gold": len(losses),
            "waiting for a label": judged.waiting,
        }
        said = report(terms, state, counts=counts, share=picked.share, drifts=drifts, cut=picked.cut)
    with transaction() as db:
        audits.note_losses(db, hash_, run.run_id, differing=differing, losses=losses)
        done = (state, said)
        ids = [route.run_id for route in routes]
        audits.conclude(db, run.run_id, workload=run.workload, bundle_hash=hash_, found=done, routes=ids, usd=usd)
        notices.audit(db, said, workload=run.workload, bundle_hash=hash_, run_id=run.run_id)


@task(task_run_name="raise-alarm", retry_condition_fn=is_retryable)
def raise_alarm(run: RunRef, audit: AuditRef) -> AuditRef:
    """Tell Prefect of an alarm, whose automation starts a new tuning; nothing of an audit that raised none."""
    if audit.verdict == "alarm":
        retuning.announce(
            run_id=run.run_id,
            bundle_hash=audit.bundle_hash,
            workload=run.workload,
            folder=run.folder,
            retune=load_for(run).workload.router.retune,
            alarms=list(audit.alarms),
        )
    return audit
