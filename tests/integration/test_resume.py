"""A run that dies loses nothing that was answered: the next one finds it in the ledger and sends the rest."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from sqlalchemy import func, select

from domain.datasets import JUDGED
from domain.ledgers import OutcomeClass, Stage
from domain.workloads import TierName
from infra import stack
from infra.db.session import transaction
from infra.db.store import datasets, runs
from infra.db.tables import AttemptRow, OutcomeRow
from infra.llm.scripted import Fault, Script, ScriptedServer
from infra.settings import Settings, load_settings
from infra.stack import Stack
from tests.integration import scripted_workloads
from tests.integration.scripted_workloads import RULES, Ran, Written, diagnosed, ended, spent

pytestmark = [pytest.mark.usefixtures("running"), pytest.mark.timeout(900)]
ROWS = 150


def stored(run_id: UUID, stage: Stage = Stage.GENERATE) -> int:
    """Answers of a run that the ledger holds."""
    return len(answered(run_id, stage))


def answered(run_id: UUID, stage: Stage = Stage.GENERATE) -> set[tuple[str, str]]:
    """Tier and row of every answer of a run that the ledger holds."""
    with transaction() as db:
        query = select(AttemptRow.tier, AttemptRow.record_key).where(
            AttemptRow.run_id == str(run_id),
            AttemptRow.stage == stage,
            AttemptRow.outcome == OutcomeClass.ANSWERED,
            ~AttemptRow.cached,
        )
        return set(db.execute(query).tuples())


def flow_process(home: Settings, run_id: UUID) -> psutil.Process:
    """The worker's child that carries out this run."""
    worker = next(state.pid for state in stack.status(home) if state.name == "worker")
    (found,) = [
        child
        for child in psutil.Process(worker).children(recursive=True)
        if child.environ().get("PREFECT__FLOW_RUN_ID") == str(run_id)
    ]
    return found


def wait_for(run_id: UUID, count: int) -> None:
    deadline = time.monotonic() + 300
    while stored(run_id) < count:
        assert time.monotonic() < deadline, "the run does not get anywhere"
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Killed:
    """A run whose process was killed in the middle, and the run after it."""

    workload: Written
    first: UUID
    ended_as: str
    kept: set[tuple[str, str]]
    second: Ran


@pytest.fixture(scope="module")
def killed(running: Stack, home: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    """`optimize-workload` with slow models, killed when the ledger held twenty answers, and started again."""
    small = Script(model="small", rules=RULES, latency_s=0.4, noise=0.25, seed=1)
    large = Script(model="large", rules=RULES, latency_s=0.4, seed=2)
    with ScriptedServer(small) as cheap, ScriptedServer(large) as strong:
        folder = tmp_path_factory.mktemp("workloads") / "interrupted"
        workload = scripted_workloads.write(folder, name="interrupted", cheap=cheap, strong=strong, rows=ROWS)
        first = workload.start("optimize-workload")
        wait_for(first, 20)
        flow_process(home, first).kill()
        name, _ = ended(first)
        kept = answered(first)
        yield Killed(workload, first, name, kept, workload.run("optimize-workload"))


def test_a_killed_flow_ends_as_crashed_in_prefect_and_in_the_ledger(killed: Killed) -> None:
    assert killed.ended_as == "Crashed"
    with transaction() as db:
        run = runs.load_run(db, str(killed.first))
    assert run.state == "crashed"
    assert run.ended_at is not None


def test_the_next_run_loses_no_row_and_counts_none_twice(killed: Killed) -> None:
    found = diagnosed(killed.second.id)
    assert found.healthy
    assert (found.run.state, found.rows.pending) == ("completed", 0)
    assert found.rows.records == found.rows.outcomes > 100
    assert [tokens.holds for tokens in found.tokens] == [True, True]
    with transaction() as db:
        outcomes = db.scalar(
            select(func.count(OutcomeRow.record_key.distinct())).where(OutcomeRow.run_id == killed.second.id)
        )
    assert outcomes == found.rows.outcomes


def test_no_stored_row_is_sent_again_and_of_the_others_no_more_than_were_under_way(killed: Killed) -> None:
    with transaction() as db:
        version = runs.load_run(db, killed.second.id).dataset_version or ""
        rows = datasets.load_records(db, version, *JUDGED)
    seen = {TierName.CHEAP: killed.workload.cheap.calls.rows, TierName.STRONG: killed.workload.strong.calls.rows}
    sent = {(tier, row.key): seen[tier][f"Text: {row.record.inputs['text']}"] for tier in TierName for row in rows}
    assert len(killed.kept) >= 20
    assert {sent[TierName(tier), key] for tier, key in killed.kept} == {1}
    assert sum(sent.values()) - len(sent) <= load_settings().window
    parts = [part for part in spent(killed.second.id) if part.stage == Stage.GENERATE]
    assert sum(part.cached for part in parts) == len(killed.kept)
    assert sum(part.calls for part in parts) == len(sent) - len(killed.kept)


def test_the_killed_run_itself_has_lost_no_row(killed: Killed) -> None:
    rows = diagnosed(str(killed.first)).rows
    assert rows.holds
    assert rows.pending == rows.records > 100


def test_a_run_whose_model_server_dies_fails_in_words_and_the_next_one_sends_the_rest(
    running: Stack, tmp_path: Path
) -> None:
    healthy = Script(model="small", rules=RULES)
    mortal = healthy.model_copy(update={"faults": (Fault(kind="die", after_calls=60),)})
    with ScriptedServer(Script(model="large", rules=RULES)) as strong, ScriptedServer(mortal) as cheap:
        workload = scripted_workloads.write(tmp_path / "mortal", name="mortal", cheap=cheap, strong=strong, rows=ROWS)
        first = workload.start("optimize-workload")
        name, message = ended(first)
        assert name == "Failed"
        assert "could not be reached" in message
        kept = {key for tier, key in answered(first) if tier == TierName.CHEAP}
        assert diagnosed(str(first)).run.state == "failed"
        with ScriptedServer(healthy, port=cheap.port) as revived:
            second = replace(workload, cheap=revived).run("optimize-workload")
        found = diagnosed(second.id)
    assert found.healthy
    assert found.rows.records == found.rows.outcomes
    assert len(kept) > 16
    assert second.cheap.requests == found.rows.records - len(kept)
