"""Audits for real: a good cheap tier is left in peace; one that got worse, equally sure, loses its certificate."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from sqlalchemy import delete, func, select, update

from domain.bundles import Bundle
from domain.errors import StoreError
from domain.starts import Starter
from domain.workloads import TierName
from infra import auditing, deployments, retuning
from infra.db.audit_tables import AuditedRow, AuditRow
from infra.db.session import transaction
from infra.db.store import answers, audits, bundles, runs
from infra.db.tables import RunRow
from infra.llm.scripted import Rule, Script, ScriptedServer
from infra.stack import Stack
from tests.integration import scripted_workloads
from tests.integration.recorded_runs import ROOT
from tests.integration.scripted_workloads import RULES, SENTENCES, Written, diagnosed, ended, spent, topic

pytestmark = [pytest.mark.usefixtures("running"), pytest.mark.timeout(900)]
ROWS, BATCH = 120, 60
GOOD = Script(model="small", rules=RULES, noise=0.2, sharpness=8, seed=1)
MIXED_UP = tuple(
    Rule(pattern=rule.pattern, label=other.label) for rule, other in zip(RULES, (*RULES[1:], RULES[0]), strict=True)
)
DEGRADED = GOOD.model_copy(update={"rules": MIXED_UP})
"""Sure of the wrong label exactly where it was sure of the right one."""
STRONG = Script(model="large", rules=RULES, noise=0.02, seed=2)


@pytest.fixture(scope="module")
def workload(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """A workload with a champion; its cheap tier can be exchanged behind its back."""
    with ScriptedServer(GOOD) as small, ScriptedServer(STRONG) as large:
        written = scripted_workloads.write(
            tmp_path_factory.mktemp("workloads") / "watched",
            name="watched",
            cheap=small,
            strong=large,
            rows=ROWS,
            incoming=BATCH,
            router={"retune": "approval"},
        )
        written.run("optimize-workload")
        yield written


def headrace(*words: str) -> subprocess.CompletedProcess[str]:
    """The command line as people use it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def champion(workload: Written) -> Bundle:
    with transaction() as db:
        return bundles.champion(db, workload.name)


