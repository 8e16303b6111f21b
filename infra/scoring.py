"""Scores of a tier's answers: the workload's metric, and a judge's opinion where the workload asks for one."""

from collections.abc import Mapping, Sequence

from domain.canonical import canonical
from domain.scores import field_scores, grade
from domain.workloads import TierName
from infra.db.store.answers import StoredAnswer, StoredScore
from infra.db.store.datasets import StoredRecord
from infra.llm.asking import Ask
from infra.workloads import LoadedWorkload

JUDGES_METRIC = "llm_judge"
FIELD_METRIC = "field:"
"""What the names of single fields' scores begin with."""


def score_row(loaded: LoadedWorkload, row: StoredRecord, answer: StoredAnswer) -> StoredScore:
    """The metric's value for one answer."""
    graded = grade(loaded.metric, row.record.gold or {}, answer.output)
    return StoredScore(
        record_key=row.key,
        tier=answer.tier,
        metric=loaded.workload.metric,
        value=graded.value,
        label=graded.label,
        explanation=graded.explanation,
    )


def score_fields(row: StoredRecord, answer: StoredAnswer) -> list[StoredScore]:
    """The scores of each gold field by itself, where there are several; an answer that stayed invalid has 0."""
    gold = row.record.gold or {}
    if len(gold) < 2:
        return []
    values = field_scores(gold, answer.output or {}) if answer.output is not None else dict.fromkeys(gold, 0.0)
    return [
        StoredScore(record_key=row.key, tier=answer.tier, metric=f"{FIELD_METRIC}{field}"[:64], value=value)
        for field, value in values.items()
    ]


async def judge_rows(
    loaded: LoadedWorkload,
    tier: TierName,
    rows: Sequence[StoredRecord],
    given: Mapping[str, StoredAnswer],
    *,
    ask: Ask,
    concurrency: int,
) -> list[StoredScore]:
    """The judge's opinion of the first valid answers; rows that it fails on are left without one."""
    from infra.llm.judge import JudgeRow, JudgeScore, judge  # OpenAI's SDK takes a second to import

    options = loaded.workload.judge
    asked = [
        JudgeRow(row.key, canonical(row.record.inputs).decode(), canonical(output).decode())
        for row in rows
        if (output := given[row.key].output) is not None
    ][: options.rows]
    judging = loaded.workload.tiers[options.tier]
    opinions = await judge(asked, question=options.question, tier=judging, ask=ask, concurrency=concurrency)
    return [
        StoredScore(o.record_key, tier, JUDGES_METRIC, o.value, o.label, o.explanation)
        for o in opinions
        if isinstance(o, JudgeScore)
    ]
