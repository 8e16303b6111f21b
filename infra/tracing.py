"""Phoenix: one dataset a dataset version, one experiment a tier and prompt, scores as its evaluations.

Address and key are read from the settings at each call. Nothing is generated or judged here: outputs and scores come
from the ledger. A repeat finds what stands and adds what is missing.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from http import HTTPStatus
from urllib.parse import quote

import httpx
from phoenix.client import Client
from phoenix.client.exceptions import PhoenixException
from phoenix.client.resources.datasets import DatasetUploadError
from pydantic import JsonValue

from domain.errors import TraceStoreError
from infra.settings import load_settings

_THREADS = 8
_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """A labelled record as an example of a dataset."""

    record_key: str
    record_id: str
    inputs: Mapping[str, JsonValue]
    gold: Mapping[str, JsonValue]
    split: str


@dataclass(frozen=True, slots=True)
class PhoenixDataset:
    """A stored dataset; `examples` maps record keys to Phoenix's ids."""

    id: str
    version_id: str
    examples: Mapping[str, str]


class AnnotatorKind(StrEnum):
    """Who gave a score."""

    CODE = "CODE"
    LLM = "LLM"


@dataclass(frozen=True, slots=True)
class ScoreValue:
    """One score of one output."""

    name: str
    value: float
    label: str | None = None
    explanation: str | None = None
    kind: AnnotatorKind = AnnotatorKind.CODE


@dataclass(frozen=True, slots=True)
class ExperimentRow:
    """What one tier answered to one record, or the error in its place; times carry a timezone."""

    record_key: str
    output: JsonValue
    error: str | None
    started: datetime
    ended: datetime
    trace_id: str | None
    scores: Sequence[ScoreValue]


@dataclass(frozen=True, slots=True)
class _Standing:
    """A row that an experiment holds already, with its scores by name."""

    run_id: str
    failed: bool
    scores: Mapping[str, float | None]


@contextmanager
def opened(what: str) -> Generator[Client]:
    """A client of the configured server, closed at the end; `what` completes "Phoenix could not ...".

    Raises TraceStoreError when no address is configured, and in place of what the client raises inside the block.
    """
    key = load_settings().phoenix_api_key
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    try:
        with httpx.Client(base_url=_endpoint(), headers=headers, timeout=_TIMEOUT_S) as http:
            yield Client(http_client=http)
    except (httpx.HTTPError, PhoenixException, DatasetUploadError, ValueError) as error:
        raise TraceStoreError(f"Phoenix could not {what}: {str(error)[:500]}") from error


def _endpoint() -> str:
    endpoint = load_settings().phoenix_endpoint
    if not endpoint:
        raise TraceStoreError(
            "No Phoenix server is configured.",
            hint="Start the stack with `headrace up`, or set PHOENIX_COLLECTOR_ENDPOINT.",
        )
    return endpoint.rstrip("/")


def dataset(workload: str, version_hash: str, examples: Sequence[ExampleRow]) -> PhoenixDataset:
    """The Phoenix dataset `<workload>@<hash>` of a dataset version, uploaded at the first call.

    Raises TraceStoreError when Phoenix cannot be reached or refuses.
    """
    name = f"{workload}@{version_hash[:12]}"
    with opened(f"store the dataset {name}") as client:
        try:
            stored = client.datasets.get_dataset(dataset={"name": name}, timeout=_TIMEOUT_S)
        except ValueError:  # how the client says that there is none
            stored = None
        if stored is None or {e["id"] for e in stored.examples} != {row.record_key for row in examples}:
            stored = client.datasets.create_dataset(
                name=name, examples=[_example(row) for row in examples], timeout=_TIMEOUT_S
            )
        return PhoenixDataset(stored.id, stored.version_id, {e["id"]: e["node_id"] for e in stored.examples})


def _example(row: ExampleRow) -> dict[str, object]:
    return {
        "id": row.record_key,
        "input": dict(row.inputs),
        "output": dict(row.gold),
        "metadata": {"record_id": row.record_id, "split": row.split},
    }


