"""Beginning and ending a run, and what every step needs of it."""

import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar, cast
from uuid import UUID

from prefect import State, task
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun
from prefect.exceptions import Abort, Pause, TerminationSignal
from prefect.runtime import flow_run as current_flow_run
from prefect.states import Completed, Suspended

from domain.errors import (
    BudgetReached,
    HeadraceError,
    NothingChanged,
    Place,
    RunCancelled,
    RunUnderWay,
    TooManyQuarantined,
    TraceStoreError,
    WorkloadError,
)
from domain.ledgers import Meter
from domain.workloads import EngineName, Scope, TierName
from infra import leases, notices, reporting, tracking
from infra.db.session import transaction
from infra.db.store import answers, calls, runs, statistics
from infra.deployments import is_cancelled
from infra.llm import gateway_client
from infra.llm.engines import base_urls
from infra.llm.metering import read_meters
from infra.rows import ALL_ROWS
from infra.serving import note_served, served_now
from infra.settings import Settings, load_settings
from infra.versions import code_version
from infra.workloads import LoadedWorkload, find_workload, load_workload
from tasks.beginning import is_scheduled, started_by
from tasks.ending import end_cancelled, end_superseded, is_unwanted, suspended
from tasks.references import Limits, RunRef

P = ParamSpec("P")
R = TypeVar("R")


