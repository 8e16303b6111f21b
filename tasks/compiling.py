"""Compile: search a better prompt for a tier with DSPy; the result is plain JSON with a history of scores."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task

from domain.answers import fit_prior
from domain.compiles import baseline_of, compile_key
from domain.confidences import LabelPrior
from domain.datasets import Split, cut_train
from domain.errors import NotFound
from domain.ledgers import Stage
from domain.prompts import PromptVersion
from domain.requests import row_request
from domain.schemas import OutputSchema
from domain.validities import examine
from domain.workloads import Scope, Tier, TierName
from infra import registry, tracking
from infra.db.session import transaction
from infra.db.store import bundles, datasets, runs
from infra.db.store.bundles import CompiledPrompt
from infra.db.store.datasets import StoredRecord
from infra.llm.blocking import blocking_ask
from infra.progress import Progress
from infra.serving import present_of
from infra.settings import load_settings
from infra.workloads import LoadedWorkload
from tasks.references import DatasetRef, PromptRef, RunRef
from tasks.running import is_retryable, load_for, step

if TYPE_CHECKING:
    from infra.llm.optimizer import Ask, CompileReport, Example


@task(task_run_name="compile-{tier}", retry_condition_fn=is_retryable)
def compile_prompt(run: RunRef, data: DatasetRef, tier: TierName) -> PromptRef:
    """Compile a tier's prompt on the train split, unless just this was compiled before or the champion's will do."""
    loaded = load_for(run)
    if run.scope is not Scope.FULL and (found := _champions(run, loaded, tier)) is not None:
        return found
    with transaction() as db:
        train = datasets.load_records(db, data.version, Split.TRAIN)
        keys = [row.key for row in train]
        key = compile_key(loaded.workload, loaded.schema, tier, code=loaded.code, train=keys)
        found = bundles.find_compiled(db, key)
    get_run_logger().info("%s: %s", tier.value, "compiled before, nothing to do" if found else "compiling")
    with step(run, f"compile-{tier.value}") as step_id:
        compiled = found or _compile(run, loaded, tier, train, key, step_id)
        with transaction() as db:
            bundles.save_compiled(db, compiled, workload=run.workload, tier=tier)
            runs.add_summary(db, run.run_id, {f"compile_{tier.value}": _gain(compiled)})
        _track(run, tier, compiled, step_id)
    return PromptRef(
        tier=tier,
        compile_key=key,
        prompt_hash=compiled.prompt.hash,
        calls=0 if found else compiled.report["calls"],
        improved=compiled.report["improved"],
    )


def _champions(run: RunRef, loaded: LoadedWorkload, tier: TierName) -> PromptRef | None:
    """The champion's prompt, if there is a champion and what is deployed is still what it was made for."""
    try:
        with transaction() as db:
            bundle = bundles.champion(db, run.workload)
            compiled = bundles.find_prompt(db, bundle.workload, tier, bundle[tier])
    except NotFound:
        return None
    found = examine(bundle, present_of(loaded, load_settings(), run.engine))
    if compiled is None or found.void:
        get_run_logger().info("%s: compiling, since %s", tier.value, "; ".join(found.reasons) or "its prompt is gone")
        return None
    with transaction() as db:
        runs.add_summary(db, run.run_id, {"prompts_of": bundle.hash})
    get_run_logger().info("%s: the champion's prompt %s", tier.value, compiled.prompt.hash[:12])
    return PromptRef(
        tier=tier,
        compile_key=compiled.compile_key,
        prompt_hash=compiled.prompt.hash,
        calls=0,
        improved=compiled.report["improved"],
        champion=bundle.hash,
    )


