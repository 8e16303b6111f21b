"""News of a dataset for real: senders, an inbox in Postgres, dispatchers, and runs that do no more than they must."""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Scheduled
from sqlalchemy import func, select

from domain.canonical import digest
from domain.datasets import Split, split_of
from domain.errors import KeyReused
from domain.starts import Starter
from domain.triggers import Scheme
from domain.workloads import Scope, Splits, TierName
from infra import deployments, dispatching
from infra.db.session import transaction
from infra.db.store import bundles, changes, polls, runs
from infra.db.store.deliveries import receive
from infra.db.store.runs import RunRecord
from infra.db.trigger_tables import ChangeRow, DeliveryRow, PollRow, StartRow
from infra.llm.scripted import Script, ScriptedServer
from infra.replaying import replay
from infra.settings import Settings, load_settings
from infra.snapshots import read_records, store_snapshot
from infra.stack import Stack
from infra.starting import start_once
from infra.workloads import load_workload
from tests.integration import scripted_workloads
from tests.integration.receivers import ROOT, Receiver, Sender, receiving, updated
from tests.integration.scripted_workloads import RULES, Written, ended

pytestmark = [pytest.mark.usefixtures("running"), pytest.mark.timeout(900)]
ROWS, INCOMING = 120, 30
CARD, LOAN, CASH = RULES
CHEAP = Script(model="small", rules=RULES, noise=0.1, sharpness=8, seed=1)
STRONG = Script(model="large", rules=(LOAN, CARD, CASH), seed=2)
"""Of a text about a card and a loan only the strong model knows that it is about the loan."""