def experiment(
    dataset: PhoenixDataset,
    *,
    name: str,
    metadata: Mapping[str, JsonValue],
    runs: Sequence[ExperimentRow],
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> str:
    """Store outputs and scores as the experiment of that name, adding what it lacks; returns its page.

    `on_progress` gets the number of rows done and of rows in all. Raises TraceStoreError when Phoenix cannot be
    reached or refuses, and KeyError when a row is not in the dataset.
    """
    nodes = {row.record_key: dataset.examples[row.record_key] for row in runs}
    with opened(f"store the experiment {name}") as client:
        experiment_id = _experiment_id(client, dataset, name, metadata)
        todo = list(runs)
        # A second round takes up the rows that another writer stored between our look and our write.
        for _ in range(2):
            standing = _standing(client, experiment_id)
            todo = [row for row in todo if _lacks(standing.get(nodes[row.record_key]), row)]
            todo = _write_rows(
                client, experiment_id, todo, nodes=nodes, standing=standing, on_progress=on_progress, total=len(runs)
            )
            if not todo:
                break
        on_progress(len(runs), len(runs))
    return experiment_url(dataset, experiment_id)


def experiment_url(dataset: PhoenixDataset, experiment_id: str) -> str:
    """The page of an experiment; raises TraceStoreError when no address is configured."""
    return f"{_endpoint()}/datasets/{dataset.id}/compare?experimentId={experiment_id}"


def project_url(workload: str) -> str:
    """The page of a workload's spans; raises TraceStoreError when no address is configured."""
    return f"{_endpoint()}/redirects/projects/{quote(workload, safe='')}"


def _experiment_id(client: Client, dataset: PhoenixDataset, name: str, metadata: Mapping[str, JsonValue]) -> str:
    for known in client.experiments.list(dataset_id=dataset.id, timeout=_TIMEOUT_S):
        if known.get("name") == name and known["dataset_version_id"] == dataset.version_id:
            return known["id"]
    created = client.experiments.create(
        dataset_id=dataset.id,
        dataset_version_id=dataset.version_id,
        experiment_name=name,
        experiment_metadata=metadata,
        timeout=_TIMEOUT_S,
    )
    return created["id"]


def _standing(client: Client, experiment_id: str) -> dict[str, _Standing]:
    stored = client.experiments.get_experiment(experiment_id=experiment_id)
    scores: dict[str, dict[str, float | None]] = {}
    for evaluation in stored["evaluation_runs"]:
        result = evaluation.result
        value = result.get("score") if isinstance(result, dict) else None
        scores.setdefault(evaluation.experiment_run_id, {})[evaluation.name] = value
    return {
        run["dataset_example_id"]: _Standing(run["id"], bool(run.get("error")), scores.get(run["id"], {}))
        for run in stored["task_runs"]
    }


def _lacks(standing: _Standing | None, row: ExperimentRow) -> bool:
    if standing is None or (standing.failed and row.error is None):
        return True
    return any(standing.scores.get(score.name) != score.value for score in row.scores)


def _write_rows(
    client: Client,
    experiment_id: str,
    rows: Sequence[ExperimentRow],
    *,
    nodes: Mapping[str, str],
    standing: Mapping[str, _Standing],
    on_progress: Callable[[int, int], None],
    total: int,
) -> list[ExperimentRow]:
    """Write rows with several threads; returns those that another writer was first with."""
    done = total - len(rows)
    conflicts: list[ExperimentRow] = []

    def write(row: ExperimentRow) -> bool:
        node = nodes[row.record_key]
        return _write_row(client, experiment_id, node, row, standing.get(node))

    with ThreadPoolExecutor(_THREADS) as pool:
        for row, written in zip(rows, pool.map(write, rows), strict=True):
            if not written:
                conflicts.append(row)
            done += 1
            on_progress(done, total)
    return conflicts


def _write_row(client: Client, experiment_id: str, node: str, row: ExperimentRow, standing: _Standing | None) -> bool:
    if standing is None or (standing.failed and row.error is None):
        try:
            run = client.experiments.log_run(
                experiment_id=experiment_id,
                dataset_example_id=node,
                output=row.output,
                start_time=row.started,
                end_time=row.ended,
                trace_id=row.trace_id,
                error=row.error,
            )
        except httpx.HTTPStatusError as error:
            if error.response.status_code == HTTPStatus.CONFLICT:
                return False
            raise
        # Phoenix drops the scores of a failed run that it replaces.
        standing = _Standing(run["id"], bool(row.error), {})
    for score in row.scores:
        if standing.scores.get(score.name) != score.value:
            client.experiments.log_evaluation(
                experiment_run_id=standing.run_id,
                name=score.name,
                annotator_kind=score.kind.value,
                score=score.value,
                label=score.label,
                explanation=score.explanation,
                start_time=row.ended,
            )
    return True
