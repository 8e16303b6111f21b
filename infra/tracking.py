"""MLflow: one run a flow run, nested runs for its steps, and everything that can be logged to them.

The address is read from the settings at each call. Every write finds what an earlier try of the same task left
behind, so that a retried task adds nothing twice. Import this module in tasks only: MLflow takes seconds to import.
"""

import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import JsonValue
from requests import RequestException

from domain.errors import TraceStoreError
from infra.settings import load_settings

FLOW_RUN_TAG = "prefect.flow_run_id"
STEP_TAG = "headrace.step"
_TAG_LENGTH = 5_000
_PARAMS_IN_BATCH = 100
_SAMPLE_ROWS = 50


@contextmanager
def translated(what: str) -> Generator[None]:
    """Turn what MLflow raises inside the block into TraceStoreError; `what` completes "MLflow could not ..."."""
    try:
        yield
    except (MlflowException, RequestException, OSError) as error:
        raise TraceStoreError(f"MLflow could not {what}: {str(error)[:500]}") from error


def connect() -> MlflowClient:
    """A client of the configured server; the fluent API is pointed there as well.

    Raises TraceStoreError when no address is configured.
    """
    uri = _uri()
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # MLflow's defaults, 7 retries and 120 s each, keep a task waiting for minutes on a server that is down.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def _uri() -> str:
    uri = load_settings().mlflow_tracking_uri
    if not uri:
        raise TraceStoreError(
            "No MLflow server is configured.", hint="Start the stack with `headrace up`, or set MLFLOW_TRACKING_URI."
        )
    return uri.rstrip("/")


def activate_experiment(client: MlflowClient, run_id: str) -> None:
    """Make a run's experiment the process's active one, where MLflow puts traces and lists prompts."""
    experiment = client.get_run(run_id).info.experiment_id
    mlflow.set_experiment(experiment_id=experiment)


def open_run(*, workload: str, flow_run_id: str, kind: str, tags: Mapping[str, str]) -> str:
    """The MLflow run of a flow run, created at the first call and reopened at a retry; returns its id.

    Raises TraceStoreError when MLflow cannot be reached or refuses.
    """
    client = connect()
    with translated(f"open the run of {workload}"):
        experiment = _experiment(client, workload)
        if (found := _of_flow_run(client, experiment, flow_run_id)) is not None:
            return _reopened(client, found)
        wanted = {"headrace.workload": workload, FLOW_RUN_TAG: flow_run_id, **_commit_tag(), **tags}
        run = client.create_run(
            experiment,
            tags={key: value[:_TAG_LENGTH] for key, value in wanted.items() if value},
            run_name=f"{kind} {flow_run_id[:8]}",
        )
        return run.info.run_id


def find_run(*, workload: str, flow_run_id: str) -> str | None:
    """The id of the MLflow run of a flow run, as it is; None where there is none.

    Raises TraceStoreError when MLflow cannot be reached or refuses.
    """
    client = connect()
    with translated(f"find the run of {workload}"):
        found = _of_flow_run(client, _experiment(client, workload), flow_run_id)
        return found.info.run_id if found else None


def open_step(parent_run_id: str, name: str) -> str:
    """The nested run of one step, created at the first call and reopened at a retry; returns its id.

    Raises TraceStoreError when MLflow cannot be reached or refuses.
    """
    client = connect()
    with translated(f"open the step {name}"):
        experiment = client.get_run(parent_run_id).info.experiment_id
        siblings = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent_run_id}'", max_results=1_000)
        for run in siblings:
            if run.data.tags.get(STEP_TAG) == name:
                return _reopened(client, run)
        tags = {"mlflow.parentRunId": parent_run_id, STEP_TAG: name}
        return client.create_run(experiment, tags=tags, run_name=name).info.run_id


