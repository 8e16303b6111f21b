"""MLflow through its doors, against a real server (fixture `mlflow_uri`)."""

# DSPy has no types, MLflow's fluent API few.
# pyright: basic

import json
import math
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import mlflow
import pytest
from dspy.utils import DummyLM
from mlflow import artifacts, genai
from mlflow.tracking import MlflowClient

from domain.bundles import Bundle, BundledTier, Lineage
from domain.certificates import CurvePoint, NotCertified
from domain.errors import TraceStoreError
from domain.prompts import Demo, PromptVersion
from domain.workloads import Prices, Tier, TierName
from infra import challenging, figures, registry, tracking
from infra.autologging import compile_traces

pytestmark = [pytest.mark.usefixtures("mlflow_uri"), pytest.mark.timeout(300)]


@pytest.fixture
def workload() -> str:
    """A workload name that no other test uses."""
    return f"w{uuid.uuid4().hex[:12]}"


@pytest.fixture
def run_id(workload: str) -> str:
    """An open run of the workload."""
    return tracking.open_run(workload=workload, flow_run_id=str(uuid.uuid4()), kind="optimize", tags={})


@pytest.fixture
def server(mlflow_uri: str) -> Any:
    """A plain client, to look at what was stored."""
    return MlflowClient(mlflow_uri, registry_uri=mlflow_uri)


def stored_file(uri: str) -> Path:
    return Path(artifacts.download_artifacts(uri))


def prompt(instructions: str = "Name the topic.", *, demo: str = "My card is lost.") -> PromptVersion:
    return PromptVersion(
        instructions=instructions,
        answer_format="Answer in JSON with topic.",
        input_fields=("text",),
        output_fields=("topic",),
        demos=(Demo(inputs={"text": demo}, output={"topic": "card"}),),
    )


def bundle(workload: str, instructions: str = "Name the topic.") -> Bundle:
    tier = Tier(model="m", usd_per_million=Prices(input=1, output=1))
    bundled = BundledTier(tier=tier, prompt=prompt(instructions), prior={"card": 1.0})
    refusal = NotCertified(kind="absolute", eps=0.05, delta=0.1, n=3, test="t", reason="few rows", rows_needed=50)
    lineage = Lineage(workload_hash="w", dataset_version="d", calibration_rows=3)
    return Bundle(
        workload=workload,
        cheap=bundled,
        strong=bundled,
        json_schema={},
        decisive="topic",
        max_reasks=1,
        threshold=None,
        certificate=refusal,
        lineage=lineage,
    )


def test_a_retried_flow_run_gets_its_run_back_and_open(workload: str, server: Any) -> None:
    flow_run = str(uuid.uuid4())
    tags = {"headrace.dataset.revision": "abc", "mlflow.note.content": "why"}
    first = tracking.open_run(workload=workload, flow_run_id=flow_run, kind="optimize", tags=tags)
    tracking.close(first, failed=True)
    again = tracking.open_run(workload=workload, flow_run_id=flow_run, kind="optimize", tags=tags)
    run = server.get_run(again)
    assert again == first
    assert run.info.status == "RUNNING"
    assert run.info.run_name == f"optimize {flow_run[:8]}"
    assert run.data.tags.items() >= {"headrace.workload": workload, "prefect.flow_run_id": flow_run, **tags}.items()


def test_a_step_opened_twice_is_one_nested_run(run_id: str, server: Any) -> None:
    step = tracking.open_step(run_id, "compile cheap")
    assert tracking.open_step(run_id, "compile cheap") == step
    assert tracking.open_step(run_id, "compile strong") != step
    assert server.get_run(step).data.tags["mlflow.parentRunId"] == run_id


def test_logging_the_same_figures_twice_leaves_one_point(run_id: str, server: Any) -> None:
    for quality in (0.8, 0.8, 0.7):
        tracking.log(run_id, params={"eps": 0.05}, metrics={"quality": quality, "nothing": math.nan})
    assert [point.value for point in server.get_metric_history(run_id, "quality")] == [0.8, 0.7]
    assert len(server.get_metric_history(run_id, "nothing")) == 1
    assert server.get_run(run_id).data.params == {"eps": "0.05"}