def is_retryable(_task: object, _run: TaskRun, state: State) -> bool:
    """Whether another try can help: the error says so itself; what is not ours is not tried again."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, HeadraceError) and error.retryable


@task(task_run_name="open-run", retry_condition_fn=is_retryable)
def open_run(
    kind: str,
    workload: str,
    *,
    uri: str | None = None,
    limits: Limits,
    scope: Scope = Scope.FULL,
    only_changed: bool = False,
) -> RunRef:
    """Read the workload, become the only one that does this, and open the run in the ledger and in MLflow.

    Raises RunUnderWay while another process does the same. A run that is there for changes waits for it to end instead:
    what has changed meanwhile is its own to find.
    """
    settings = load_settings()
    loaded = load_workload(find_workload(workload, settings.workloads)).with_revisions(settings.engine_revisions)
    run_id, only_changed = str(current_flow_run.id), only_changed or is_scheduled()
    gateway_client.start()
    work = leases.work_of(kind, loaded.workload.name, uri)
    leases.acquire(work, run_id, settings, wait=only_changed and partial(_wanted, run_id))
    _open(run_id, kind, loaded, limits, {"code": code_version(), "scope": scope.value})
    return RunRef(
        run_id=run_id,
        workload=loaded.workload.name,
        folder=str(loaded.folder),
        workload_hash=loaded.hash,
        tracking_id=_track(run_id, kind, loaded, limits.engine),
        engine=limits.engine,
        chunk_rows=_chunk_rows(loaded, limits.engine, settings),
        scope=scope,
        only_changed=only_changed,
    )


def _open(run_id: str, kind: str, loaded: LoadedWorkload, limits: Limits, summary: dict[str, str]) -> None:
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
            budget=(limits.max_usd, limits.max_tokens),
        )
        runs.add_summary(db, run_id, summary)
        if starter := started_by(db):
            runs.change_run(db, run_id, started_by=starter.value)


def _wanted(run_id: str) -> None:
    """Raise RunCancelled when somebody has asked Prefect to cancel a run that still waits for another one."""
    if is_cancelled(UUID(run_id)):
        raise RunCancelled("the run was cancelled before it began.")


def _chunk_rows(loaded: LoadedWorkload, engine: EngineName | None, settings: Settings) -> int:
    """Rows of a task run; an engine that is started for each batch gets everything in one."""
    engines = {engine or loaded.workload.tiers[name].engine for name in TierName}
    return settings.chunk_rows if engines == {EngineName.HTTP} else ALL_ROWS


def _track(run_id: str, kind: str, loaded: LoadedWorkload, engine: EngineName | None) -> str:
    """Note what serves the run, and open it in MLflow, with links everywhere; returns its id there."""
    served = served_now(loaded, load_settings(), engine)
    with transaction() as db:
        note_served(db, run_id, served)
    name = loaded.workload.name
    tracking_id = tracking.open_run(workload=name, flow_run_id=run_id, kind=kind, tags={})
    tracking.log(tracking_id, params=reporting.params(loaded), metrics={})
    links = reporting.links(run_id, tracking_id=tracking_id, workload=name)
    tracking.set_tags(tracking_id, {f"headrace.link.{name}": url for name, url in links.items()})
    with transaction() as db:
        runs.add_links(db, run_id, links)
    return tracking_id


@task(task_run_name="close-run", retry_condition_fn=is_retryable)
def close_run(run: RunRef, _after: object) -> RunRef:
    """Take the servers' readings again, end the run everywhere and leave its summary in Prefect.

    Raises TooManyQuarantined, once all of that is done, when the run cannot be called a success.
    """
    most = load_for(run).workload.max_quarantined
    with transaction() as db:
        rows = runs.conservation(db, run.run_id)
    failed = rows.quarantined > most * rows.records
    if rows.records >= statistics.WORTH_ROWS:
        with transaction() as db:
            statistics.refresh(db)
    end_run(run.run_id, state="failed" if failed else "completed")
    with transaction() as db:
        reporting.summarise(
            runs.load_run(db, run.run_id),
            rows=rows,
            spent=calls.spending(db, run.run_id),
            quarantine=answers.load_quarantine(db, run.run_id),
        )
    tracking.close(run.tracking_id, failed=failed)
    leases.release()
    if failed:
        raise TooManyQuarantined(
            f"{rows.quarantined:,} of {rows.records:,} rows are in quarantine; the workload allows {most:.0%}."
        )
    return run


def end_run(run_id: str, *, state: str) -> None:
    """Write the end of a run into the ledger."""
    with transaction() as db:
        before = runs.load_run(db, run_id).meters_before
    meters = read_meters(before)
    with transaction() as db:
        runs.close_run(db, run_id, state=state, meters=_as_json(meters))
        notices.end(db, run_id, state)


def note_failure(flow: object, flow_run: FlowRun, state: State) -> None:
    """State hook: a run that failed, crashed or was cancelled says so in the ledger and in MLflow.

    It runs in the run's own process, or in the worker once that process is gone. A run that another process carries
    out by now is left alone.
    """
    ended = {StateType.CANCELLING: "cancelled", StateType.CANCELLED: "cancelled", StateType.CRASHED: "crashed"}
    run_id = str(flow_run.id)
    with transaction() as db:
        if not runs.is_known(db, run_id):
            return  # it failed before it was opened: there is nothing to end
        if not leases.holds(run_id) and not leases.displace(db, run_id):
            return
    _end_early(run_id, state=ended.get(state.type, "failed"))


def _end_early(run_id: str, *, state: str) -> None:
    """Write an end before completion into the ledger, make room for the next run, and tell MLflow if it listens."""
    with transaction() as db:
        if not runs.is_known(db, run_id):
            return
    end_run(run_id, state=state)
    leases.release()
    if state == "paused":
        return  # to MLflow it is under way
    with transaction() as db:
        record = runs.load_run(db, run_id)
    with suppress(TraceStoreError):
        tracked = tracking.open_run(workload=record.workload, flow_run_id=run_id, kind=record.kind, tags={})
        tracking.close(tracked, failed=state != "unchanged")


@contextmanager
def _noting_pause(run_id: str) -> Generator[None]:
    """Note in the ledger that Prefect has paused a run: its engine ends the body of one that was suspended there."""
    try:
        yield
    except Pause:
        if leases.holds(run_id):
            _end_early(run_id, state="paused")
        raise


def stoppable(body: Callable[P, R]) -> Callable[P, R]:
    """Make a flow's body end as Cancelled when it is told to stop, and as Suspended when its budget is used up.

    Both are states in which `headrace resume` and the buttons of Prefect's UI go on with the same run. One that finds
    nothing changed ends as Unchanged, which is a way to be Completed.
    """

    @wraps(body)
    def stopping_body(*args: P.args, **kwargs: P.kwargs) -> R:
        run_id = str(current_flow_run.id)
        try:
            with _noting_pause(run_id):
                return cast(R, end_superseded()) or body(*args, **kwargs)
        except RunCancelled as error:
            state = suspended()
            _end_early(run_id, state="paused" if state else "cancelled")
            return cast(R, end_cancelled(str(error), held_as=state))
        except TerminationSignal:
            if not is_unwanted(run_id):
                raise
            if leases.holds(run_id):
                _end_early(run_id, state="cancelled")
            return cast(R, end_cancelled("the run was cancelled."))
        except NothingChanged as error:
            _end_early(run_id, state="unchanged")
            return cast(R, Completed(name="Unchanged", message=str(error)))
        except BudgetReached as error:
            _end_early(run_id, state="paused")
            # The key is new each time: Prefect lets the same pause happen once only.
            return cast(R, Suspended(message=str(error), pause_key=str(uuid.uuid4())))
        except RunUnderWay as error:
            if error.run_id == run_id:
                # This very run: its state is the other process's to tell.
                raise Abort(str(error)) from error
            raise

    return stopping_body


def load_for(run: RunRef) -> LoadedWorkload:
    """The run's workload; raises WorkloadError when its file or code was edited meanwhile, RunCancelled likewise."""
    leases.check()
    loaded = load_workload(Path(run.folder)).with_revisions(load_settings().engine_revisions)
    if loaded.hash != run.workload_hash:
        raise WorkloadError(
            Place(run.folder),
            "the workload was edited while its run was under way",
            hint="Start the run again; what was answered is in the ledger.",
        )
    return loaded


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
    tiers = [loaded.workload.tiers[name] for name in TierName]
    return [url for tier in tiers if tier.engine is EngineName.HTTP for url in base_urls(tier, settings)]


def _as_json(meters: dict[str, Meter]) -> dict[str, dict[str, float]]:
    return {
        url: {"prompt": meter.prompt, "completion": meter.completion, "started": meter.started}
        for url, meter in meters.items()
    }