def close(run_id: str, *, failed: bool) -> None:
    """End a run as finished or failed; ending it again changes nothing but the time.

    Raises TraceStoreError when MLflow cannot be reached or refuses.
    """
    client = connect()
    with translated("close a run"):
        client.set_terminated(run_id, status="FAILED" if failed else "FINISHED")


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run, replacing those of the same name.

    Raises TraceStoreError when MLflow cannot be reached or refuses.
    """
    client = connect()
    with translated("set tags"):
        client.log_batch(run_id, tags=[RunTag(key, value[:_TAG_LENGTH]) for key, value in tags.items()])


def log(run_id: str, *, params: Mapping[str, str | float], metrics: Mapping[str, float]) -> None:
    """Log parameters and metrics in as few calls as MLflow allows; metrics that stand already are left alone.

    Raises TraceStoreError when MLflow cannot be reached, or when a parameter was logged with another value before.
    """
    client = connect()
    with translated("log parameters and metrics"):
        standing = client.get_run(run_id).data.metrics
        now = int(time.time() * 1000)
        changed = [Metric(k, float(v), now, 0) for k, v in metrics.items() if not _same(standing.get(k), float(v))]
        listed = [Param(key, str(value)) for key, value in params.items()]
        client.log_batch(run_id, metrics=changed, params=listed[:_PARAMS_IN_BATCH])
        for start in range(_PARAMS_IN_BATCH, len(listed), _PARAMS_IN_BATCH):
            client.log_batch(run_id, params=listed[start : start + _PARAMS_IN_BATCH])


def log_dataset(
    run_id: str,
    *,
    name: str,
    digest: str,
    uri: str,
    rows: Sequence[Mapping[str, JsonValue]],
    row_count: int,
    context: str,
) -> None:
    """Note which dataset version a run used (`context`: training, testing, ...), with its first rows as a table.

    Raises TraceStoreError when MLflow cannot be reached or refuses.
    """
    client = connect()
    sample = list(rows[:_SAMPLE_ROWS])
    columns = list(dict.fromkeys(column for row in sample for column in row))
    colspec = [{"type": "string", "name": column, "required": False} for column in columns]
    # The entity is built by hand: mlflow.data resolves the source and refuses every scheme it has no class for.
    kind, source = _source(uri)
    dataset = Dataset(
        name=name,
        digest=digest[:36],
        source_type=kind,
        source=json.dumps(source),
        schema=json.dumps({"mlflow_colspec": colspec}),
        profile=json.dumps({"num_rows": row_count}),
    )
    with translated("log the dataset"):
        client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
        table = {"columns": columns, "data": [[row.get(column) for column in columns] for row in sample]}
        client.log_dict(run_id, table, f"datasets/{name}-sample.json")


def log_json(run_id: str, name: str, value: JsonValue) -> None:
    """Store a JSON value as artifact `<name>.json`, replacing an earlier one.

    Raises TraceStoreError when MLflow cannot be reached or refuses.
    """
    client = connect()
    with translated(f"log {name}"):
        # Declared for objects only, it writes any JSON.
        client.log_dict(run_id, cast("dict[str, Any]", value), f"{name}.json")


def log_figure(run_id: str, name: str, png: bytes) -> None:
    """Store a picture as artifact `figures/<name>.png`, replacing an earlier one.

    Raises TraceStoreError when MLflow cannot be reached or refuses.
    """
    client = connect()
    with translated(f"log the figure {name}"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.png"
        path.write_bytes(png)
        client.log_artifact(run_id, str(path), artifact_path="figures")


def experiment_url(workload: str) -> str:
    """The page of a workload's experiment, which is created when it is missing.

    Raises TraceStoreError when MLflow cannot be reached or refuses.
    """
    client = connect()
    with translated(f"find the experiment of {workload}"):
        return f"{without_credentials(_uri())}/#/experiments/{_experiment(client, workload)}"


def run_url(run_id: str) -> str:
    """The page of a run.

    Raises TraceStoreError when MLflow cannot be reached or does not know the run.
    """
    client = connect()
    with translated("find the run"):
        experiment = client.get_run(run_id).info.experiment_id
    return f"{without_credentials(_uri())}/#/experiments/{experiment}/runs/{run_id}"


def without_credentials(uri: str) -> str:
    """The same uri without user, password and query, fit for tags and links."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", parts.fragment))


def _experiment(client: MlflowClient, workload: str) -> str:
    name = f"/headrace/{workload}"
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name)
        except MlflowException:
            # Another run created it meanwhile; when that is not the reason, the same error stands.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _of_flow_run(client: MlflowClient, experiment: str, flow_run_id: str) -> Run | None:
    found = client.search_runs([experiment], f"tags.`{FLOW_RUN_TAG}` = '{flow_run_id}'", max_results=1)
    return found[0] if found else None


def _reopened(client: MlflowClient, run: Run) -> str:
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")
    return run.info.run_id


def _same(old: float | None, new: float) -> bool:
    return old is not None and (old == new or (math.isnan(old) and math.isnan(new)))


def _source(uri: str) -> tuple[str, dict[str, str]]:
    clean = without_credentials(uri) if "://" in uri else uri
    scheme = urlsplit(clean).scheme if "://" in clean else ""
    if scheme in ("http", "https"):
        return "http", {"url": clean}
    return scheme if scheme not in ("", "file") else "local", {"uri": clean}


@cache
def _commit_tag() -> dict[str, str]:
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": done.stdout.strip()}
