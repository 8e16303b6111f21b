"""Phoenix through its doors, against a real server (fixture `phoenix`)."""

import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from pydantic import JsonValue

from domain.errors import TraceStoreError
from infra import spans, tracing
from infra.spans import LlmCall, SpanData, SpanKind
from infra.tracing import AnnotatorKind, ExampleRow, ExperimentRow, PhoenixDataset, ScoreValue

pytestmark = [pytest.mark.usefixtures("phoenix"), pytest.mark.timeout(180)]
NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


@pytest.fixture
def workload() -> str:
    """A workload name that no other test uses."""
    return f"w{uuid.uuid4().hex[:12]}"


def examples(count: int) -> list[ExampleRow]:
    return [
        ExampleRow(f"{n:064x}", f"row-{n}", {"text": f"text {n}"}, {"topic": "card"}, "train" if n % 2 else "test")
        for n in range(count)
    ]


@pytest.fixture
def stored(workload: str) -> PhoenixDataset:
    """Twenty examples in Phoenix."""
    return tracing.dataset(workload, "a" * 64, examples(20))


def answered(key: str, *, score: float = 1.0, error: str | None = None) -> ExperimentRow:
    scores = [
        ScoreValue("exact_match", score),
        ScoreValue("judge", 0.5, "unsure", "Half of it is there.", AnnotatorKind.LLM),
    ]
    output: JsonValue = None if error else {"topic": "card"}
    return ExperimentRow(key, output, error, NOW, NOW + timedelta(seconds=2), None, [] if error else scores)


def held(url: str) -> dict[str, dict[str, float | None]]:
    """Output rows of an experiment by example, with their scores; failed rows carry their error as a name."""
    (experiment_id,) = parse_qs(urlsplit(url).query)["experimentId"]
    with tracing.opened("show an experiment") as client:
        ran = client.experiments.get_experiment(experiment_id=experiment_id)
    rows: dict[str, dict[str, float | None]] = {}
    names = {run["id"]: run["dataset_example_id"] for run in ran["task_runs"]}
    for run in ran["task_runs"]:
        assert run["dataset_example_id"] not in rows, "an example answered twice"
        rows[run["dataset_example_id"]] = {str(run.get("error")): None} if run.get("error") else {}
    for entry in ran["evaluation_runs"]:
        assert isinstance(entry.result, dict)
        rows[names[entry.experiment_run_id]][entry.name] = entry.result.get("score")
    return rows


def test_a_dataset_version_is_stored_once(workload: str) -> None:
    first = tracing.dataset(workload, "b" * 64, examples(30))
    again = tracing.dataset(workload, "b" * 64, examples(30))
    assert again == first
    assert len(first.examples) == 30
    with tracing.opened("show a dataset") as client:
        kept = client.datasets.get_dataset(dataset={"name": f"{workload}@{'b' * 12}"})
    example = next(entry for entry in kept.examples if entry["id"] == f"{1:064x}")
    assert example["metadata"] == {"record_id": "row-1", "split": "train"}
    assert (example["input"], example["output"]) == ({"text": "text 1"}, {"topic": "card"})


def test_a_half_stored_dataset_is_completed(workload: str) -> None:
    tracing.dataset(workload, "c" * 64, examples(5))
    assert len(tracing.dataset(workload, "c" * 64, examples(8)).examples) == 8


def test_a_repeated_experiment_adds_only_what_is_missing(stored: PhoenixDataset) -> None:
    keys = list(stored.examples)
    progress: list[tuple[int, int]] = []

    def put(some: Sequence[str]) -> str:
        progress.clear()
        return tracing.experiment(
            stored,
            name="cheap 1a2b3c4d",
            metadata={"tier": "cheap"},
            runs=[answered(key) for key in some],
            on_progress=lambda done, total: progress.append((done, total)),
        )

    first = put(keys[:12])
    assert progress[-1] == (12, 12)
    assert put(keys) == first
    assert (progress[0], progress[-1]) == ((13, 20), (20, 20))
    rows = held(first)
    assert rows.keys() == set(stored.examples.values())
    assert all(scores == {"exact_match": 1.0, "judge": 0.5} for scores in rows.values())


def test_a_changed_score_replaces_the_old_one(stored: PhoenixDataset) -> None:
    key = next(iter(stored.examples))
    for score in (1.0, 0.0):
        url = tracing.experiment(stored, name="strong x", metadata={}, runs=[answered(key, score=score)])
    assert held(url)[stored.examples[key]]["exact_match"] == 0.0


def test_a_failed_row_is_replaced_by_its_answer_and_never_the_other_way(stored: PhoenixDataset) -> None:
    key = next(iter(stored.examples))
    node = stored.examples[key]
    seen: list[dict[str, float | None]] = []
    for error in ("Timeout", None, "Timeout"):
        url = tracing.experiment(stored, name="strong y", metadata={}, runs=[answered(key, error=error)])
        seen.append(held(url)[node])
    answer = {"exact_match": 1.0, "judge": 0.5}
    assert seen == [{"Timeout": None}, answer, answer]


