"""Two runs out of the ledger, side by side."""

from collections import defaultdict
from collections.abc import Mapping

from sqlalchemy import Text, cast, func, select
from sqlalchemy.orm import Session

from domain.errors import NotFound
from domain.figures import usd_by
from domain.requests import Frame
from domain.run_diffs import Ended, Rule, RunDiff, Said, diff_runs, one_metric
from domain.workloads import TierName
from infra.db.session import transaction
from infra.db.store import bundles, runs
from infra.db.store.answers import answer_of
from infra.db.store.runs import RunRecord
from infra.db.tables import (
    AnswerRow,
    CompletionRow,
    FrameRow,
    OutcomeRow,
    QuarantinedRow,
    RecordRow,
    RunRowRow,
    ScoreRow,
)


def compare_runs(before: str, after: str) -> tuple[RunRecord, RunRecord, RunDiff]:
    """Compare two runs of one workload row by row; raises NotFound."""
    with transaction() as db:
        one, two = runs.load_run(db, before), runs.load_run(db, after)
        if one.workload != two.workload:
            raise NotFound(
                f"run {one.id[:8]} is of {one.workload!r}, run {two.id[:8]} of {two.workload!r}.",
                hint="Compare runs of the same workload.",
            )
        comparable = one_metric(one.spec.get("metric"), two.spec.get("metric"))
        rules = _rule(db, one), _rule(db, two)
        return one, two, diff_runs(_ended(db, one), _ended(db, two), rules=rules, comparable=comparable)


def _rule(db: Session, run: RunRecord) -> Rule:
    """How a run's rows were settled."""
    bundle = bundles.load_bundle(db, run.bundle_hash) if run.bundle_hash else None
    return Rule.of(bundle, kind=run.kind, void=bool(run.summary.get("void")))


def _ended(db: Session, run: RunRecord) -> list[Ended]:
    """How each row of a run ended; rows that could not be read are in neither."""
    said, spent = _said(db, run.id), _spent(db, run)
    outcomes = {row.record_key: row for row in db.scalars(select(OutcomeRow).where(OutcomeRow.run_id == run.id))}
    scores = {
        (row.record_key, row.tier): row.value
        for row in db.scalars(
            select(ScoreRow).where(ScoreRow.run_id == run.id, ScoreRow.metric == run.spec.get("metric", ""))
        )
    }
    refused = set(db.scalars(select(QuarantinedRow.record_key).where(QuarantinedRow.run_id == run.id)))
    inputs = func.encode(func.sha256(func.convert_to(cast(RecordRow.inputs, Text), "UTF8")), "hex")
    names = (
        select(RecordRow.key, RecordRow.record_id, inputs)
        .join(RunRowRow, RunRowRow.record_key == RecordRow.key)
        .where(RunRowRow.run_id == run.id, RecordRow.dataset_version == run.dataset_version)
        .order_by(RunRowRow.position)
    )
    found: list[Ended] = []
    for key, name, digest in db.execute(names).tuples():
        outcome = outcomes.get(key)
        if outcome is None and key not in refused:
            continue  # the run did not come to it
        tier = outcome.tier if outcome else None
        quality = scores.get((key, tier)) if tier else None
        usd = outcome.usd if outcome else spent.get(key, 0.0)
        output, escalated = (outcome.output, outcome.escalated) if outcome else (None, None)
        found.append(Ended(name, key, digest, output, tier, escalated, usd, quality, said.get(key, {})))
    return found


def _spent(db: Session, run: RunRecord) -> Mapping[str, float]:
    """USD that the answers to each row in quarantine took, as far as the run's bundle asks for them (the dashboard's
    view `answer_prices` says the same)."""
    bundle = bundles.load_bundle(db, run.bundle_hash) if run.bundle_hash else None
    asked = [TierName.STRONG] if bundle and _rule(db, run).threshold is None else list(TierName)
    query = (
        select(AnswerRow)
        .join(QuarantinedRow, QuarantinedRow.record_key == AnswerRow.record_key)
        .where(QuarantinedRow.run_id == run.id, AnswerRow.run_id == run.id, AnswerRow.tier.in_(asked))
    )
    found: defaultdict[str, float] = defaultdict(float)
    for row in db.scalars(query):
        answer = answer_of(row).as_tier_answer()
        own = bundle.routing.signal if bundle and run.kind == "optimize" else None
        found[row.record_key] += answer.usd if own is None else usd_by(answer, own)
    return found


def _said(db: Session, run_id: str) -> dict[str, dict[str, Said]]:
    """What each tier said to each row, by record key and tier."""
    query = (
        select(AnswerRow, CompletionRow.frame_hash)
        .outerjoin(CompletionRow, CompletionRow.request_hash == AnswerRow.request_hash)
        .where(AnswerRow.run_id == run_id)
    )
    rows = db.execute(query).tuples().all()
    wanted = {frame for _, frame in rows if frame}
    frames = {
        row.hash: Frame(row.body, row.revision) for row in db.scalars(select(FrameRow).where(FrameRow.hash.in_(wanted)))
    }
    found: dict[str, dict[str, Said]] = {}
    for row, frame in rows:
        known = frames.get(frame) if frame else None
        said = Said(row.request_hash, known, row.reasks, row.output, row.confidence)
        found.setdefault(row.record_key, {})[row.tier] = said
    return found
