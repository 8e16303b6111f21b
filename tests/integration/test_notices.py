"""Notices with a real Postgres and a real receiver that verifies signatures as a stranger would."""

import base64
import json
import secrets
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import delete, func, select, update
from standardwebhooks.webhooks import Webhook
from typer.testing import CliRunner

from domain.audit_verdicts import Report
from domain.bundles import Gate
from domain.errors import NotFound
from domain.promotions import Act
from domain.triggers import Endpoint, NoticeEvent
from infra import cli, credentials, notices, notifying
from infra.db.session import transaction
from infra.db.store import notices as store
from infra.db.store import runs
from infra.db.trigger_tables import NoticeRow
from infra.settings import Settings
from tests.integration.begun_runs import open_run

pytestmark = pytest.mark.usefixtures("ledger")
SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ..").decode()


@dataclass
class Got:
    """A message as it came."""

    path: str
    headers: dict[str, str]
    body: str


@dataclass
class Receiver:
    """A server that answers as it is told, and keeps what came."""

    url: str = ""
    answers: list[int] = field(default_factory=list[int])
    got: list[Got] = field(default_factory=list[Got])
    meanwhile: Callable[[], None] = lambda: None

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Keep a message and answer it with the next status, 204 when there is none."""
        body = handler.rfile.read(int(handler.headers["content-length"])).decode()
        self.got.append(Got(handler.path, {k.lower(): v for k, v in handler.headers.items()}, body))
        self.meanwhile()
        status = self.answers.pop(0) if self.answers else 204
        handler.send_response(status)
        if 300 <= status < 400:
            handler.send_header("Location", f"{self.url}/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.answer(self)

        def do_GET(self) -> None:
            found.got.append(Got(self.path, {}, ""))

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # many come at once

    with Server(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()


@pytest.fixture
def settings(home: Settings, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """One endpoint that wants everything, another that wants alarms; no notice of another test is left."""
    file = tmp_path / "triggers.yaml"
    own = {"url": f"{receiver.url}/own"}
    file.write_text(
        json.dumps({"version": 1, "notify": {"own": own, "alarms": {**own, "events": [NoticeEvent.AUDIT_ALARM]}}})
    )
    monkeypatch.setenv("HEADRACE_TRIGGERS", str(file))
    found = home.model_copy(update={"triggers": file})
    for name in ("own", "alarms"):
        credentials.write(notifying.secrets_file(found, name), SECRET + "\n")
    with transaction() as db:
        db.execute(delete(NoticeRow))
    yield found
    for name in ("own", "alarms"):
        notifying.secrets_file(found, name).unlink(missing_ok=True)


def told(what: str = "", *, event: NoticeEvent = NoticeEvent.RUN_FAILED) -> str:
    """Write down that something happened; the notice's key."""
    what = what or uuid.uuid4().hex
    with transaction() as db:
        notices.tell(db, event, what, {"workload": "w", "reasons": ["größer als erlaubt"]})
    return f"{event.value}/{what}"


def rows(**wanted: str) -> list[NoticeRow]:
    with transaction() as db:
        return list(db.scalars(select(NoticeRow).filter_by(**wanted).order_by(NoticeRow.endpoint)))


def hasten() -> None:
    """The time of every waiting notice has come."""
    with transaction() as db:
        db.execute(update(NoticeRow).values(due_at=func.clock_timestamp()))


def waits(row: NoticeRow) -> float:
    with transaction() as db:
        now = db.scalar(select(func.clock_timestamp()))
    assert now is not None
    return (row.due_at - now).total_seconds()


def test_a_notice_arrives_signed_and_is_told_once(settings: Settings, receiver: Receiver) -> None:
    key = told("once")
    told("once")
    assert notifying.turn(settings) is True
    assert notifying.turn(settings) is False
    (got,) = receiver.got
    payload = Webhook(SECRET).verify(got.body, got.headers)
    assert payload["type"] == "headrace.run.failed"
    assert payload["data"] == {"workload": "w", "reasons": ["größer als erlaubt"]}
    assert got.headers["content-type"] == "application/json"
    (row,) = rows(key=key)
    assert (row.state, row.tries, row.error, row.settled_at is not None) == ("delivered", 1, "", True)
    told("once")
    assert notifying.turn(settings) is False


@pytest.mark.parametrize(
    ("secret", "said"), [("whsec_", "EmptyWebhookSecretError"), ("", "there is no secret"), ("whsec_é", "Error")]
)
def test_an_endpoint_that_cannot_be_told_stops_no_other(
    settings: Settings, receiver: Receiver, secret: str, said: str
) -> None:
    notifying.secrets_file(settings, "alarms").write_text(secret)
    key = told(event=NoticeEvent.AUDIT_ALARM)
    notifying.turn(settings)
    bad, good = rows(key=key)
    assert (bad.endpoint, bad.state) == ("alarms", "waiting")
    assert said in bad.error
    assert (good.endpoint, good.state, len(receiver.got)) == ("own", "delivered", 1)


