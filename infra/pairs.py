"""Both tiers' answers and scores to the same rows, side by side."""

from domain.datasets import JUDGED
from domain.figures import Row
from domain.workloads import TierName
from infra.db.session import transaction
from infra.db.store import answers, datasets


def load_pairs(run_id: str, version: str, metric: str) -> list[Row]:
    """Every calibration and test row of a run with both tiers' answers and their scores by one metric."""
    with transaction() as db:
        records = datasets.load_records(db, version, *JUDGED)
        given = {tier: answers.load_answers(db, run_id, tier) for tier in TierName}
        scores = {tier: answers.load_scores(db, run_id, tier, metric) for tier in TierName}
    return [
        Row(
            key=record.key,
            split=record.record.split,
            cheap=given[TierName.CHEAP][record.key].as_tier_answer(),
            strong=given[TierName.STRONG][record.key].as_tier_answer(),
            cheap_quality=scores[TierName.CHEAP][record.key],
            strong_quality=scores[TierName.STRONG][record.key],
        )
        for record in records
    ]
