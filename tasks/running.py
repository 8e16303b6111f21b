"""Beginning and ending a run, and what every step needs of it."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from prefect import State, task
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun
from prefect.runtime import flow_run as current_flow_run

from domain.bundles import Bundle
from domain.confidences import LabelPrior
from domain.errors import HeadraceError, Place, WorkloadError
from domain.ledgers import Meter
from domain.schemas import OutputSchema
from domain.workloads import TierName
from infra import reporting, tracking
from infra.db.session import transaction
from infra.db.store import answers, bundles, calls, runs
from infra.llm.ledgered import base_urls
from infra.llm.metering import read_meters
from infra.rows import Deployment
from infra.settings import load_settings
from infra.versions import code_version
from infra.workloads import LoadedWorkload, find_workload, load_workload
from tasks.references import PromptRef, RunRef


def is_retryable(_task: object, _run: TaskRun, state: State) -> bool:
    """Whether another try can help: the error says so itself; what is not ours is not tried again."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, HeadraceError) and error.retryable


@task(retry_condition_fn=is_retryable)
def open_run(kind: str, workload: str) -> RunRef:
    """Read the workload, take the servers' readings and open the run in the ledger and in MLflow."""
    settings = load_settings()
    loaded = load_workload(find_workload(workload, settings.workloads)).with_revisions(settings.engine_revisions)
    run_id = str(current_flow_run.id)
    meters = read_meters(_servers(loaded))
    with transaction() as db:
        runs.open_run(
            db,
            run_id,
            kind=kind,
            workload=loaded.workload.name,
            workload_hash=loaded.hash,
            spec=loaded.workload.model_dump(mode="json"),
            meters=_as_json(meters),
        )
        runs.add_summary(db, run_id, {"code": code_version()})
    tracking_id = tracking.open_run(workload=loaded.workload.name, flow_run_id=run_id, kind=kind, tags={})
    tracking.log(tracking_id, params=reporting.params(loaded), metrics={})
    links = reporting.links(run_id, tracking_id=tracking_id, workload=loaded.workload.name)
    tracking.set_tags(tracking_id, {f"headrace.link.{name}": url for name, url in links.items()})
    with transaction() as db:
        runs.add_links(db, run_id, links)
    return RunRef(
        run_id=run_id,
        workload=loaded.workload.name,
        folder=str(loaded.folder),
        workload_hash=loaded.hash,
        tracking_id=tracking_id,
    )


@task(retry_condition_fn=is_retryable)
def close_run(run: RunRef, _after: object) -> RunRef:
    """Take the servers' readings again, end the run everywhere and leave its summary in Prefect."""
    end_run(run.run_id, state="completed")
    with transaction() as db:
        reporting.summarise(
            runs.load_run(db, run.run_id),
            rows=runs.conservation(db, run.run_id),
            spent=calls.spending(db, run.run_id),
            quarantine=answers.load_quarantine(db, run.run_id),
        )
    tracking.close(run.tracking_id, failed=False)
    return run


def end_run(run_id: str, *, state: str) -> None:
    """Write the end of a run into the ledger."""
    with transaction() as db:
        before = runs.load_run(db, run_id).meters_before
    meters = read_meters(before)
    with transaction() as db:
        runs.close_run(db, run_id, state=state, meters=_as_json(meters))


def note_failure(flow: object, flow_run: FlowRun, state: State) -> None:
    """State hook: a run that failed, crashed or was cancelled says so in the ledger and in MLflow."""
    ended = {StateType.CANCELLING: "cancelled", StateType.CANCELLED: "cancelled", StateType.CRASHED: "crashed"}
    run_id = str(flow_run.id)
    with transaction() as db:
        if not runs.is_known(db, run_id):
            return  # it failed before it was opened: there is nothing to end
    end_run(run_id, state=ended.get(state.type, "failed"))
    with transaction() as db:
        record = runs.load_run(db, run_id)
    tracked = tracking.open_run(workload=record.workload, flow_run_id=run_id, kind=record.kind, tags={})
    tracking.close(tracked, failed=True)


def load_for(run: RunRef) -> LoadedWorkload:
    """The run's workload; raises WorkloadError when its file or code was edited meanwhile."""
    loaded = load_workload(Path(run.folder)).with_revisions(load_settings().engine_revisions)
    if loaded.hash != run.workload_hash:
        raise WorkloadError(
            Place(run.folder),
            "the workload was edited while its run was under way",
            hint="Start the run again; what was answered is in the ledger.",
        )
    return loaded


def compiled_deployment(loaded: LoadedWorkload, prompt: PromptRef) -> Deployment:
    """A tier as it answers rows while a bundle is being made."""
    with transaction() as db:
        compiled = bundles.find_compiled(db, prompt.compile_key)
    if compiled is None:
        raise RuntimeError(f"the compiled prompt {prompt.compile_key} is gone from the ledger")
    return Deployment(
        name=prompt.tier,
        tier=loaded.workload.tiers[prompt.tier],
        prompt=compiled.prompt,
        prior=LabelPrior(compiled.report["prior"]),
        schema=loaded.schema,
        max_reasks=loaded.workload.max_reasks,
    )


def bundled_deployment(bundle: Bundle, name: TierName, schema: OutputSchema) -> Deployment:
    """A tier as a bundle deploys it."""
    part = bundle[name]
    return Deployment(
        name=name,
        tier=part.tier,
        prompt=part.prompt,
        prior=LabelPrior(part.prior),
        schema=schema,
        max_reasks=bundle.max_reasks,
    )


@contextmanager
def step(run: RunRef, name: str) -> Generator[str]:
    """The nested MLflow run of a step; it fails with what fails inside."""
    step_id = tracking.open_step(run.tracking_id, name)
    try:
        yield step_id
    except BaseException:
        tracking.close(step_id, failed=True)
        raise
    tracking.close(step_id, failed=False)


def _servers(loaded: LoadedWorkload) -> list[str]:
    settings = load_settings()
    return [url for name in TierName for url in base_urls(loaded.workload.tiers[name], settings)]


def _as_json(meters: dict[str, Meter]) -> dict[str, dict[str, float]]:
    return {
        url: {"prompt": meter.prompt, "completion": meter.completion, "started": meter.started}
        for url, meter in meters.items()
    }