def test_more_parameters_than_one_call_takes_all_arrive(run_id: str, server: Any) -> None:
    tracking.log(run_id, params={f"p{i}": i for i in range(250)}, metrics={})
    assert len(server.get_run(run_id).data.params) == 250


def test_a_parameter_cannot_change_its_value(run_id: str) -> None:
    tracking.log(run_id, params={"eps": 0.05}, metrics={})
    with pytest.raises(TraceStoreError, match="eps"):
        tracking.log(run_id, params={"eps": 0.06}, metrics={})


def test_a_dataset_input_appears_once_and_without_its_password(run_id: str, server: Any) -> None:
    for _ in range(2):
        tracking.log_dataset(
            run_id,
            name="rows",
            digest="f" * 64,
            uri="postgresql://me:hunter2@host/db?password=hunter2",
            rows=[{"id": "1", "text": "hello"}],
            row_count=120,
            context="training",
        )
    (entry,) = server.get_run(run_id).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("rows", "f" * 36)
    assert json.loads(entry.dataset.source) == {"uri": "postgresql://host/db"}
    assert json.loads(entry.dataset.profile) == {"num_rows": 120}
    table = artifacts.load_dict(f"runs:/{run_id}/datasets/rows-sample.json")
    assert table == {"columns": ["id", "text"], "data": [["1", "hello"]]}


def test_a_curve_and_a_json_value_can_be_read_back(run_id: str) -> None:
    point = CurvePoint(
        threshold=0.4, kept=0.5, quality=0.8, gap=0.01, worse=1, better=0, cost=1e-5, p_value=0.01, passed=True
    )
    png = figures.cost_quality_curve(
        [point], threshold=0.4, cheap=figures.Anchor(0.7, 1e-6), strong=figures.Anchor(0.81, 2e-5), floor=0.76
    )
    assert png.startswith(b"\x89PNG")
    tracking.log_figure(run_id, "cost-quality", png)
    tracking.log_json(run_id, "certificate", [1, {"a": None}])
    assert stored_file(f"runs:/{run_id}/figures/cost-quality.png").read_bytes() == png
    assert json.loads(stored_file(f"runs:/{run_id}/certificate.json").read_text()) == [1, {"a": None}]


def test_a_curve_without_points_is_still_a_picture() -> None:
    nothing = figures.Anchor(0.0, 0.0)
    assert figures.cost_quality_curve([], threshold=None, cheap=nothing, strong=nothing).startswith(b"\x89PNG")


def test_links_name_the_experiment_and_the_run(workload: str, run_id: str, mlflow_uri: str) -> None:
    experiment = tracking.experiment_url(workload)
    assert experiment.startswith(f"{mlflow_uri.rstrip('/')}/#/experiments/")
    assert tracking.run_url(run_id) == f"{experiment}/runs/{run_id}"


def test_a_prompt_is_registered_once_for_a_hash(workload: str, run_id: str, server: Any) -> None:
    def register(text: str) -> int:
        return registry.register_prompt(prompt(text), workload=workload, tier=TierName.CHEAP, run_id=run_id)

    assert [register("A."), register("A."), register("B."), register("A.")] == [1, 1, 2, 1]
    name = registry.prompt_name(workload, TierName.CHEAP)
    registry.set_prompt_alias(name, "champion", 2)
    stored = server.load_prompt(f"prompts:/{name}@champion")
    assert stored.commit_message == stored.tags[registry.HASH_TAG] == prompt("B.").hash
    assert stored.template == prompt("B.").template()
    linked = json.loads(server.get_run(run_id).data.tags["mlflow.linkedPrompts"])
    assert {entry["version"] for entry in linked} == {"1", "2"}


def test_braces_inside_demos_and_instructions_are_never_filled(workload: str, run_id: str) -> None:
    hostile = prompt("Keep {{text}}.", demo="{{text}} {{7*7}} {% for x in y %}")
    version = registry.register_prompt(hostile, workload=workload, tier=TierName.STRONG, run_id=run_id)
    stored: Any = genai.load_prompt(f"prompts:/{registry.prompt_name(workload, TierName.STRONG)}/{version}")
    filled: Any = stored.format(text="row {{text}}")
    assert [message["content"] for message in filled if "row" in message["content"]] == ["Text: row {{text}}"]
    assert filled[1]["content"] == "Text: { {text} } { {7*7} } { % for x in y % }"


