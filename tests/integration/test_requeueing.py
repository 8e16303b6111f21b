"""Quarantined rows of a batch are asked again: these and no others, in a batch of their own."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from sqlalchemy import select, text

from domain.errors import InputError
from infra import deployments
from infra.db.session import transaction
from infra.db.store import answers, pruning, runs
from infra.db.tables import OutcomeRow, RecordRow
from infra.exchange import import_runs
from infra.llm.scripted import Fault, Script, ScriptedServer
from infra.requeueing import requeue
from infra.stack import Stack
from tests.integration import scripted_workloads
from tests.integration.recorded_runs import FILE, run_of
from tests.integration.scripted_workloads import RULES, Written, diagnosed, ended

pytestmark = pytest.mark.timeout(600)
ROUTE, OPTIMIZE = run_of("route"), run_of("optimize")
DOWN = Fault(kind="status", status=400, match=r"\b104[0-4]\b")


@pytest.fixture
def refused(ledger: str) -> Iterator[list[str]]:
    """Three rows of the recorded batch in quarantine instead of answered, two of them for one reason."""
    import_runs(FILE)
    with transaction() as db:
        keys = list(db.scalars(select(OutcomeRow.record_key).where(OutcomeRow.run_id == ROUTE).limit(3)))
        for n, key in enumerate(keys):
            db.execute(
                text(
                    "INSERT INTO quarantined (run_id, record_key, stage, file, line, reason) "
                    "VALUES (:run, :key, 'generate', 'f', :n, :why)"
                ),
                {"run": ROUTE, "key": key, "n": n, "why": "timed out" if n else "its worker died"},
            )
    yield keys
    with transaction() as db:
        db.execute(text("DELETE FROM quarantined WHERE record_key = ANY(:keys)"), {"keys": keys})


def _records(version: str) -> set[str]:
    with transaction() as db:
        return set(db.scalars(select(RecordRow.key).where(RecordRow.dataset_version == version)))


def test_the_snapshot_has_exactly_the_rows_and_is_the_same_the_next_time(refused: list[str]) -> None:
    made = requeue(ROUTE)

    assert _records(made.version) == set(refused)
    assert made.rows == 3
    assert requeue(ROUTE) == made
    timed_out = requeue(ROUTE[:8], reason="timed")
    assert _records(timed_out.version) == set(refused[1:])
    assert (timed_out.rows, timed_out.other_reasons) == (2, 1)


def test_what_cannot_be_asked_again_is_refused(refused: list[str]) -> None:
    with pytest.raises(InputError, match="'optimize', not a batch"):
        requeue(OPTIMIZE)
    with pytest.raises(InputError, match="for 'no such reason'"):
        requeue(ROUTE, reason="no such reason")
    with transaction() as db:
        runs.change_run(db, ROUTE, state="paused")
    try:
        with pytest.raises(InputError, match="paused"):
            requeue(ROUTE)
    finally:
        with transaction() as db:
            runs.change_run(db, ROUTE, state="completed")


@pytest.fixture
def workload(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """Five incoming rows that neither server takes, until they are mended."""
    scripts = [Script(model=name, rules=RULES, seed=n, faults=(DOWN,)) for n, name in enumerate(("small", "large"))]
    with ScriptedServer(scripts[0]) as small, ScriptedServer(scripts[1]) as large:
        folder = tmp_path_factory.mktemp("workloads") / "requeued"
        yield scripted_workloads.write(
            folder,
            name=f"requeued-{uuid4().hex[:6]}",
            cheap=small,
            strong=large,
            rows=40,
            incoming=12,
            max_quarantined=0.5,
        )


def test_rows_that_no_server_took_are_answered_once_one_does(workload: Written) -> None:
    workload.run("optimize-workload")
    first = workload.run("route-batch")
    with transaction() as db:
        kept = [row.record_key for row in answers.load_quarantine(db, first.id)]
    assert len(kept) == 5
    for server in (workload.cheap, workload.strong):
        server.model.script = server.script.model_copy(update={"faults": ()})

    made = requeue(first.id)
    given = {"workload": str(workload.folder), "version": made.version}
    second = deployments.start("route-batch", parameters=given, workload=workload.name)

    assert ended(second)[0] == "Completed"
    with transaction() as db:
        assert {outcome.key for outcome in answers.load_outcomes(db, str(second))} == set(kept)
    assert diagnosed(str(second)).healthy
    with transaction() as db:  # five rows are not the workload's last batch
        last = runs.last_completed(db, "route", workload.name)
        shown = db.scalar(text("SELECT batch FROM views.verdicts WHERE workload = :name"), {"name": workload.name})
        seen = {run.id: run.requeued for run in pruning.load_past(db) if run.workload == workload.name}
    assert last is not None
    assert last.id == shown == first.id
    assert [run_id for run_id, requeued in seen.items() if requeued] == [str(second)]
