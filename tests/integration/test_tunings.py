"""The ledger of delta: which use of the calibration rows a tuning is."""

import uuid
from collections.abc import Sequence

import pytest

from domain.datasets import Record, Split
from domain.errors import Place
from infra.db.session import transaction
from infra.db.store import tunings
from infra.snapshots import take_snapshot
from tests.integration.begun_runs import open_run

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("ledger")]


@pytest.fixture
def workload() -> str:
    """A name that no other test's rows have."""
    return f"w-{uuid.uuid4().hex[:8]}"


def snapshot(ids: Sequence[int], *, split: Split = Split.CALIBRATION) -> tuple[str, str]:
    """A run with these rows, and their dataset version."""
    run = open_run()
    rows = [Record(f"r{n}", {"text": f"row {n}"}, {"topic": "card"}, split, Place("rows.jsonl", n + 1)) for n in ids]
    return run, take_snapshot(run, rows, uri="rows.jsonl", splits=[split], max_rows=None)[0]


def tune(workload: str, taken: tuple[str, str], evidence: str) -> int:
    run, version = taken
    with transaction() as db:
        number = tunings.tuning_number(db, run, workload=workload, version=version, evidence=evidence)
        tunings.save_tuning(db, run, workload=workload, version=version, evidence=evidence, number=number, delta=0.05)
        assert tunings.load_tuning(db, run) == number
    return number


def test_every_new_look_at_the_same_rows_is_one_more_and_the_same_look_again_is_none(workload: str) -> None:
    rows = range(10)
    assert tune(workload, snapshot(rows), "first prompt") == 1
    assert tune(workload, snapshot(rows), "second prompt") == 2
    assert tune(workload, snapshot(rows), "first prompt") == 1
    assert tune(workload, snapshot(rows), "third prompt") == 3
    assert tune(f"{workload}-b", snapshot(rows), "first prompt") == 1, "of another workload"


def test_a_step_that_runs_again_keeps_its_number(workload: str) -> None:
    taken = snapshot(range(5))
    assert [tune(workload, taken, "evidence") for _ in range(3)] == [1, 1, 1]


def test_adding_rows_does_not_make_the_old_ones_fresh_and_fresh_rows_begin_again(workload: str) -> None:
    assert tune(workload, snapshot(range(10)), "a") == 1
    assert tune(workload, snapshot(range(11)), "b") == 2, "ten of eleven were seen"
    assert tune(workload, snapshot([10, *range(20, 30)]), "c") == 2, "one of eleven was seen once"
    assert tune(workload, snapshot(range(100, 110)), "d") == 1, "none was seen"


def test_rows_of_another_split_spend_nothing(workload: str) -> None:
    assert tune(workload, snapshot(range(10), split=Split.TEST), "a") == 1
    assert tune(workload, snapshot(range(10)), "b") == 1