@pytest.mark.parametrize("url", ["http://[x/", "https://", "https://h:port/", "https://h:0/", "https://h:99999/"])
def test_an_address_that_nobody_could_ask_is_refused_where_it_is_written(url: str) -> None:
    with pytest.raises(ValidationError, match="url"):
        Endpoint(url=url)


def test_an_endpoint_is_told_only_what_it_wants(settings: Settings, receiver: Receiver) -> None:
    told()
    alarm = told(event=NoticeEvent.AUDIT_ALARM)
    assert [row.endpoint for row in rows(key=alarm)] == ["alarms", "own"]
    notifying.turn(settings)
    assert len(receiver.got) == 3
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 3


def test_a_message_is_signed_with_every_secret(settings: Settings, receiver: Receiver) -> None:
    newer = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    credentials.write(notifying.secrets_file(settings, "own"), f"{newer}\n{SECRET}\n")
    told()
    notifying.turn(settings)
    (got,) = receiver.got
    for secret in (newer, SECRET):
        assert Webhook(secret).verify(got.body, got.headers)["type"] == "headrace.run.failed"


def test_a_failure_is_tried_again_later_under_the_same_id(settings: Settings, receiver: Receiver) -> None:
    receiver.answers = [500, 429]
    key = told()
    assert notifying.turn(settings) is True
    assert notifying.turn(settings) is False, "it is not time yet"
    (row,) = rows(key=key)
    assert (row.state, row.tries, row.error) == ("waiting", 1, "it answers with status 500")
    assert 0 < waits(row) <= 5
    hasten()
    notifying.turn(settings)
    assert 290 < waits(rows(key=key)[0]) <= 300
    hasten()
    notifying.turn(settings)
    assert [row.state for row in rows(key=key)] == ["delivered"]
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 1
    for got in receiver.got:
        Webhook(SECRET).verify(got.body, got.headers)
    assert len({got.body for got in receiver.got}) == 1


def test_after_the_last_try_it_is_dead_and_can_be_sent_again(settings: Settings, receiver: Receiver) -> None:
    receiver.answers = [503] * 10
    key = told()
    for n in range(1, 11):
        (row,) = rows(key=key)
        assert (row.state, row.tries) == ("waiting", n - 1)
        hasten()
        notifying.turn(settings)
    (row,) = rows(key=key)
    assert (row.state, row.tries, row.error) == ("dead", 10, "it answers with status 503")
    hasten()
    assert notifying.turn(settings) is False
    assert len(receiver.got) == 10
    with transaction() as db:
        assert [notice.key for notice in store.load(db, state="dead")] == [key]
        assert store.revive(db, key) == 1
    assert notifying.turn(settings) is True
    assert [row.state for row in rows(key=key)] == ["delivered"]
    with transaction() as db, pytest.raises(NotFound):
        store.revive(db, key)


@pytest.mark.parametrize(
    ("answer", "state", "error"),
    [
        (410, "dead", "it answers 410"),
        (302, "waiting", "status 302, and redirects are not followed"),
        (307, "waiting", "status 307, and redirects are not followed"),
        (404, "waiting", "status 404"),
    ],
)
def test_answers_that_are_no_success(
    settings: Settings, receiver: Receiver, answer: int, state: str, error: str
) -> None:
    receiver.answers = [answer]
    key = told()
    notifying.turn(settings)
    (row,) = rows(key=key)
    assert row.state == state
    assert error in row.error
    assert [got.path for got in receiver.got] == ["/own"], "nobody is led elsewhere"


def test_what_cannot_be_sent_says_why(settings: Settings, receiver: Receiver) -> None:
    key = told()
    notifying.secrets_file(settings, "own").unlink()
    notifying.turn(settings)
    assert "headrace notices secret own" in rows(key=key)[0].error
    assert settings.triggers is not None
    settings.triggers.write_text(json.dumps({"version": 1, "notify": {"own": {"url": "http://203.0.113.9/x"}}}))
    hasten()
    notifying.turn(settings)
    assert "must begin with https" in rows(key=key)[0].error
    settings.triggers.write_text(json.dumps({"version": 1, "notify": {}}))
    hasten()
    notifying.turn(settings)
    assert (rows(key=key)[0].state, rows(key=key)[0].tries) == ("dead", 3)
    assert receiver.got == []


def test_of_many_senders_each_notice_is_sent_by_one(settings: Settings, receiver: Receiver) -> None:
    for n in range(60):
        told(str(n))
    start = threading.Barrier(6)

    def send() -> None:
        start.wait()
        while notifying.turn(settings):
            pass

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(receiver.got) == len({got.headers["webhook-id"] for got in receiver.got}) == 60
    assert {row.state for row in rows()} == {"delivered"}


