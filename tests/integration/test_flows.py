"""The flows for real: Prefect with a process worker, Postgres, MLflow and Phoenix; only the models are scripted."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import mlflow
import pytest
from mlflow import artifacts
from mlflow.tracking import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from rich.console import Console

from domain.bundles import Bundle, keeps, rendering
from domain.certificates import Certificate, NotCertified
from domain.promotions import Act
from domain.servings import Served
from domain.workloads import TierName
from infra import registry, tracing
from infra.aliasing import os_user
from infra.db.session import transaction
from infra.db.store import answers, bundles, promotions, runs
from infra.db.store.answers import StoredQuarantine
from infra.db.store.runs import RunRecord
from infra.llm.scripted import Rule, Script, ScriptedServer
from infra.replaying import replay
from infra.showing import show_run
from infra.stack import Stack
from tests.integration import scripted_workloads
from tests.integration.scripted_workloads import BROKEN, RULES, Count, Ran, Written, diagnosed, spent

pytestmark = [pytest.mark.usefixtures("running"), pytest.mark.timeout(900)]
ROWS, INCOMING = 120, 40
KNOWS = Script(model="small", rules=RULES, noise=0.25, sharpness=8, seed=1)
MIXED_UP = tuple(
    Rule(pattern=rule.pattern, label=other.label) for rule, other in zip(RULES, (*RULES[1:], RULES[0]), strict=True)
)
WRONG = Script(model="small", rules=MIXED_UP, sharpness=8, seed=3)
STRONG = Script(model="large", rules=RULES, noise=0.05, seed=2)
NOTHING = Count(0, 0, 0)


@pytest.fixture(scope="module")
def workload(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """A cheap tier that is right three times in four and knows when, a strong one that nearly always is."""
    with ScriptedServer(KNOWS) as small, ScriptedServer(STRONG) as large:
        yield scripted_workloads.write(
            tmp_path_factory.mktemp("workloads") / "certifiable",
            name="certifiable",
            cheap=small,
            strong=large,
            rows=ROWS,
            broken=BROKEN,
            incoming=INCOMING,
            broken_incoming=('{"id": "empty", "text": " "}',),
            optimizer={"name": "bootstrap-random-search", "candidates": 1, "validation_rows": 8},
        )


@pytest.fixture(scope="module")
def optimized(workload: Written) -> Ran:
    """A completed `optimize-workload`."""
    return workload.run("optimize-workload")


@pytest.fixture(scope="module")
def repeated(workload: Written, optimized: Ran) -> Ran:
    """The same once more."""
    return workload.run("optimize-workload")


@pytest.fixture(scope="module")
def routed(workload: Written, optimized: Ran) -> Ran:
    """A completed `route-batch` after it."""
    return workload.run("route-batch")


@pytest.fixture(scope="module")
def hopeless(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """A cheap tier that is always wrong, and sure of it."""
    with ScriptedServer(WRONG) as small, ScriptedServer(STRONG) as large:
        folder = tmp_path_factory.mktemp("workloads") / "hopeless"
        yield scripted_workloads.write(folder, name="hopeless", cheap=small, strong=large, rows=60, incoming=10)


def load(run: Ran) -> RunRecord:
    with transaction() as db:
        return runs.load_run(db, run.id)


def champion(workload: Written) -> Bundle:
    with transaction() as db:
        return bundles.champion(db, workload.name)


def quarantine(run: Ran) -> list[StoredQuarantine]:
    with transaction() as db:
        return answers.load_quarantine(db, run.id)


def test_every_row_is_settled_and_every_token_is_accounted_for(workload: Written, optimized: Ran) -> None:
    found = diagnosed(optimized.id)
    assert found.healthy
    assert (found.run.state, found.rows.pending) == ("completed", 0)
    assert [tokens.holds for tokens in found.tokens] == [True, True]
    by_server = {tokens.server: tokens for tokens in found.tokens}
    for server, count in ((workload.cheap, optimized.cheap), (workload.strong, optimized.strong)):
        tokens = by_server[server.base_url]
        assert (tokens.ledger_prompt, tokens.ledger_completion) == (count.prompt, count.completion)
        paid = [part.calls for part in spent(optimized.id) if part.worker == server.base_url]
        assert sum(paid) == count.requests > 0


def test_rows_that_cannot_be_used_are_quarantined_with_place_and_reason(optimized: Ran, routed: Ran) -> None:
    cut, lacking, twice = quarantine(optimized)
    assert {q.stage for q in (cut, lacking, twice)} == {"snapshot"}
    assert (str(cut.place), cut.reason.partition(":")[0]) == (f"labelled.jsonl:{ROWS + 1}", "is not JSON")
    assert (str(lacking.place), lacking.reason) == (f"labelled.jsonl:{ROWS + 2}: text", "is missing")
    assert str(twice.place) == f"labelled.jsonl:{ROWS + 3}: id"
    assert twice.reason == "'r0' was already used at labelled.jsonl:1"
    assert [(str(q.place), q.reason) for q in quarantine(routed)] == [
        (f"incoming.jsonl:{INCOMING + 1}: text", "is empty")
    ]


def test_a_certified_bundle_becomes_champion(workload: Written, optimized: Ran) -> None:
    bundle, run = champion(workload), load(optimized)
    assert bundle.hash == run.bundle_hash
    assert isinstance(bundle.certificate, Certificate)
    assert bundle.threshold == bundle.certificate.threshold
    assert bundle.certificate.p_value <= bundle.certificate.delta
    assert bundle.certificate.n == bundle.lineage.calibration_rows
    assert (run.summary["promoted"], run.summary["gate"]) == (True, [])
    assert run.summary["test"]["cascade_usd"] < run.summary["test"]["strong_usd"]


def test_a_batch_is_answered_by_the_cheap_tier_where_it_is_sure_and_by_the_strong_one_elsewhere(
    workload: Written, routed: Ran
) -> None:
    found, threshold = diagnosed(routed.id), champion(workload).threshold
    assert found.healthy
    assert str(found.rows) == f"{INCOMING + 1} records = {INCOMING} outcomes + 1 quarantined + 0 cancelled + 0 pending"
    with transaction() as db:
        outcomes = answers.load_outcomes(db, routed.id)
        given = {tier: answers.load_answers(db, routed.id, tier) for tier in TierName}
    kept = {key for key, answer in given[TierName.CHEAP].items() if keeps(answer.confidence, threshold)}
    assert 0 < len(kept) < INCOMING
    assert {o.key for o in outcomes if o.tier is TierName.CHEAP} == kept
    assert all(o.escalated == (o.tier is TierName.STRONG) for o in outcomes)
    assert all(o.output == given[o.tier][o.key].output for o in outcomes)
    assert given[TierName.STRONG].keys() == given[TierName.CHEAP].keys() - kept
    assert (routed.cheap.requests, routed.strong.requests) == (INCOMING, INCOMING - len(kept))
    summary = load(routed).summary
    assert (summary["kept_on_cheap"], summary["escalated"]) == (len(kept), INCOMING - len(kept))
    assert summary["answered"] == summary["kept_on_cheap"] + summary["escalated"]


def test_a_bundle_says_how_it_was_made_and_its_promotion_is_on_record(workload: Written, optimized: Ran) -> None:
    bundle = champion(workload)
    assert bundle.lineage.baseline is not None
    assert {bundle[tier].rendered for tier in TierName} == {rendering(bundle[tier].prompt) for tier in TierName}
    assert bundle.cheap.served == Served(), "the scripted servers tell nothing of themselves"
    with transaction() as db:
        (entry,) = [entry for entry in promotions.load_entries(db, workload.name) if entry.run_id == optimized.id]
    assert (entry.move.act, entry.move.to_hash, entry.who) == (Act.PROMOTED, bundle.hash, os_user())
    assert entry.gate is not None
    assert (entry.gate["passed"], entry.gate["reasons"]) == (True, [])


def test_once_the_certificate_is_void_every_row_goes_to_the_strong_tier(
    workload: Written, routed: Ran, tmp_path: Path
) -> None:
    edited = replace(workload, folder=tmp_path / "edited")
    shutil.copytree(workload.folder, edited.folder)
    spec = json.loads((edited.folder / "workload.yaml").read_text())
    spec["tiers"]["strong"]["usd_per_million"]["input"] *= 2
    (edited.folder / "workload.yaml").write_text(json.dumps(spec))
    ran = edited.run("route-batch")
    assert diagnosed(ran.id).healthy
    with transaction() as db:
        outcomes = answers.load_outcomes(db, ran.id)
        given = answers.load_answers(db, ran.id, TierName.CHEAP)
    assert given == {}
    assert {o.tier for o in outcomes} == {TierName.STRONG}
    assert len(outcomes) == INCOMING
    summary = load(ran).summary
    assert (summary["threshold"], summary["kept_on_cheap"]) == (None, 0)
    (reason,) = summary["void"]
    assert reason.startswith("strong: prices was")
    assert summary["usd_per_1000"] > load(routed).summary["usd_per_1000_all_strong"], "at today's price"
    shown = Console(file=StringIO(), width=400)
    show_run(shown, ran.id, quarantined=False, as_json=False)
    assert "The champion's certificate is void: strong: prices was" in cast(StringIO, shown.file).getvalue()
    assert load(routed).summary["void"] == []
    assert replay(ran.id, edited.folder).seen.first is None


def test_the_same_workload_again_sends_nothing_and_makes_the_same_bundle(
    workload: Written, optimized: Ran, repeated: Ran
) -> None:
    assert (repeated.cheap, repeated.strong) == (NOTHING, NOTHING)
    first, second = load(optimized), load(repeated)
    assert second.id != first.id
    assert (second.bundle_hash, second.dataset_version) == (first.bundle_hash, first.dataset_version)
    assert second.summary["test"] == first.summary["test"]
    assert diagnosed(repeated.id).healthy
    assert sum(part.calls for part in spent(repeated.id)) == 0
    assert sum(part.cached for part in spent(repeated.id)) > 0
    assert champion(workload).hash == first.bundle_hash


def test_what_was_just_decided_is_decided_again_in_the_same_way(workload: Written, optimized: Ran, routed: Ran) -> None:
    for run in (optimized, routed):
        found = replay(run.id, workload.folder)
        assert found.seen.first is None
        assert (found.unproven, found.notes, found.recorded_code) == (0, [], found.code)


def test_mlflow_shows_the_run_with_links_dataset_steps_figures_and_the_champion(
    workload: Written, optimized: Ran, running: Stack
) -> None:
    uri = running.environment["MLFLOW_TRACKING_URI"]
    mlflow.set_tracking_uri(uri)  # another test may have meant another server
    client: Any = MlflowClient(uri)
    record = load(optimized)
    experiment = client.get_experiment_by_name(f"/headrace/{workload.name}").experiment_id
    (run,) = client.search_runs([experiment], f"tags.`prefect.flow_run_id` = '{optimized.id}'")
    assert run.info.status == "FINISHED"
    links = {name.removeprefix("headrace.link."): url for name, url in run.data.tags.items() if ".link." in name}
    assert links == record.links
    assert links.keys() == {"prefect", "mlflow", "phoenix", "phoenix-cheap", "phoenix-strong"}
    assert optimized.id in links["prefect"]
    assert run.info.run_id in links["mlflow"]
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == (workload.name, (record.dataset_version or "")[:16])
    steps = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    by_tier = {f"{step}-{tier.value}" for step in ("compile", "evaluate") for tier in TierName}
    assert {step.info.run_name for step in steps} == {"snapshot", "tune", "promote", *by_tier}
    assert {step.info.status for step in steps} == {"FINISHED"}
    assert {"figures", "certificate.json"} <= {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert run.data.metrics["test_quality_strong"] == pytest.approx(record.summary["test"]["strong"]["mean"])
    name = registry.bundle_name(workload.name)
    assert client.get_model_version_by_alias(name, "champion").tags[registry.HASH_TAG] == record.bundle_hash
    stored = Path(artifacts.download_artifacts(f"models:/{name}@champion")) / "bundle.json"
    assert Bundle.model_validate_json(stored.read_text()).hash == record.bundle_hash


def test_phoenix_holds_the_dataset_and_an_experiment_a_tier_with_a_run_for_every_row(
    workload: Written, optimized: Ran
) -> None:
    record = load(optimized)
    judged = diagnosed(optimized.id).rows.records - len(quarantine(optimized))
    with tracing.opened("show what is stored") as client:
        dataset = client.datasets.get_dataset(
            dataset={"name": f"{workload.name}@{(record.dataset_version or '')[:12]}"}
        )
        assert len(dataset.examples) == ROWS
        for tier in TierName:
            (experiment_id,) = parse_qs(urlsplit(record.links[f"phoenix-{tier.value}"]).query)["experimentId"]
            ran = client.experiments.get_experiment(experiment_id=experiment_id)
            assert len({run["dataset_example_id"] for run in ran["task_runs"]}) == len(ran["task_runs"]) == judged
            scores: list[Any] = [e.result for e in ran["evaluation_runs"] if e.name == "exact_match"]
            assert len(scores) == judged
            with transaction() as db:
                ours = answers.load_scores(db, optimized.id, tier, "exact_match")
            assert sum(score["score"] for score in scores) == sum(ours.values())


def test_prefect_shows_the_summary_the_quarantine_and_the_links(workload: Written, optimized: Ran) -> None:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[optimized.id]))  # pyright: ignore[reportArgumentType]
    with get_client(sync_client=True) as client:
        found = {artifact.key: artifact for artifact in client.read_artifacts(artifact_filter=wanted)}
    named = {f"{name}-{workload.name}" for name in ("summary", "quarantine", "prefect", "mlflow", "phoenix")}
    assert named <= found.keys()
    assert "Certified" in str(found[f"summary-{workload.name}"].data)
    assert f"labelled.jsonl:{ROWS + 2}" in str(found[f"quarantine-{workload.name}"].data)


def test_a_useless_cheap_tier_is_not_certified_and_is_not_asked_any_more(hopeless: Written) -> None:
    optimized = hopeless.run("optimize-workload")
    assert diagnosed(optimized.id).healthy
    bundle = champion(hopeless)
    assert bundle.hash == load(optimized).bundle_hash
    assert isinstance(bundle.certificate, NotCertified)
    assert bundle.threshold is None
    needed = bundle.certificate.rows_needed
    assert needed is None or needed > bundle.certificate.n
    routed = hopeless.run("route-batch")
    assert diagnosed(routed.id).healthy
    assert (routed.cheap, routed.strong.requests) == (NOTHING, 10)
    with transaction() as db:
        outcomes = answers.load_outcomes(db, routed.id)
    assert [(o.tier, o.escalated) for o in outcomes] == [(TierName.STRONG, False)] * 10


def test_a_run_with_more_rows_in_quarantine_than_allowed_has_failed_and_kept_everything(
    running: Stack, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broken = [f'{{"id": "b{n}", "topic": "card"}}' for n in range(16)]
    with ScriptedServer(KNOWS) as small, ScriptedServer(STRONG) as large:
        folder = tmp_path_factory.mktemp("workloads") / "spoiled"
        spoiled = scripted_workloads.write(folder, name="spoiled", cheap=small, strong=large, rows=40, broken=broken)
        run_id = spoiled.start("optimize-workload")
        name, message = scripted_workloads.ended(run_id)
    found = diagnosed(str(run_id))
    assert (name, found.run.state) == ("Failed", "failed")
    assert f"16 of {found.rows.records} rows are in quarantine; the workload allows 20%" in message
    assert found.rows.holds
    assert (found.rows.pending, found.rows.quarantined) == (0, 16)
    assert found.rows.outcomes > 0
