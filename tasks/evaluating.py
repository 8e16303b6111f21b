"""Evaluate: score the answers that are there, in Postgres and as a Phoenix experiment; nothing is generated twice."""

import asyncio

from prefect import get_run_logger, task

from domain.datasets import JUDGED, Split
from domain.ledgers import Stage
from domain.requests import Completion, Request
from domain.workloads import TierName
from infra import spans, tracing, tracking
from infra.db.session import transaction
from infra.db.store import answers, datasets, runs
from infra.db.store.answers import StoredAnswer, StoredScore
from infra.db.store.datasets import StoredRecord
from infra.db.store.evidence import load_evidence
from infra.evidence import experiment_rows, span_sample
from infra.llm.ledgered import Call, open_ledgered
from infra.progress import Progress
from infra.scoring import judge_rows, score_fields, score_row
from infra.settings import load_settings
from infra.workloads import LoadedWorkload
from tasks.references import BundleRef, ChunkRef, DatasetRef, PromptRef, RunRef, ScoredRef
from tasks.running import is_retryable, load_for, step


@task(task_run_name="score-{prompt.tier}", retry_condition_fn=is_retryable)
def score_tier(run: RunRef, data: DatasetRef, prompt: PromptRef, _validated: list[ChunkRef]) -> ScoredRef:
    """Give every calibration and test row a score, and a judge's opinion where the workload asks for one."""
    loaded = load_for(run)
    with transaction() as db:
        rows = datasets.load_records(db, data.version, *JUDGED)
        given = answers.load_answers(db, run.run_id, prompt.tier)
    scores = [score_row(loaded, row, given[row.key]) for row in rows]
    fields = [score for row in rows for score in score_fields(row, given[row.key])]
    judged = asyncio.run(_judge(run, loaded, prompt.tier, rows, given)) if loaded.workload.judge.enabled else []
    with transaction() as db:
        answers.save_scores(db, run.run_id, [*scores, *fields, *judged])
    mean = sum(score.value for score in scores) / len(scores) if scores else 0.0
    with step(run, f"evaluate-{prompt.tier.value}") as step_id:
        tracking.log(step_id, params={}, metrics={"quality": mean, "rows": len(scores), "judged": len(judged)})
    return ScoredRef(tier=prompt.tier, metric=loaded.workload.metric, n=len(scores), mean=mean)


@task(task_run_name="export-{scored.tier}", retry_condition_fn=is_retryable)
def export_evaluation(run: RunRef, data: DatasetRef, prompt: PromptRef, scored: ScoredRef) -> str:
    """Show a tier's answers and scores in Phoenix: an experiment, and spans of a sampled share of the calls."""
    with transaction() as db:
        rows = datasets.load_records(db, data.version, Split.TRAIN, *JUDGED)
        found = load_evidence(db, run.run_id, prompt.tier)
        links = runs.load_run(db, run.run_id).links
    dataset = tracing.dataset(run.workload, data.version, [_example(row) for row in rows])
    progress = Progress(run.run_id, f"export {prompt.tier}", len(found))
    sampled = span_sample(found, run_id=run.run_id, share_of_rows=load_settings().span_sample)
    url = tracing.experiment(
        dataset,
        name=f"{prompt.tier.value} {prompt.prompt_hash[:12]} {run.run_id[:8]}",
        metadata={"tier": prompt.tier.value, "prompt": prompt.prompt_hash, "run": run.run_id, **links},
        runs=experiment_rows(found, sampled, run_id=run.run_id),
        on_progress=lambda done, _total: progress.reach(done),
    )
    spans.export(sampled, project=run.workload)
    progress.finish()
    with transaction() as db:
        runs.add_links(db, run.run_id, {f"phoenix-{prompt.tier.value}": url})
    tracking.set_tags(run.tracking_id, {f"headrace.link.phoenix-{prompt.tier.value}": url})
    return url


@task(task_run_name="confirm-spans", retry_condition_fn=is_retryable)
def confirm_spans(run: RunRef, _promoted: BundleRef) -> int:
    """Send again the spans that Phoenix acknowledged but does not hold; returns how many were missing.

    Phoenix keeps what it acknowledges in memory for some seconds and loses it when it is killed.
    """
    with transaction() as db:
        found = [e for tier in TierName for e in load_evidence(db, run.run_id, tier)]
    sampled = span_sample(found, run_id=run.run_id, share_of_rows=load_settings().span_sample)
    left = spans.missing([spans.span_id(span.key) for span in sampled], project=run.workload)
    spans.export([span for span in sampled if spans.span_id(span.key) in left], project=run.workload)
    get_run_logger().info("%d of %d spans had to be sent again", len(left), len(sampled))
    return len(left)


async def _judge(
    run: RunRef, loaded: LoadedWorkload, tier: TierName, rows: list[StoredRecord], given: dict[str, StoredAnswer]
) -> list[StoredScore]:
    """An LLM's opinion of the first valid answers; rows that it fails on are left without one."""
    options, settings = loaded.workload.judge, load_settings()
    judging = loaded.workload.tiers[options.tier]
    async with open_ledgered(run.run_id, options.tier, judging, settings) as ledgered:

        async def ask(request: Request) -> Completion:
            return await ledgered.ask(Call(request, tier), stage=Stage.JUDGE)

        return await judge_rows(loaded, tier, rows, given, ask=ask, concurrency=settings.in_flight)


def _example(row: StoredRecord) -> tracing.ExampleRow:
    record = row.record
    return tracing.ExampleRow(row.key, record.record_id, record.inputs, record.gold or {}, record.split.value)