def test_no_lock_is_held_while_a_notice_is_sent(settings: Settings, receiver: Receiver) -> None:
    seen: list[Any] = []

    def look() -> None:
        with transaction() as db:
            seen.extend(db.scalars(select(NoticeRow.tries).with_for_update(nowait=True)))
            seen.append(notifying.turn(settings))

    receiver.meanwhile = look
    told()
    notifying.turn(settings)
    assert seen == [1, False], "nobody else sends it meanwhile"
    assert len(receiver.got) == 1


def test_a_sender_that_died_is_replaced_and_has_no_say_any_more(settings: Settings, receiver: Receiver) -> None:
    key = told()
    with transaction() as db:
        (lost,) = store.claim(db, most=5, lease_s=60)
    assert notifying.turn(settings) is False
    hasten()  # its time is over
    receiver.answers = [500]
    notifying.turn(settings)
    with transaction() as db:
        store.settle(db, lost, state="delivered")
    (row,) = rows(key=key)
    assert (row.state, row.tries) == ("waiting", 2)


def test_a_receiver_that_never_answers_is_given_up(settings: Settings, receiver: Receiver) -> None:
    done = threading.Event()
    receiver.meanwhile = lambda: (done.wait(20), None)[1]
    key = told()
    notifying.turn(settings, try_s=0.3)
    done.set()
    (row,) = rows(key=key)
    assert (row.state, row.tries) == ("waiting", 1)
    assert "Timeout" in row.error


def test_what_was_undone_is_not_told(settings: Settings) -> None:
    def fail() -> None:
        with transaction() as db:
            notices.tell(db, NoticeEvent.PROMOTED, "undone", {})
            raise RuntimeError("undone")

    with pytest.raises(RuntimeError):
        fail()
    assert rows() == []


def test_gates_alarms_and_ends_of_runs_are_told_in_words(settings: Settings) -> None:
    run = open_run()
    with transaction() as db:
        runs.add_links(db, run, {"prefect": "https://user:password@host/runs/1"})
        for _ in range(2):
            notices.gate(db, Gate(False, ("too few rows",)), workload="w", bundle_hash="b", run_id=run)
            notices.gate(db, Gate(True, ()), workload="w", bundle_hash="b", run_id=run)
            notices.audit(db, Report(verdict="quiet"), workload="w", bundle_hash="b", run_id=run)
            notices.audit(
                db, Report(verdict="alarm", alarms=("it loses more",)), workload="w", bundle_hash="b", run_id=run
            )
            for state in ("completed", "cancelled", "paused", "failed"):
                notices.end(db, run, state)
            notices.promotion(db, Act.FORCED, workload="w", bundle_hash="b", reasons=["by hand"])
    found = [row.payload for row in rows(endpoint="own")]
    assert sorted(payload["type"] for payload in found) == sorted(
        [
            "headrace.gate.failed", "headrace.bundle.promoted", "headrace.audit.alarm", "headrace.run.failed",
            "headrace.bundle.promoted", "headrace.bundle.promoted",
        ]
    )  # fmt: skip
    of_run = [payload["data"] for payload in found if payload["data"]["run"] == run]
    assert {json.dumps(data["links"]) for data in of_run} == {'{"prefect": "https://host/runs/1"}'}
    assert sorted(reason for data in of_run for reason in data["reasons"]) == [
        "it loses more", "the run failed; its page says why", "too few rows",
    ]  # fmt: skip


def test_a_broken_configuration_stops_nothing(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    assert settings.triggers is not None
    settings.triggers.write_text("version: 2\n")
    told()
    assert rows() == []
    assert "nobody can be told" in caplog.text


def test_the_command_line_lists_retries_tries_and_makes_secrets(
    home: Settings, settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(home.home))
    ask = CliRunner()
    receiver.answers = [410]
    key = told()
    notifying.turn(settings)
    listed = ask.invoke(cli.app, ["notices", "--dead", "--json"])
    assert [(found["key"], found["state"]) for found in json.loads(listed.stdout)] == [(key, "dead")]
    assert key in ask.invoke(cli.app, ["notices"]).stdout
    assert ask.invoke(cli.app, ["notices", "retry", key]).exit_code == 0
    assert notifying.turn(settings) is True
    assert json.loads(ask.invoke(cli.app, ["notices", "--dead", "--json"]).stdout) == []
    receiver.got.clear()
    tried = ask.invoke(cli.app, ["notices", "test", "own"])
    assert tried.exit_code == 0, tried.output
    (got,) = receiver.got
    assert Webhook(SECRET).verify(got.body, got.headers)["type"] == "headrace.test"
    receiver.answers = [500]
    assert ask.invoke(cli.app, ["notices", "test", "own"]).exit_code == 1
    assert isinstance(ask.invoke(cli.app, ["notices", "test", "nobody"]).exception, NotFound)
    made = ask.invoke(cli.app, ["notices", "secret", "own", "--rotate"]).stdout.splitlines()[0]
    assert notifying.secrets_of(settings, "own") == [made, SECRET]
    ask.invoke(cli.app, ["notices", "secret", "own", "--drop-old"])
    assert notifying.secrets_of(settings, "own") == [made]