def test_two_writers_of_one_experiment_leave_every_row_once(stored: PhoenixDataset) -> None:
    rows = [answered(key) for key in stored.examples]
    tracing.experiment(stored, name="both", metadata={}, runs=[])

    def put(part: list[ExperimentRow]) -> str:
        return tracing.experiment(stored, name="both", metadata={}, runs=part)

    with ThreadPoolExecutor(2) as pool:
        urls = set(pool.map(put, [rows, rows[::-1]]))
    (url,) = urls
    assert all(scores == {"exact_match": 1.0, "judge": 0.5} for scores in held(url).values())
    assert len(held(url)) == len(rows)


def span(key: str, **other: object) -> SpanData:
    values: dict[str, object] = {
        "name": "answer",
        "kind": SpanKind.LLM,
        "key": key,
        "trace_key": f"trace of {key}",
        "parent_key": None,
        "started": NOW,
        "ended": NOW + timedelta(seconds=1),
    }
    return SpanData(**(values | other))  # pyright: ignore[reportArgumentType]


def settled(ids: list[str], project: str) -> set[str]:
    """What is still missing after Phoenix had time to store what it acknowledged."""
    deadline = time.monotonic() + 60
    while (left := spans.missing(ids, project=project)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def test_spans_sent_again_add_nothing_and_hold_back_nobody(workload: str) -> None:
    sent = [span(f"{workload} {n}") for n in range(150)]
    ids = [spans.span_id(entry.key) for entry in sent]
    assert spans.missing(ids, project=workload) == set(ids), "the project does not exist yet"
    assert spans.export(sent[:40], project=workload) == 40
    assert settled(ids[:40], workload) == set()
    assert spans.missing(ids, project=workload) == set(ids[40:])
    assert spans.export(sent, project=workload) == 110
    assert settled(ids, workload) == set()
    assert spans.export(sent, project=workload) == 0


def test_a_span_sent_twice_before_it_is_stored_is_stored_once(workload: str) -> None:
    sent = [span(f"{workload} {n}") for n in range(5)]
    spans.export(sent + sent, project=workload)
    spans.export(sent, project=workload)
    ids = [spans.span_id(entry.key) for entry in sent]
    assert settled(ids, workload) == set()
    with tracing.opened("show spans") as client:
        assert len(client.spans.get_spans(project_identifier=workload, limit=100)) == 5


def test_a_call_is_shown_with_messages_tokens_and_lineage(workload: str) -> None:
    call = LlmCall("smollm2", [{"role": "user", "content": "hi"}], '{"topic":"card"}', 30, 7, "stop")
    parent = span(f"{workload} row", kind=SpanKind.CHAIN, name="row", trace_key=workload, input="hi")
    child = span(
        f"{workload} call",
        trace_key=workload,
        parent_key=parent.key,
        llm=call,
        session="run-1",
        input="x" * 100_000,
        error="Timeout",
        metadata={"run_id": "run-1", "record_key": "k", "tier": "cheap", "attempt": 2},
    )
    spans.export([child, parent], project=workload)
    assert settled([spans.span_id(child.key), spans.span_id(parent.key)], workload) == set()
    with tracing.opened("show spans") as client:
        (kept,) = client.spans.get_spans(project_identifier=workload, span_ids=[spans.span_id(child.key)])
    assert kept["context"]["trace_id"] == spans.trace_id(workload)
    assert kept.get("parent_id") == spans.span_id(parent.key)
    assert (kept["span_kind"], kept["status_code"], kept.get("status_message")) == ("LLM", "ERROR", "Timeout")
    attributes = dict(kept.get("attributes", {}))
    assert len(attributes["input.value"]) <= spans.PAYLOAD_BYTES
    assert "100,000 bytes" in attributes["input.value"]
    assert (
        attributes.items()
        >= {
            "llm.model_name": "smollm2",
            "llm.token_count.prompt": 30,
            "llm.token_count.completion": 7,
            "llm.input_messages.0.message.content": "hi",
            "llm.output_messages.0.message.content": '{"topic":"card"}',
            "metadata.tier": "cheap",
            "metadata.attempt": 2,
            "session.id": "run-1",
        }.items()
    )


def test_text_is_cut_at_64_kib_between_characters() -> None:
    assert spans.cut("é" * 10) == "é" * 10
    assert len(spans.cut("é" * 60_000).encode()) <= spans.PAYLOAD_BYTES


def test_links_lead_to_pages_that_exist(workload: str, stored: PhoenixDataset) -> None:
    url = tracing.experiment(stored, name="linked", metadata={}, runs=[])
    for page in (url, tracing.project_url(workload)):
        assert httpx.get(page, follow_redirects=True).status_code == 200


def test_a_wrong_key_raises_a_trace_store_error_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOENIX_API_KEY", "wrong-key-4711")
    with pytest.raises(TraceStoreError, match="401") as caught:
        tracing.dataset("w", "d" * 64, examples(1))
    assert "4711" not in str(caught.value)


def test_a_server_that_is_down_raises_a_trace_store_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOENIX_COLLECTOR_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TraceStoreError, match="could not take spans") as caught:
        spans.export([span("k")], project="w")
    assert caught.value.retryable


def test_without_an_address_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PHOENIX_COLLECTOR_ENDPOINT")
    with pytest.raises(TraceStoreError, match="headrace up"):
        tracing.project_url("w")