def triggers(*senders: Sender, debounce_s: float = 0, poll_s: float | None = None) -> str:
    """A triggers.yaml: each sender may speak of the labelled rows, those of ours also of the incoming ones."""
    known = {"workload": "its-folder", "sources": {sender.name: {} for sender in senders}, "debounce_s": debounce_s}
    ours = {sender.name: {} for sender in senders if sender.scheme is Scheme.STANDARD}
    return json.dumps(
        {
            "sources": {sender.name: {"scheme": sender.scheme} for sender in senders},
            "datasets": {
                "labelled": {**known, "poll_s": poll_s},
                "arriving": {**known, "rows": "incoming", "sources": ours},
                "announced": {**known, "rows": "incoming", "sources": ours, "starter": "automation"},
            },
        }
    )


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a change."""

    state: str
    run_id: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class Watched:
    """A workload with a champion, whose files are said to change."""

    written: Written
    settings: Settings
    senders: dict[Scheme, Sender]

    def hear(self, dataset: str) -> Settled:
        """Somebody says that a dataset has changed, and the dispatcher has its turn."""
        id_ = uuid.uuid4().hex
        with transaction() as db:
            said = [(dataset, 0.0)]
            receive(db, source="own", delivery_id=id_, body_hash=digest(id_), event="updated", datasets=said)
        dispatching.turn(self.settings)
        with transaction() as db:
            row = db.scalars(select(ChangeRow).order_by(ChangeRow.number.desc()).limit(1)).one()
            return Settled(row.state, row.run_id, row.detail)

    def became_of(self, source: str, *, after: int = 0, patience_s: float = 180) -> Settled:
        """What becomes of the only change that a source has told of, `after` that number; others deal with it."""
        deadline = time.monotonic() + patience_s
        query = select(ChangeRow).join(DeliveryRow, DeliveryRow.key == ChangeRow.delivery_key)
        query = query.where(ChangeRow.number > after)
        while True:
            with transaction() as db:
                newest = db.scalars(query.where(DeliveryRow.source == source).order_by(ChangeRow.number.desc())).first()
                if newest is not None and newest.state != "waiting":
                    return Settled(newest.state, newest.run_id, newest.detail)
            assert time.monotonic() < deadline, f"nobody dealt with the news of {source}"
            time.sleep(0.1)

    def calls(self) -> int:
        """Requests that have reached the models."""
        return self.written.cheap.calls.requests + self.written.strong.calls.requests

    def edit(self, file: str, rows: Sequence[tuple[str, str, str | None]]) -> None:
        """Give rows of a file, by id, another text and topic; an id that is not there yet is added."""
        path = self.written.folder / file
        known = {row["id"]: row for row in map(json.loads, path.read_text().splitlines())}
        for id_, text, topic in rows:
            known[id_] = {"id": id_, "text": text, **({"topic": topic} if topic else {})}
        whole = path.with_suffix(".whole")  # nobody sees half of it
        whole.write_text("".join(f"{json.dumps(row)}\n" for row in known.values()))
        whole.replace(path)


@pytest.fixture(scope="module")
def watched(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    senders = {scheme: Sender(scheme) for scheme in (Scheme.STANDARD, Scheme.GITHUB, Scheme.HUGGINGFACE)}
    (folder / "triggers.yaml").write_text(triggers(*senders.values()))
    settings = load_settings().model_copy(update={"workloads": folder})
    with ScriptedServer(CHEAP) as cheap, ScriptedServer(STRONG) as strong:
        given = {"rows": ROWS, "incoming": INCOMING, "target": {"eps": 0.15}}
        written = scripted_workloads.write(folder / "its-folder", name="watched", cheap=cheap, strong=strong, **given)
        written.run("optimize-workload")
        written.run("route-batch")
        yield Watched(written, settings, senders)


def record(run_id: str | None) -> RunRecord:
    with transaction() as db:
        return runs.load_run(db, run_id or "")


def champion() -> str:
    with transaction() as db:
        return bundles.champion(db, "watched").hash


def judged(ids: Sequence[str]) -> int:
    """How many of these rows are for calibration or test."""
    return sum(split_of(id_, Splits()) is not Split.TRAIN for id_ in ids)


def test_news_of_nothing_new_start_nothing(watched: Watched) -> None:
    before = watched.calls()
    found = watched.hear("labelled")
    assert (found.state, found.run_id) == ("unchanged", None)
    assert watched.calls() == before


def test_a_run_that_is_there_for_changes_ends_at_once_without_any(watched: Watched) -> None:
    before = watched.calls()
    for flow in ("optimize-workload", "route-batch"):
        parameters = {"workload": str(watched.written.folder), "only_changed": True}
        run_id = deployments.start(flow, parameters=parameters, workload="watched")
        name, message = ended(run_id)
        assert name == "Unchanged", message
        assert "nothing has changed since run" in message
        run = record(str(run_id))
        assert (run.state, run.started_by) == ("unchanged", Starter.PERSON)
    assert watched.calls() == before


def test_changed_labelled_rows_are_the_only_ones_that_are_asked_about_and_the_champion_stays(watched: Watched) -> None:
    ids = [f"r{n}" for n in range(6)] + ["new-1", "new-2", "new-3"]
    watched.edit("labelled.jsonl", [(id_, f"My card {id_} is broken.", "card") for id_ in ids])
    kept, before = champion(), watched.calls()
    found = watched.hear("labelled")
    assert (found.state, found.detail.partition(": ")[2]) == ("started", "9 rows are new or changed, 6 are gone")
    assert ended(UUID(found.run_id))[0] == "Completed"
    run = record(found.run_id)
    assert watched.calls() - before == len(TierName) * judged(ids)
    assert (run.summary["scope"], run.summary["kept"], champion()) == (Scope.RECHECK, kept, kept)
    assert replay(run.id, watched.written.folder).seen.identical
    assert watched.hear("labelled").state == "unchanged"


def test_changed_incoming_rows_are_the_only_ones_that_are_routed_anew(watched: Watched) -> None:
    watched.edit("incoming.jsonl", [(f"late-{n}", f"The loan of {n} ends.", None) for n in range(4)])
    before = watched.calls()
    found = watched.hear("arriving")
    assert ended(UUID(found.run_id))[0] == "Completed"
    run = record(found.run_id)
    assert (run.kind, run.started_by) == ("route", Starter.DELIVERY)
    assert 4 <= watched.calls() - before <= 8


def test_a_certificate_that_does_not_hold_any_more_is_tuned_anew_without_compiling(watched: Watched) -> None:
    ids = [f"both-{n}" for n in range(60)]
    watched.edit("labelled.jsonl", [(id_, f"The card for my loan {id_} is lost.", "loan") for id_ in ids])
    former, before = champion(), watched.calls()
    found = watched.hear("labelled")
    assert ended(UUID(found.run_id))[0] == "Completed"
    run = record(found.run_id)
    assert "kept" not in run.summary
    assert run.bundle_hash != former
    assert run.summary["prompts_of"] == former
    assert watched.calls() - before == len(TierName) * judged(ids)
    assert replay(run.id, watched.written.folder).seen.identical


def test_news_of_what_a_run_is_working_on_join_it(watched: Watched) -> None:
    watched.edit("incoming.jsonl", [("once-more", "Where is my cash?", None)])
    first, second = watched.hear("arriving"), watched.hear("arriving")
    assert (first.state, second.state) == ("started", "joined")
    assert first.run_id == second.run_id
    assert ended(UUID(first.run_id))[0] == "Completed"


def test_content_that_comes_back_is_dealt_with_again(watched: Watched) -> None:
    file = watched.written.folder / "incoming.jsonl"
    before = file.read_text()
    watched.edit("incoming.jsonl", [("for-a-while", "Where is my cash now?", None)])
    there = watched.hear("arriving")
    assert ended(UUID(there.run_id))[0] == "Completed"
    file.write_text(before)
    back = watched.hear("arriving")
    assert back.state == "started"
    assert back.run_id != there.run_id
    assert ended(UUID(back.run_id))[0] == "Completed"


def begun_in_prefect(state: State) -> UUID:
    """A flow run that the ledger has never heard of, in this state."""
    with get_client(sync_client=True) as client:
        deployed = client.read_deployment_by_name("route-batch/default")
        return client.create_flow_run_from_deployment(deployed.id, state=state).id


def said_to_be_started(dataset: str, version: str, run_id: UUID) -> None:
    """Write down that a run was started for a version of a dataset."""
    id_ = uuid.uuid4().hex
    with transaction() as db:
        receive(db, source="own", delivery_id=id_, body_hash=id_, event="updated", datasets=[(dataset, 0.0)])
        changes.settle(db, changes.waiting(db, dataset), state="started", version=version, run_id=str(run_id))


def incoming_version(watched: Watched) -> str:
    """The version that the incoming rows are now."""
    loaded = load_workload(watched.written.folder)
    rows = read_records(loaded.workload.dataset, "incoming.jsonl", watched.written.folder, labelled=False)
    return store_snapshot(rows, uri="incoming.jsonl")[0]


def test_a_run_that_ended_before_it_began_does_not_keep_its_content_for_ever(watched: Watched) -> None:
    watched.edit("incoming.jsonl", [("never-begun", "Where is the cash of nobody?", None)])
    waiting = begun_in_prefect(Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1)))
    said_to_be_started("arriving", incoming_version(watched), waiting)
    joined = watched.hear("arriving")
    assert (joined.state, joined.run_id) == ("joined", str(waiting)), "it waits for its turn"
    deployments.end(waiting, Cancelled())
    found = watched.hear("arriving")
    assert (found.state, found.run_id != str(waiting)) == ("started", True)
    assert ended(UUID(found.run_id))[0] == "Completed"
    assert watched.hear("arriving").state == "unchanged"
    assert deployments.is_over(uuid.uuid4()), "a run that Prefect does not know any more"


def test_content_that_comes_back_while_a_run_for_other_content_waits_is_dealt_with_after_it(watched: Watched) -> None:
    waiting = begun_in_prefect(Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1)))
    said_to_be_started("arriving", "f" * 64, waiting)
    back = watched.hear("arriving")
    deployments.end(waiting, Cancelled())
    assert back.state == "started", back.detail
    assert ended(UUID(back.run_id))[0] == "Unchanged"


def test_what_is_left_to_an_automation_is_announced_until_a_run_has_taken_it(watched: Watched) -> None:
    assert watched.hear("announced").state == "unchanged"
    watched.edit("incoming.jsonl", [("for-automation", "Where is the cash of an automation?", None)])
    for times in (1, 2):
        found = watched.hear("announced")
        assert (found.state, found.run_id) == ("announced", None)
        assert len(events_about("announced", times)) == times
    run_id, version = str(uuid.uuid4()), incoming_version(watched)
    with transaction() as db:
        runs.open_run(db, run_id, kind="route", workload="watched", workload_hash="0", spec={}, meters={})
        runs.change_run(db, run_id, dataset_version=version)
    joined = watched.hear("announced")
    with transaction() as db:
        runs.change_run(db, run_id, state="cancelled", ended_at=func.now())
    assert (joined.state, joined.run_id) == ("joined", run_id)
    assert watched.hear("announced").state == "announced"


def events_about(dataset: str, count: int, *, patience_s: float = 60) -> list[dict[str, Any]]:
    """What Prefect was told of a dataset, once it has stored so many events: it does so a little later."""
    wanted = {"event": {"name": [dispatching.EVENT]}, "resource": {"id": [f"headrace.dataset.{dataset}"]}}
    deadline = time.monotonic() + patience_s
    while True:
        with get_client(sync_client=True) as client:
            found = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 50}).json()["events"]
        if len(found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def test_a_file_that_cannot_be_read_fails_its_change_and_says_why(watched: Watched, tmp_path: Path) -> None:
    file = watched.written.folder / "incoming.jsonl"
    kept = file.rename(tmp_path / "kept")
    found = watched.hear("arriving")
    kept.rename(file)
    assert (found.state, found.run_id) == ("failed", None)
    assert "no such file" in found.detail


def test_a_dataset_that_is_not_listed_any_more_starts_nothing(watched: Watched) -> None:
    found = watched.hear("forgotten")
    assert (found.state, found.run_id) == ("failed", None)
    assert "triggers.yaml has no dataset 'forgotten'" in found.detail


def test_a_key_starts_one_run_and_other_parameters_under_it_are_an_error(watched: Watched) -> None:
    key, parameters = uuid.uuid4().hex, {"workload": str(watched.written.folder), "only_changed": True}
    first = start_once("optimize-workload", key, parameters=parameters, workload="watched")
    assert start_once("optimize-workload", key, parameters=parameters, workload="watched") == first
    with transaction() as db, pytest.raises(KeyReused, match="with other parameters"):
        changes.reserve(db, key, flow="optimize-workload", parameters={**parameters, "only_changed": False})
    assert ended(first)[0] in ("Unchanged", "Completed")


ALL = ("--host", "127.0.0.1")
"""A receiver with everything that goes on beside it."""
PUSH = {
    "ref": "refs/heads/main",
    "repository": {"full_name": "example/tickets"},
    "commits": [{"added": [], "modified": ["labelled.jsonl.dvc"], "removed": []}],
}
UPDATE = {
    "event": {"action": "update", "scope": "repo.content"},
    "repo": {"type": "dataset", "name": "example/tickets", "headSha": "0" * 40},
    "updatedRefs": [{"ref": "refs/heads/main", "newSha": "0" * 40}],
}


@pytest.mark.parametrize("source", ["poll", Scheme.GITHUB, Scheme.HUGGINGFACE])
def test_a_changed_file_a_push_and_a_hugging_face_payload_are_one_incremental_run_each(
    watched: Watched, source: str
) -> None:
    folder, polled = watched.written.folder.parent, source == "poll"
    file = folder / "polled.yaml"
    file.write_text(triggers(*watched.senders.values(), poll_s=1 if polled else None))
    ids = [f"{source}-{n}" for n in range(5)]
    with receiving(folder, file, *ALL, HEADRACE_WORKLOADS=str(folder)) as receiver:
        if polled:
            remembered("labelled")
        before, known = watched.calls(), newest_change()
        watched.edit("labelled.jsonl", [(id_, f"Another card, {id_}.", "card") for id_ in ids])
        if not polled:
            sender = watched.senders[Scheme(source)]
            body = json.dumps(PUSH if source == Scheme.GITHUB else UPDATE).encode()
            answer = receiver.post(sender.name, body, sender.signed(body, delivery_id=uuid.uuid4().hex))
            assert answer.status_code == 202, answer.text
        told = watched.became_of("poll" if polled else watched.senders[Scheme(source)].name, after=known)
        assert told.state == "started", told.detail
        assert ended(UUID(told.run_id))[0] == "Completed"
    calls = watched.calls() - before
    print(f"\n{source}: {told.detail}; {calls} model calls")
    assert "5 rows are new or changed, 0 are gone" in told.detail
    assert calls == len(TierName) * judged(ids)


def test_f1_a_hundred_copies_at_two_receivers_of_which_one_is_killed_before_it_starts_anything_are_one_run(
    watched: Watched,
) -> None:
    folder, sender = watched.written.folder.parent, Sender()
    file = folder / "two.yaml"
    file.write_text(triggers(sender, debounce_s=5))
    watched.edit("incoming.jsonl", [("f1", "Where is the cash of F1?", None)])
    body = updated("arriving")
    headers = sender.signed(body, delivery_id="msg_f1")
    with (
        receiving(folder, file, *ALL, HEADRACE_WORKLOADS=str(folder)) as one,
        receiving(folder, file, *ALL, HEADRACE_WORKLOADS=str(folder)) as other,
        ThreadPoolExecutor(20) as pool,
    ):

        def post(receiver: Receiver) -> int:
            return receiver.post(sender.name, body, headers).status_code

        statuses = list(pool.map(post, [one, other] * 50))
        one.process.kill()
        killed = time.monotonic()
        found = watched.became_of(sender.name)
        seconds = time.monotonic() - killed
    assert ended(UUID(found.run_id))[0] == "Completed"
    answered, runs = statuses.count(202), runs_for(found)
    print(f"\nF1: {answered} of {len(statuses)} answered 202; {runs} run, started {seconds:.1f} s after the kill")
    assert (answered, found.state, runs) == (100, "started", 1)


def test_f1_a_dispatcher_that_dies_between_the_start_and_its_own_note_of_it_leaves_one_run(watched: Watched) -> None:
    watched.edit("incoming.jsonl", [("f1-again", "Where is the cash of F1 again?", None)])
    id_ = uuid.uuid4().hex
    with transaction() as db:
        receive(db, source=id_, delivery_id=id_, body_hash=id_, event="updated", datasets=[("arriving", 0.0)])
    dying = """
