"""What DSPy does while it compiles, logged to MLflow: candidates as nested runs, a sample of the calls as traces."""

# Neither DSPy nor the part of MLflow that watches it carries types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportPrivateImportUsage=false

import logging
import os
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

import dspy
import mlflow.tracing
from dspy.utils.callback import BaseCallback
from mlflow.exceptions import MlflowException
from mlflow.tracing import fluent
from mlflow.tracking import MlflowClient

from infra.tracking import STEP_TAG, activate_experiment, connect, translated

TRACES = 50
"""About this many calls of one compile become traces; each holds the compile up for some 0.2 s (measured, 2 cores)."""

_log = logging.getLogger(__name__)


_one_at_a_time = Lock()


@contextmanager
def compile_traces(run_id: str, *, expected_calls: int) -> Generator[None]:
    """Log every DSPy compile inside the block under the run: scores, candidate programs, a sample of traces.

    `expected_calls` is a guess at the number of program calls and sets the sampling. DSPy's and MLflow's switches are
    global: a second compile at the same time, or one in another thread than the first, runs without being logged, and
    so does one whose server fails on the way. Raises TraceStoreError when MLflow cannot be reached at the start.
    """
    if not _taken():
        _log.warning("This compile is not logged to MLflow: another thread of this process has DSPy's settings.")
        yield
        return
    try:
        with _logged(run_id, min(1.0, TRACES / max(expected_calls, 1))):
            yield
    finally:
        _one_at_a_time.release()


def _taken() -> bool:
    if not _one_at_a_time.acquire(blocking=False):
        return False
    try:
        dspy.settings.configure()  # sets nothing, and is refused outside the thread that did it first
    except RuntimeError:
        _one_at_a_time.release()
        return False
    return True


@contextmanager
def _logged(run_id: str, ratio: float) -> Generator[None]:
    client = connect()
    with translated("prepare the run of a compile"):
        _delete_earlier_try(client, run_id)
        activate_experiment(client, run_id)
        mlflow.start_run(run_id=run_id)
    status = "FAILED"
    sampling = {
        "MLFLOW_TRACE_SAMPLING_RATIO": str(ratio),
        # Scores are attached to a trace right after the call: by then it must be stored, not queued.
        "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
    }
    try:
        with _environment(sampling), _autologging() as callbacks, dspy.context(callbacks=callbacks, track_usage=True):
            yield
        status = "FINISHED"
    finally:
        _end(status)


@contextmanager
def _environment(values: Mapping[str, str]) -> Generator[None]:
    """Set variables that MLflow reads when its tracer starts, and put back what was there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    mlflow.tracing.reset()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        mlflow.tracing.reset()


@contextmanager
def _autologging() -> Generator[list[BaseCallback]]:
    """Switch MLflow's DSPy autologging on, and off again at the end; yields the callbacks to compile with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # while this is imported, MLflow warns of its own type hints
        from mlflow.dspy import autolog
        from mlflow.dspy.callback import MlflowCallback

    usage_was_tracked = bool(dspy.settings.track_usage)
    others: list[Any] = [c for c in dspy.settings.callbacks or [] if not isinstance(c, MlflowCallback)]
    autolog(log_compiles=True, log_evals=True, log_traces_from_compile=True, silent=True)
    try:
        yield [*others, MlflowCallback(), _Forgetting()]
    finally:
        autolog(disable=True, silent=True)
        dspy.settings.configure(track_usage=usage_was_tracked)


class _Forgetting(BaseCallback):
    """Makes the thread forget its last trace whenever a program starts.

    MLflow attaches the score of a row to the last trace of its thread. When the row's own trace was not sampled, that
    is the trace of another row (seen with 3.17.2: up to six scores on one trace). There is no public way to clear it.
    """

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Called by DSPy before a module runs."""
        fluent._LAST_ACTIVE_TRACE_ID_THREAD_LOCAL.set(None)  # pyright: ignore[reportPrivateUsage]


def _delete_earlier_try(client: MlflowClient, run_id: str) -> None:
    experiment = client.get_run(run_id).info.experiment_id
    for run in client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=1_000):
        if STEP_TAG not in run.data.tags:
            client.delete_run(run.info.run_id)


def _end(status: str) -> None:
    try:
        while mlflow.active_run() is not None:
            mlflow.end_run(status)
    except (MlflowException, OSError) as error:
        _log.warning("MLflow did not take the end of a compile's run: %s", str(error)[:500])
