"""A recorded run asked again of models that have changed since: how far the answers agree, and what asking cost."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from domain.errors import ModelUnavailable, NotFound
from domain.ledgers import OutcomeClass, Stage
from domain.workloads import TierName
from infra.db.session import transaction
from infra.db.store import calls, runs
from infra.db.tables import AttemptRow
from infra.doctor import diagnose
from infra.exchange import import_runs
from infra.llm.scripted import Fault, Rule, Script, ScriptedServer
from infra.replaying import replay
from infra.reproducing import Reproduction, reproduce, sample_keys
from infra.settings import Settings, load_settings
from tests.integration.recorded_runs import EXAMPLE, FILE, lines, run_of

ROUTE = run_of("route")
SAMPLE = 40


@pytest.fixture(scope="module", autouse=True)
def imported(ledger: str) -> None:
    """The recorded run in the ledger."""
    import_runs(FILE)


def settings_for(cheap: ScriptedServer, strong: ScriptedServer) -> Settings:
    """The stack's settings with other model servers behind the example's names."""
    engines = {cheap.script.model: cheap.base_url, strong.script.model: strong.base_url}
    return load_settings().model_copy(update={"engines": engines, "in_flight": 8})


def script(model: str, label: str, **options: Any) -> Script:
    """A model that says the same label to everything."""
    return Script(model=model, rules=(Rule(pattern="", label=label),), **options)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[ScriptedServer, ScriptedServer]]:
    """The example's two models, which have become simple minds."""
    with (
        ScriptedServer(script("smollm2-135m-instruct", "card")) as cheap,
        ScriptedServer(script("gemma3-270m", "cash")) as strong,
    ):
        yield cheap, strong


@pytest.fixture(scope="module")
def reproduced(servers: tuple[ScriptedServer, ScriptedServer]) -> Reproduction:
    """Forty rows of the batch asked again."""
    return reproduce(ROUTE, EXAMPLE, sample=SAMPLE, seed=0, settings=settings_for(*servers))


def recorded() -> dict[tuple[str, str], dict[str, Any]]:
    chosen = set(sample_keys(ROUTE, SAMPLE, 0))
    return {
        (row["tier"], row["record_key"]): row
        for row in lines(FILE, "answers")
        if row["run_id"] == ROUTE and row["record_key"] in chosen
    }


def test_a_seed_chooses_the_same_rows_again_and_another_one_others() -> None:
    first, again, other = sample_keys(ROUTE, SAMPLE, 0), sample_keys(ROUTE, SAMPLE, 0), sample_keys(ROUTE, SAMPLE, 1)
    assert first == again
    assert len(set(first)) == SAMPLE
    assert set(first) != set(other)
    assert first[:10] == sample_keys(ROUTE, 10, 0)
    assert len(sample_keys(ROUTE, 10_000, 0)) == 150


def test_every_recorded_answer_of_the_sample_is_asked_again_and_compared(reproduced: Reproduction) -> None:
    given = recorded()
    assert reproduced.rows == SAMPLE
    assert reproduced.skipped == 0
    for name, tier in reproduced.tiers.items():
        mine = [row for (of, _), row in given.items() if of == name]
        assert (tier.asked, tier.unanswered) == (len(mine), 0)
        assert tier.agreement.label.n == len(mine)
        assert tier.agreement.label.low <= tier.agreement.label.mean <= tier.agreement.label.high
    cheap = reproduced.tiers[TierName.CHEAP]
    assert cheap.agreement.text.mean < 0.9
    assert cheap.agreement.logprob_gap
    assert cheap.agreement.confidence_drift


def test_its_calls_are_attempts_of_a_run_of_its_own_that_reconciles(
    reproduced: Reproduction, servers: tuple[ScriptedServer, ScriptedServer]
) -> None:
    with transaction() as db:
        own = runs.load_run(db, reproduced.run_id)
        found = diagnose(db, own)
        spent = calls.spending(db, own.id)
        untouched = calls.spending(db, ROUTE)
    assert (own.kind, own.state, own.summary["reproduced"]) == ("reproduce", "completed", ROUTE)
    assert {part.stage for part in spent} == {Stage.REPRODUCE}
    assert sum(part.calls for part in spent) == len(recorded())
    assert sum(part.usd for part in spent) == pytest.approx(sum(tier.usd for tier in reproduced.tiers.values()))
    assert [tokens.holds for tokens in found.tokens] == [True, True]
    assert found.healthy
    assert {part.stage for part in untouched} <= {Stage.GENERATE, Stage.REASK}


def test_the_recorded_answers_stay_what_they_are(reproduced: Reproduction) -> None:
    assert replay(ROUTE, EXAMPLE).seen.identical


def test_a_row_that_a_server_refuses_is_counted_and_its_try_recorded() -> None:
    with (
        ScriptedServer(script("smollm2-135m-instruct", "card")) as cheap,
        ScriptedServer(script("gemma3-270m", "cash", faults=(Fault(kind="status", status=400),))) as strong,
    ):
        found = reproduce(ROUTE, EXAMPLE, sample=150, seed=0, settings=settings_for(cheap, strong))
    tier = found.tiers[TierName.STRONG]
    assert tier.unanswered == tier.asked == 9
    assert tier.agreement.text.n == 0
    assert tier.why
    with transaction() as db:
        outcomes = db.scalars(
            select(AttemptRow.outcome).where(AttemptRow.run_id == found.run_id, AttemptRow.tier == TierName.STRONG)
        ).all()
    assert outcomes == [OutcomeClass.REFUSED] * 9


def test_models_that_answer_nothing_at_all_are_an_error_and_the_run_says_so() -> None:
    refusing = (Fault(kind="status", status=400),)
    with (
        ScriptedServer(script("smollm2-135m-instruct", "card", faults=refusing)) as cheap,
        ScriptedServer(script("gemma3-270m", "cash", faults=refusing)) as strong,
        pytest.raises(ModelUnavailable, match="no model answered: HTTP 400"),
    ):
        reproduce(ROUTE, EXAMPLE, sample=5, seed=0, settings=settings_for(cheap, strong))
    with transaction() as db:
        (newest,) = runs.load_runs(db, limit=1)
    assert (newest.kind, newest.state) == ("reproduce", "failed")


def test_a_run_that_answered_nothing_cannot_be_reproduced(run_id: str, servers: Any) -> None:
    with pytest.raises(NotFound, match="has answered no row"):
        reproduce(run_id, EXAMPLE, sample=5, seed=0, settings=settings_for(*servers))