def _compile(
    run: RunRef, loaded: LoadedWorkload, name: TierName, train: list[StoredRecord], key: str, step_id: str
) -> CompiledPrompt:
    from infra.autologging import compile_traces
    from infra.llm import optimizer  # DSPy takes seconds to import

    options, tier, settings = loaded.workload.optimizer, loaded.workload.tiers[name], load_settings()
    rows = [optimizer.Example(row.key, row.record.inputs, row.record.gold or {}) for row in train]
    validation, held_out, demos = cut_train(rows, options.validation_rows)
    limit = optimizer.budget(options, tier, train=len(demos), held_out=len(held_out))
    log = get_run_logger()
    log.info("%s: %s may make up to %d calls", name.value, options.name.value, limit)
    progress = Progress(run.run_id, f"compile {name.value}", limit, unit="calls")
    calls = [0]

    def count(made: int) -> None:
        calls[0] = made
        progress.reach(made)

    with blocking_ask(run.run_id, name, tier, settings, stage=Stage.COMPILE) as ask:
        with compile_traces(step_id, expected_calls=limit):
            result = optimizer.compile_prompt(
                baseline_of(loaded.workload, loaded.schema),
                tier=tier,
                options=options,
                schema=loaded.schema,
                metric=loaded.metric,
                train=demos,
                validation=validation,
                held_out=held_out,
                ask=ask,
                on_call=count,
                on_candidate=lambda c: log.info(
                    "%s: %s scores %.3f raw, %.3f as deployed", name.value, c.name, c.score, c.deployed_score
                ),
            )
        # Neither demos nor calibration rows: the prior is fitted on rows that no certificate will look at.
        prior = _prior(result.prompt, [*validation, *held_out], tier, loaded.schema, ask)
    progress.finish(calls[0])
    log.info("%s: %s", name.value, result.report.note)
    return CompiledPrompt(key, result.prompt, _report(result.report, calls=calls[0], prior=prior))


def _prior(
    prompt: PromptVersion, rows: Sequence["Example"], tier: Tier, schema: OutputSchema, ask: "Ask"
) -> LabelPrior:
    """What the tier says of unlabelled rows; the ledger knows these answers from the search."""
    answers = [ask(row_request(prompt.render(row.inputs), tier=tier, schema=schema), row.record_key) for row in rows]
    return fit_prior(answers, schema)


def _report(report: "CompileReport", *, calls: int, prior: LabelPrior) -> dict[str, Any]:
    return {
        "optimizer": report.optimizer,
        "baseline": report.baseline_score,
        "best": report.best_score,
        "gain": asdict(report.gain),
        "improved": report.improved,
        "p_value": report.p_value,
        "note": report.note,
        "budget_calls": report.budget_calls,
        "calls": calls,
        "candidates": [
            {"name": c.name, "score": c.score, "deployed": c.deployed_score, "demos": len(c.prompt.demos), "n": c.n}
            for c in report.candidates
        ],
        "prior": dict(prior.means),
    }


def _gain(compiled: CompiledPrompt) -> str:
    """What the optimiser gained, in one sentence."""
    report = compiled.report
    return (
        f"held-out {report['baseline']:.3f} before, {report['best']:.3f} by the best of {report['optimizer']}; "
        f"{'compiled' if report['improved'] else 'baseline'} prompt with {len(compiled.prompt.demos)} demos. "
        f"{report['note']}"
    )


def _track(run: RunRef, tier: TierName, compiled: CompiledPrompt, step_id: str) -> None:
    """The prompt goes to MLflow's registry, its history of scores to the step's run."""
    report = compiled.report
    tracking.log(
        step_id,
        params={"optimizer": report["optimizer"], "prompt": compiled.prompt.hash, "note": report["note"][:500]},
        metrics={"held_out_baseline": report["baseline"], "held_out_best": report["best"], "calls": report["calls"]},
    )
    tracking.log_json(step_id, "candidates", report["candidates"])
    tracking.log_json(step_id, "prompt", compiled.prompt.model_dump(mode="json"))
    registry.register_prompt(compiled.prompt, workload=run.workload, tier=tier, run_id=step_id)