def arrive(workload: Written, first: int) -> None:
    """Put a new batch into the place that rows are routed from."""
    rows = [{"id": f"i{n}", "text": SENTENCES[topic(n)].format(n=1000 + n)} for n in range(first, first + BATCH)]
    (workload.folder / "incoming.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def labels_of(workload: Written, first: int) -> str:
    """A file with the right answers to a batch."""
    file = workload.folder / f"labels-{first}.csv"
    file.write_text("id,topic\n" + "".join(f"i{n},{topic(n)}\n" for n in range(first, first + BATCH)))
    return str(file)


def audit(workload: Written, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report of `headrace audit` on every routed row."""
    done = headrace("audit", str(workload.folder), "--share", "1", "--json", *words)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def restarted(name: str, *, patience_s: float = 60) -> UUID:
    """The run of optimize-workload that the automation has started, once it is there."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with get_client(sync_client=True) as client:
            found = [run for run in client.read_flow_runs() if run.parameters.get("approval")]
        if found:
            assert name in found[0].parameters["workload"]
            return found[0].id
        time.sleep(0.5)
    raise AssertionError("no alarm has started anything")


@dataclass(frozen=True, slots=True)
class Life:
    """What became of a bundle: its reports without labels, with labels, once more, and of a degraded tier."""

    bundle: Bundle
    kept: int
    unlabelled: dict[str, Any]
    labelled: dict[str, Any]
    again: dict[str, Any]
    worse: dict[str, Any]
    codes: tuple[int, ...]


@pytest.fixture(scope="module")
def life(workload: Written) -> Life:
    """Two batches, and four audits: the cheap tier gets worse before the last."""
    bundle = champion(workload)
    assert bundle.threshold is not None
    routed = workload.run("route-batch")
    with transaction() as db:
        kept = sum(o.tier is TierName.CHEAP for o in answers.load_outcomes(db, routed.id))
    assert 0 < kept < BATCH
    unlabelled = audit(workload)
    imported = headrace("labels", "import", str(workload.folder), labels_of(workload, ROWS), "--json")
    assert (imported.returncode, json.loads(imported.stdout)["new"]) == (0, BATCH)
    labelled, again = audit(workload), audit(workload)
    workload.cheap.model.script = DEGRADED
    arrive(workload, 1000)
    workload.run("route-batch")
    assert headrace("labels", "import", str(workload.folder), labels_of(workload, 1000)).returncode == 0
    looks = (unlabelled, labelled, again, audit(workload))
    return Life(bundle, kept, *(report for _, report in looks), codes=tuple(code for code, _ in looks))


def test_without_labels_there_is_agreement_and_no_verdict_on_the_promise(life: Life) -> None:
    first = life.unlabelled
    assert (life.codes[0], first["verdict"], first["gap"]) == (0, "untested", None)
    assert (first["counts"]["audited"], first["counts"]["asked of strong"]) == (BATCH, life.kept)
    assert first["differing_rows"] == BATCH
    assert first["sights"]["gold"]["misses"]
    found = diagnosed(first["run"])
    assert found.healthy
    assert (found.rows.records, found.rows.outcomes) == (life.kept, life.kept)
    assert [tokens.holds for tokens in found.tokens] == [True, True]
    assert sum(part.calls for part in spent(first["run"])) == life.kept, "escalated rows cost nothing"


def test_rows_are_counted_once_their_labels_are_there_and_never_twice(life: Life) -> None:
    second, third = life.labelled, life.again
    assert (life.codes[1], second["verdict"], second["alarms"]) == (0, "quiet", [])
    assert life.kept <= second["gap_rows"] <= BATCH
    assert sum(part.calls for part in spent(second["run"])) == 0
    assert (life.codes[2], third["gap_rows"], third["differing_rows"]) == (0, second["gap_rows"], BATCH)
    assert third["counts"]["newly counted by gold"] == 0
    assert (third["log_e"], third["detector"]) == (second["log_e"], second["detector"])


def test_a_tier_that_answers_worse_at_the_same_confidences_raises_the_alarm(life: Life) -> None:
    assert (life.codes[3], life.worse["verdict"]) == (1, "alarm")
    assert "loss of quality is more than the 0.15 promised" in life.worse["alarms"][0]
    assert life.worse["gap"] > 0.15
    assert life.worse["drifts"] == 0, "the confidences tell nothing"
    assert diagnosed(life.worse["run"]).healthy


def test_an_alarm_voids_the_certificate_and_every_row_goes_to_the_strong_tier(workload: Written, life: Life) -> None:
    with transaction() as db:
        assert audits.alarms(db, life.bundle.hash)[0].startswith(f"audit {life.worse['run'][:8]}: ")
    where = ("--workload", str(workload.folder), "--json")
    shown = json.loads(headrace("bundle", "show", life.bundle.hash, *where).stdout)
    assert shown["state"] == "void"
    assert "the loss of quality is more" in shown["void"][0]
    arrive(workload, 2000)
    ran = workload.run("route-batch")
    assert (ran.cheap.requests, ran.strong.requests) == (0, BATCH)
    code, void = audit(workload)
    assert (code, void["verdict"], void["counts"]) == (1, "void", {})


def test_an_alarm_starts_a_tuning_that_waits_for_a_word_and_the_same_rows_do_not_pass(
    workload: Written, life: Life
) -> None:
    assert life.worse["verdict"] == "alarm"
    started = restarted(workload.name)
    deadline = time.monotonic() + 120
    while deployments.state_of(started)[0] != "Suspended" and time.monotonic() < deadline:
        time.sleep(0.5)
    assert deployments.state_of(started)[0] == "Suspended"
    with transaction() as db:
        assert not runs.is_known(db, str(started)), "nothing was done"
    deployments.reschedule(started)
    while deployments.state_of(started)[0] == "Suspended":
        time.sleep(0.5)
    name, message = ended(started)
    assert name == "Completed", message
    with transaction() as db:
        assert runs.load_run(db, str(started)).started_by == Starter.AUTOMATION
        summary = runs.load_run(db, str(started)).summary
    assert summary["promoted"] is False
    assert "the certificate is void: audit" in summary["gate"][0]


def test_what_an_audit_has_concluded_stays(workload: Written, life: Life) -> None:
    with transaction() as db:
        known = audits.load_audits(db, workload=workload.name)
    assert len(known) >= len(life.codes)
    for statement in (update(AuditRow).values(verdict="quiet"), delete(AuditRow)):
        with pytest.raises(StoreError, match="append-only"), transaction() as db:
            db.execute(statement.where(AuditRow.workload == workload.name))
    with transaction() as db:
        rows = db.scalars(select(AuditedRow).where(AuditedRow.bundle_hash == known[0].bundle_hash)).all()
        places = sorted(row.place for row in rows)
    assert places == list(range(len(rows)))
    assert all(row.loss is not None for row in rows if row.counted_by is not None)


def test_a_paused_audit_leaves_alone_what_another_has_concluded_meanwhile(workload: Written, life: Life) -> None:
    with transaction() as db:
        routed = select(RunRow.id, RunRow.dataset_version).where(
            RunRow.kind == "route", RunRow.bundle_hash == life.bundle.hash, RunRow.state == "completed"
        )
        concluded = set(db.scalars(select(func.jsonb_array_elements_text(AuditRow.routes))))
        picked = [(run, version or "") for run, version in db.execute(routed).tuples()]
    left = auditing.still_unaudited(life.bundle.hash, picked)
    assert concluded & {run for run, _ in picked}
    assert not concluded & {route.run_id for route in left}


def test_the_automation_is_there_once_however_often_it_is_made(running: Stack) -> None:
    with get_client(sync_client=True) as client:
        assert retuning.ensure_automation(client) is False
        (found,) = client.read_automations_by_name(retuning.AUTOMATION)
        assert found.enabled


def test_labels_name_what_is_wrong_with_them_and_the_good_ones_are_taken(workload: Written) -> None:
    file = workload.folder / "mixed.csv"
    file.write_text("id,topic\nx1,card\nx2,crad\n,loan\nx3\nx4,cash\nx1,loan\n")
    done = headrace("labels", "import", str(workload.folder), str(file), "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["new"], found["bad"], found["conflicts"]) == (1, 2, 3, 1)
    said = {fault["place"]: fault["reason"] for fault in found["faults"]}
    assert said["mixed.csv:3: topic"] == "'crad' is no value of 'topic'"
    assert said["mixed.csv:4: id"] == "is empty"
    assert said["mixed.csv:5"].startswith("has 1 cells")
    assert "an earlier label says 'card', and stays" in said["mixed.csv:7: topic"]
    assert all(fault["fix"] for fault in found["faults"])
    again = json.loads(headrace("labels", "import", str(workload.folder), str(file), "--json").stdout)
    assert (again["new"], again["known"]) == (0, 2)
    newer = json.loads(headrace("labels", "import", str(workload.folder), str(file), "--replace", "--json").stdout)
    assert newer["replaced"] == 1
    assert "watched" in headrace("labels").stdout