def test_a_prompt_longer_than_the_registry_takes_is_cut_in_its_demos(workload: str, run_id: str) -> None:
    long = prompt(demo="\u2603" * 200_000)
    version = registry.register_prompt(long, workload=workload, tier=TierName.CHEAP, run_id=run_id)
    stored: Any = genai.load_prompt(f"prompts:/{registry.prompt_name(workload, TierName.CHEAP)}/{version}")
    messages: Any = stored.template
    assert "characters more]" in messages[1]["content"]
    assert stored.variables == {"text"}


def test_a_bundle_is_registered_once_and_reads_back_equal(workload: str, run_id: str, server: Any) -> None:
    one, other = bundle(workload), bundle(workload, "Other words.")
    name, version = registry.log_bundle(one, run_id=run_id)
    assert registry.log_bundle(one, run_id=run_id) == (name, version) == (registry.bundle_name(workload), 1)
    assert registry.log_bundle(other, run_id=run_id) == (name, 2)
    registry.set_alias(name, "champion", 1)
    stored = server.get_model_version_by_alias(name, "champion")
    assert stored.tags[registry.HASH_TAG] == one.hash
    kept = stored_file(f"models:/{name}@champion") / "bundle.json"
    assert Bundle.model_validate_json(kept.read_text()).hash == one.hash


def test_aliases_follow_the_ledgers_champion_back_and_forth(workload: str, run_id: str, server: Any) -> None:
    one, other, unknown = (bundle(workload, words) for words in ("first", "second", "third"))
    for made in (one, other):
        registry.log_bundle(made, run_id=run_id)
        for tier in TierName:
            registry.register_prompt(made[tier].prompt, workload=workload, tier=tier, run_id=run_id)
    name = registry.bundle_name(workload)
    for made in (one, other, one):
        assert registry.mirror(made, "champion")
        assert server.get_model_version_by_alias(name, "champion").tags[registry.HASH_TAG] == made.hash
        for tier in TierName:
            champion = server.get_prompt_version_by_alias(registry.prompt_name(workload, tier), "champion")
            assert champion.tags[registry.HASH_TAG] == made[tier].prompt.hash
    assert not registry.mirror(unknown, "champion")
    assert server.get_model_version_by_alias(name, "champion").tags[registry.HASH_TAG] == one.hash


def test_a_challenger_made_by_hand_is_registered_beside_the_bundle_that_it_was_made_of(
    workload: str, server: Any
) -> None:
    run = str(uuid.uuid4())
    of, by_hand = bundle(workload), bundle(workload).model_copy(update={"threshold": 0.5})
    made = challenging.Challenged(by_hand, of.hash, run, new=True)
    assert not challenging.show_in_mlflow(made), "MLflow knows no such run"
    mine = tracking.open_run(workload=workload, flow_run_id=run, kind="optimize", tags={})
    registry.log_bundle(of, run_id=mine)
    for tier in TierName:
        registry.register_prompt(of[tier].prompt, workload=workload, tier=tier, run_id=mine)
    tracking.close(mine, failed=False)
    for _ in range(2):
        assert challenging.show_in_mlflow(made)
    name = registry.bundle_name(workload)
    assert server.get_model_version_by_alias(name, "challenger").tags[registry.HASH_TAG] == by_hand.hash
    assert len(server.search_model_versions(f"name = '{name}'")) == 2
    assert server.get_run(mine).info.status == "FINISHED"


def test_a_bundle_left_half_stored_is_finished_by_the_retry(workload: str, run_id: str, server: Any) -> None:
    half = bundle(workload)
    experiment = server.get_run(run_id).info.experiment_id
    left = server.create_logged_model(experiment, name="half", tags={registry.HASH_TAG: half.hash})
    name, version = registry.log_bundle(half, run_id=run_id)
    assert left.model_id in server.get_model_version(name, str(version)).source
    assert server.get_logged_model(left.model_id).status.value == "READY"


CANARY = "sk-canary-7c1b"


class KeyedLM(DummyLM):
    """A model that carries a key the way dspy.LM does."""

    def __init__(self) -> None:
        super().__init__([{"topic": "card"}] * 5_000)
        self.kwargs["api_key"] = CANARY


