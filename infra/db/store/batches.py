"""What a routed batch came to: counts, prices, and how long the tiers took."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from domain.batches import BatchFigures, Latency
from domain.ledgers import OutcomeClass, Stage
from domain.outcomes import STRAIGHT
from domain.workloads import TierName
from infra.db.tables import AnswerRow, AttemptRow, OutcomeRow, QuarantinedRow

QUANTILES = [0.5, 0.95]


def batch_figures(db: Session, run_id: str) -> BatchFigures:
    """What a run's rows come to."""
    o, a = OutcomeRow, AnswerRow
    answered, on_cheap, escalated, usd, kept_usd = db.execute(
        select(
            func.count(),
            func.count().filter(o.tier == TierName.CHEAP),
            func.count().filter(o.escalated),
            func.coalesce(func.sum(o.usd), 0.0),
            func.coalesce(func.sum(o.usd).filter(o.tier == TierName.CHEAP), 0.0),
        ).where(o.run_id == run_id)
    ).one()
    asked, invalid, straight = db.execute(
        select(
            func.count().filter(a.failed.is_distinct_from(STRAIGHT)),
            func.count().filter(a.output.is_(None), a.failed.is_distinct_from(STRAIGHT)),
            func.count().filter(a.failed == STRAIGHT),
        ).where(a.run_id == run_id, a.tier == TierName.CHEAP)
    ).one()
    strong_usd = db.scalar(
        select(func.coalesce(func.sum(a.usd), 0.0)).where(a.run_id == run_id, a.tier == TierName.STRONG)
    )
    unanswered = select(func.count()).where(QuarantinedRow.run_id == run_id, QuarantinedRow.stage == "validate")
    cheap, strong = _answered_twice(db, run_id)
    return BatchFigures(
        answered=answered,
        unanswered=db.scalar(unanswered) or 0,
        on_cheap=on_cheap,
        escalated=escalated,
        straight=straight,
        cheap_asked=asked,
        cheap_invalid=invalid,
        usd=usd,
        kept_usd=kept_usd,
        strong_usd=float(strong_usd or 0.0),
        both_cheap_usd=cheap,
        both_strong_usd=strong,
        latencies=_latencies(db, run_id),
    )


def _answered_twice(db: Session, run_id: str) -> tuple[float, float]:
    """USD of either tier's answers to the rows that both answered."""
    cheap, strong = aliased(AnswerRow), aliased(AnswerRow)
    query = (
        select(func.coalesce(func.sum(cheap.usd), 0.0), func.coalesce(func.sum(strong.usd), 0.0))
        .join(strong, (strong.run_id == cheap.run_id) & (strong.record_key == cheap.record_key))
        .where(cheap.run_id == run_id, cheap.tier == TierName.CHEAP, strong.tier == TierName.STRONG)
        .where(cheap.output.is_not(None), strong.output.is_not(None))
    )
    one, two = db.execute(query).one()
    return float(one), float(two)


def _latencies(db: Session, run_id: str) -> dict[TierName, Latency]:
    """Seconds of the calls that were made for rows and answered; tiers that nobody had to call are left out."""
    a = AttemptRow
    query = (
        select(a.tier, func.count(), func.percentile_cont(QUANTILES).within_group(a.seconds))
        .where(a.run_id == run_id, ~a.cached, a.outcome == OutcomeClass.ANSWERED, a.stage == Stage.GENERATE)
        .group_by(a.tier)
    )
    return {
        TierName(tier): Latency(calls=calls, p50=float(half), p95=float(most))
        for tier, calls, (half, most) in db.execute(query)
    }
