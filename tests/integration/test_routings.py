"""How a bundle reads its rows: learned scores from fit to batch, signals with calls of their own, shortcuts."""

from collections.abc import Iterator

import pytest
from sqlalchemy import select

from domain.bundles import Bundle
from domain.certificates import Certificate
from domain.outcomes import STRAIGHT, Outcome
from domain.routers import Routing
from domain.workloads import SignalName, TierName
from infra.db.session import transaction
from infra.db.store import answers, bundles, runs
from infra.db.store.runs import RunRecord
from infra.db.tables import AttemptRow
from infra.fitting import LEAST_ROWS
from infra.llm.scripted import Script, ScriptedServer
from infra.replaying import replay
from infra.stack import Stack
from tests.integration import scripted_workloads
from tests.integration.scripted_workloads import RULES, Ran, Written, diagnosed

pytestmark = pytest.mark.timeout(900)
INCOMING = 24


@pytest.fixture(scope="module")
def workload(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """Enough rows of the train split to learn from."""
    small = Script(model="small", rules=RULES, noise=0.25, sharpness=4, seed=1, row_pattern=r"Text: ([^\n]+)")
    large = Script(model="large", rules=RULES, noise=0.05, seed=2, row_pattern=r"Text: ([^\n]+)")
    with ScriptedServer(small) as cheap, ScriptedServer(large) as strong:
        yield scripted_workloads.write(
            tmp_path_factory.mktemp("workloads") / "routed",
            name="routed",
            cheap=cheap,
            strong=strong,
            rows=420,
            incoming=INCOMING,
            router={"signals": ["regret", "isotonic"], "samples": 3},
            optimizer={"name": "none", "validation_rows": 40},
            target={"eps": 0.3, "min_valid": 0.5},
        )


@pytest.fixture(scope="module")
def optimized(workload: Written) -> Ran:
    return workload.run("optimize-workload")


def load(run_id: str) -> RunRecord:
    with transaction() as db:
        return runs.load_run(db, run_id)


def outcomes(run_id: str) -> dict[str, Outcome]:
    with transaction() as db:
        return {outcome.key: outcome for outcome in answers.load_outcomes(db, run_id)}


def champion(workload: Written) -> Bundle:
    with transaction() as db:
        return bundles.champion(db, workload.name)


def deploy(workload: Written, made_by: Ran, **routing: object) -> Bundle:
    """Make a champion of the run's bundle with another routing."""
    with transaction() as db:
        bundle = bundles.load_bundle(db, load(made_by.id).bundle_hash or "")
        other = bundle.model_copy(update={"routing": Routing.model_validate(routing), "threshold": 0.5})
        bundles.save_bundle(db, other, run_id=made_by.id)
        bundles.set_alias(db, workload.name, "champion", other.hash)
    return other


def test_a_score_is_learned_on_the_train_split_certified_on_other_rows_and_travels_in_the_bundle(
    workload: Written, optimized: Ran
) -> None:
    with transaction() as db:
        bundle = bundles.load_bundle(db, load(optimized.id).bundle_hash or "")
    told = load(optimized.id).summary["signals"]
    assert {"regret", "isotonic"} == {name for name, figures in told.items() if "certified" in figures}
    assert {"margin", "entropy", "joint"} <= told.keys()
    assert all(figures["auroc"] > 0.6 for name, figures in told.items() if name in ("regret", "isotonic", "margin"))
    verdict = bundle.certificate
    assert isinstance(verdict, Certificate)
    assert (verdict.declared, verdict.level) == (2, pytest.approx(0.10 * 0.5 / 2))
    assert bundle.routing.score is not None
    assert bundle.routing.score.fitted.n >= LEAST_ROWS
    assert replay(optimized.id, workload.folder).seen.identical


def test_a_batch_is_routed_by_the_learned_score_and_replayed(workload: Written, optimized: Ran) -> None:
    bundle = champion(workload)
    assert bundle.routing.score is not None
    ran = workload.run("route-batch")
    assert diagnosed(ran.id).healthy
    settled = outcomes(ran.id)
    assert len(settled) == INCOMING
    kept = [outcome for outcome in settled.values() if outcome.tier is TierName.CHEAP]
    assert kept
    with transaction() as db:
        given = answers.load_answers(db, ran.id, TierName.CHEAP)
    names = {name.value for name in bundle.routing.looked_at}
    assert all(names >= (answer.signals or {}).keys() for answer in given.values())
    assert {answer.confidence for answer in given.values()} != {
        (answer.signals or {}).get("margin") for answer in given.values()
    }, "it is not the margin"
    assert all(outcome.confidence is not None and outcome.confidence >= (bundle.threshold or 2) for outcome in kept)
    summary = load(ran.id).summary
    assert summary["valid_rate"] == 1.0
    assert summary["latency_s"]["cheap"]["calls"] == INCOMING
    assert 0 < summary["saving"] < 1
    assert replay(ran.id, workload.folder).seen.identical


def test_a_signal_with_calls_of_its_own_is_asked_for_every_row_of_the_batch_and_charged(
    workload: Written, optimized: Ran
) -> None:
    deploy(workload, optimized, signal="self-consistency", samples=3, temperature=1.5)
    ran = workload.run("route-batch")
    assert diagnosed(ran.id).healthy
    with transaction() as db:
        given = answers.load_answers(db, ran.id, TierName.CHEAP)
        further = db.scalars(select(AttemptRow).where(AttemptRow.run_id == ran.id, AttemptRow.stage == "signal")).all()
    assert len(further) == 3 * INCOMING
    assert all(answer.confidence == (answer.signals or {})["self-consistency"] for answer in given.values())
    settled = outcomes(ran.id)
    for key, answer in given.items():
        assert answer.usd > (answer.signal_usd or {})["self-consistency"] > 0
        assert settled[key].usd >= answer.usd
    assert replay(ran.id, workload.folder).seen.identical


def test_rows_that_go_straight_to_the_strong_tier_are_never_sent_to_the_cheap_one(
    workload: Written, optimized: Ran
) -> None:
    deploy(workload, optimized, signal=SignalName.ENTROPY, straight_from=1)
    ran = workload.run("route-batch")
    assert diagnosed(ran.id).healthy
    assert ran.cheap.requests == 0
    with transaction() as db:
        given = answers.load_answers(db, ran.id, TierName.CHEAP)
    assert {(answer.failed, answer.usd) for answer in given.values()} == {(STRAIGHT, 0.0)}
    assert {(o.tier, o.escalated) for o in outcomes(ran.id).values()} == {(TierName.STRONG, False)}
    summary = load(ran.id).summary
    assert (summary["straight_to_strong"], summary["escalated"], summary["saving"]) == (INCOMING, 0, 0.0)
    assert replay(ran.id, workload.folder).seen.identical