class Program(dspy.Module):
    """One predictor, as Headrace compiles it."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("text -> topic")

    def forward(self, text: str) -> Any:
        return self.predict(text=text)


def right_for_even(gold: Any, prediction: Any, trace: Any = None) -> float:
    return float(len(gold.text) % 2 == 0)


def compile_once(run_id: str, *, expected_calls: int) -> None:
    rows = [dspy.Example(text="x" * n, topic="card").with_inputs("text") for n in range(1, 61)]
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        right_for_even, max_bootstrapped_demos=1, max_labeled_demos=1, num_candidate_programs=1, num_threads=4
    )
    with compile_traces(run_id, expected_calls=expected_calls), dspy.context(lm=KeyedLM()):
        optimizer.compile(Program(), trainset=rows[:20], valset=rows[20:])


def everything_stored(server: Any, run_id: str) -> tuple[str, list[Any], list[Any]]:
    """All text under a run, its candidates' runs, and the traces of all of them."""
    experiment = server.get_run(run_id).info.experiment_id
    candidates = server.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    traces: Any = mlflow.search_traces(locations=[experiment], max_results=1_000, return_type="list")
    text = [str(trace.to_dict()) for trace in traces]
    for run in [server.get_run(run_id), *candidates]:
        text.append(str(run.to_dictionary()))
        for entry in server.list_artifacts(run.info.run_id):
            text.append(stored_file(f"runs:/{run.info.run_id}/{entry.path}").read_text())
    return "\n".join(text), candidates, traces


def test_a_compile_leaves_scored_traces_of_a_sample_and_no_key(run_id: str, server: Any) -> None:
    step = tracking.open_step(run_id, "compile cheap")
    compile_once(step, expected_calls=250)
    text, candidates, traces = everything_stored(server, step)
    assert len(candidates) == 4
    assert all("eval" in run.data.metrics for run in candidates)
    assert 5 <= len(traces) <= 80, "a fifth of about 170 calls"
    assert max(len(trace.info.assessments) for trace in traces) == 1
    for trace in traces:
        for score in trace.info.assessments:
            assert score.value == right_for_even(dspy.Example(text=json.loads(trace.data.request)["text"]), None)
    assert CANARY not in text
    assert "best_model.json" in {entry.path for entry in server.list_artifacts(step)}


def test_a_repeated_compile_replaces_the_candidates_of_the_first(run_id: str, server: Any) -> None:
    step = tracking.open_step(run_id, "compile cheap")
    for _ in range(2):
        compile_once(step, expected_calls=1_000_000)
    _, candidates, _ = everything_stored(server, step)
    assert len(candidates) == 4


def test_nothing_is_logged_after_the_compile(run_id: str, server: Any) -> None:
    step = tracking.open_step(run_id, "compile cheap")
    with compile_traces(step, expected_calls=1):
        pass
    with dspy.context(lm=KeyedLM()):
        Program()(text="x")
    _, candidates, traces = everything_stored(server, step)
    assert (candidates, traces, mlflow.active_run()) == ([], [], None)


def test_a_failure_inside_a_compile_passes_through_and_fails_its_run(run_id: str, server: Any) -> None:
    step = tracking.open_step(run_id, "compile cheap")
    with pytest.raises(OSError, match="disk"), compile_traces(step, expected_calls=1):
        raise OSError("disk")
    assert server.get_run(step).info.status == "FAILED"


def test_a_compile_in_another_thread_runs_unlogged(run_id: str, server: Any, caplog: pytest.LogCaptureFixture) -> None:
    step = tracking.open_step(run_id, "compile cheap")
    with compile_traces(run_id, expected_calls=1), ThreadPoolExecutor(1) as pool:
        pool.submit(compile_once, step, expected_calls=1).result()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(compile_once, step, expected_calls=1).result()
    assert [record.message[:42] for record in caplog.records if "compile is not" in record.message] == [
        "This compile is not logged to MLflow: anot"
    ] * 2
    assert server.list_artifacts(step) == []


def test_a_server_that_is_down_raises_a_trace_store_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TraceStoreError, match="could not open the run") as caught:
        tracking.open_run(workload="w", flow_run_id="f", kind="optimize", tags={})
    assert caught.value.retryable


def test_without_an_address_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(TraceStoreError, match="headrace up"):
        tracking.connect()