import os
from infra import deployments, dispatching
from infra.settings import load_settings
start = deployments.start
def start_and_die(*given, **named):
    start(*given, **named)
    os._exit(9)
deployments.start = start_and_die
dispatching.turn(load_settings())
"""
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "HEADRACE_WORKLOADS": str(watched.settings.workloads)}
    done = subprocess.run([sys.executable, "-c", dying], cwd=ROOT, env=surroundings, check=False, timeout=120)
    assert done.returncode == 9
    dispatching.turn(watched.settings)
    found = watched.became_of(id_, patience_s=0)
    assert (found.state, runs_for(found)) == ("started", 1)
    assert ended(UUID(found.run_id))[0] == "Completed"


def remembered(dataset: str, *, patience_s: float = 60) -> None:
    """Wait for the first look at a polled dataset, which only remembers."""
    deadline = time.monotonic() + patience_s
    while True:
        with transaction() as db:
            seen = db.scalar(select(PollRow.seen).where(PollRow.dataset == dataset))
        if seen is not None and seen != polls.NEVER:
            return
        assert time.monotonic() < deadline, f"nobody has looked at {dataset}"
        time.sleep(0.1)


def newest_change() -> int:
    """The number of the newest change: other tests' pollers have left some."""
    with transaction() as db:
        return db.scalar(select(func.max(ChangeRow.number))) or 0


def runs_for(settled: Settled) -> int:
    """How many flow runs Prefect has, whoever started them, for the workload and the dataset version of a start."""
    with transaction() as db:
        start = db.scalars(select(StartRow).where(StartRow.run_id == settled.run_id)).one()
    ours = FlowRunFilter(tags=FlowRunFilterTags(all_=["workload:watched"]))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=ours, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
    same = [run for run in found if run.parameters.get("version") == start.parameters["version"]]
    assert settled.run_id in {str(run.id) for run in same}
    return len(same)
