"""The receiver as its senders see it: a process, real Postgres, and nothing believed that is not signed."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from domain.triggers import Scheme
from infra.settings import load_settings
from infra.webhooks import LARGEST, make_app
from tests.integration.receivers import (
    DATASETS,
    Receiver,
    Sender,
    free_port,
    inbox,
    raw,
    receiving,
    receiving_here,
    run_cli,
    updated,
    write_triggers,
)


@pytest.fixture(scope="module")
def senders(ledger: str) -> dict[Scheme, Sender]:
    return {scheme: Sender(scheme) for scheme in Scheme}


@pytest.fixture(scope="module")
def silent(ledger: str) -> Sender:
    """A source that is declared and has no secret."""
    sender = Sender()
    sender.keep()
    return sender


@pytest.fixture(scope="module")
def triggers(senders: dict[Scheme, Sender], silent: Sender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triggers(tmp_path_factory.mktemp("triggers"), *senders.values(), silent)


@pytest.fixture(scope="module")
def receiver(triggers: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with receiving(tmp_path_factory.mktemp("receiver"), triggers) as found:
        yield found


@pytest.fixture
def own(senders: dict[Scheme, Sender]) -> Sender:
    return senders[Scheme.STANDARD]


def test_a_message_is_kept_once_and_its_id_is_its_own(receiver: Receiver, own: Sender) -> None:
    body, delivery = updated(), f"msg_{time.time_ns()}"
    headers = own.signed(body, delivery_id=delivery)
    first = receiver.post(own.name, body, headers)
    assert first.status_code == 202, first.text
    assert first.json() == {"status": "received", "delivery": delivery, "datasets": [DATASETS[0]]}
    again = receiver.post(own.name, body, headers)
    assert (again.status_code, again.json()["status"]) == (202, "repeated")
    other = updated(DATASETS[1])
    assert receiver.post(own.name, other, own.signed(other, delivery_id=delivery)).status_code == 409
    assert [found for found in inbox(own.name) if found[0] == delivery] == [
        (delivery, "headrace.dataset.updated", (DATASETS[0],))
    ]
    assert "server" not in first.headers


def test_what_means_nothing_is_kept_and_starts_nothing(receiver: Receiver, own: Sender) -> None:
    for n, body in enumerate([updated("nobody"), b'{"type": "x\\u0000y"}', b"{}"]):
        delivery = f"nothing_{time.time_ns()}_{n}"
        answer = receiver.post(own.name, body, own.signed(body, delivery_id=delivery))
        assert (answer.status_code, answer.json()["status"]) == (202, "nothing for us")
        assert [found[2] for found in inbox(own.name) if found[0] == delivery] == [()]


@pytest.mark.parametrize("scheme", Scheme)
def test_send_test_for_each_scheme(
    receiver: Receiver, senders: dict[Scheme, Sender], triggers: Path, scheme: Scheme
) -> None:
    sender = senders[scheme]
    before = len(inbox(sender.name))
    sent = run_cli(
        "send-test", sender.name, DATASETS[0], "--url", receiver.url, "--json", HEADRACE_TRIGGERS=str(triggers)
    )
    assert sent.returncode == 0, sent.stdout + sent.stderr
    said = json.loads(sent.stdout)
    assert (said["status"], json.loads(said["answer"])["status"]) == (202, "received")
    assert sender.secret not in sent.stdout + sent.stderr
    assert DATASETS[0] in inbox(sender.name)[-1][2]
    assert len(inbox(sender.name)) == before + 1


@pytest.mark.parametrize("scheme", Scheme)
def test_unsigned_and_wrongly_signed_are_refused(
    receiver: Receiver, senders: dict[Scheme, Sender], scheme: Scheme
) -> None:
    sender, body = senders[scheme], updated()
    before = inbox(sender.name)
    other = Sender(scheme)
    for headers in ({}, other.signed(body, delivery_id="x")):
        answer = receiver.post(sender.name, body, headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Signature")
    assert inbox(sender.name) == before


def test_unknown_sources_and_sources_without_a_secret(receiver: Receiver, own: Sender, silent: Sender) -> None:
    body = updated()
    signed = own.signed(body, delivery_id="x")
    assert receiver.post("nobody", body, signed).status_code == 404
    assert receiver.post("..%2f..%2fsecrets", body, signed).status_code == 404
    assert receiver.post(silent.name, body, signed).status_code == 401
    assert f"{silent.name}: a message was not believed: the source has no secret" in receiver.said()


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"a": 1, "a": 1}', b'{"a": NaN}', b"[" * 100_000, b'{"a": 1e999}'])
def test_signed_rubbish_is_refused(receiver: Receiver, own: Sender, body: bytes) -> None:
    answer = receiver.post(own.name, body, own.signed(body, delivery_id=f"r_{time.time_ns()}"))
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("body: ")


def test_probes_are_answered_and_learn_nothing(receiver: Receiver, own: Sender) -> None:
    with httpx.Client(base_url=receiver.url, trust_env=False) as client:
        answers = [client.request(method, f"/hooks/{name}") for method in ("HEAD", "GET") for name in (own.name, "no")]
        assert {(answer.status_code, answer.content) for answer in answers} == {(200, b"")}
        assert client.put(f"/hooks/{own.name}").status_code == 405
        assert client.get("/docs").status_code == client.post(f"/hooks/{own.name}/").status_code == 404
        assert client.get("/health").json() == {"status": "ok"}
        assert own.name not in client.get("/openapi.json").text


@pytest.mark.parametrize("announced", [True, False])
def test_a_large_body_is_answered_before_it_is_read(receiver: Receiver, own: Sender, announced: bool) -> None:
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=20) as connection:
        how = f"Content-Length: {50 * 2**20}" if announced else "Transfer-Encoding: chunked"
        connection.sendall(f"POST /hooks/{own.name} HTTP/1.1\r\nHost: x\r\n{how}\r\n\r\n".encode())
        if not announced:
            for _ in range(5):
                connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_the_largest_body_is_read(receiver: Receiver, own: Sender) -> None:
    def padded(size: int) -> bytes:
        return updated(pad="x" * (size - len(updated(pad=""))))

    for size, status in ((LARGEST, 202), (LARGEST + 1, 413)):
        body = padded(size)
        assert len(body) == size
        answer = receiver.post(own.name, body, own.signed(body, delivery_id=f"large_{time.time_ns()}"))
        assert answer.status_code == status
        assert answer.headers.get("connection") == ("close" if status == 413 else None)


def test_a_sender_who_finishes_a_large_body_gets_its_answer(receiver: Receiver, own: Sender) -> None:
    body = b"x" * (8 * 2**20)
    head = f"POST /hooks/{own.name} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    assert raw(receiver.port, head + body).startswith(b"HTTP/1.1 413 ")


def test_a_slow_body_is_given_up(receiver: Receiver, own: Sender) -> None:
    head = f"POST /hooks/{own.name} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{"
    assert raw(receiver.port, head.encode(), wait_s=30).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("beginning", [b"", b"POST /hooks/", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_a_slow_head_is_given_up(receiver: Receiver, beginning: bytes) -> None:
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=60) as connection:
        connection.sendall(beginning)
        assert connection.recv(1) == b"", "closed; a sender that is waited for would have us time out"


def test_secrets_change_without_a_restart(receiver: Receiver, own: Sender, triggers: Path) -> None:
    where = {"HEADRACE_TRIGGERS": str(triggers)}
    body, old = updated(), own.secret

    def status() -> int:
        return receiver.post(own.name, body, own.signed(body, delivery_id=f"rot_{time.time_ns()}")).status_code

    assert run_cli("secret", own.name, **where).returncode == 2, "there is one"
    made = run_cli("secret", own.name, "--rotate", **where)
    assert made.returncode == 0, made.stderr
    assert status() == 202, "the old one is valid still"
    own.secret = made.stdout.strip()
    assert own.secret != old
    assert status() == 202
    dropped = run_cli("secret", own.name, "--drop-old", **where)
    assert dropped.returncode == 0
    assert own.secret not in dropped.stdout
    assert status() == 202
    new, own.secret = own.secret, old
    assert status() == 401
    own.secret = new
    assert run_cli("secret", "nobody", **where).returncode == 2


def test_deliveries_are_listed_and_replayed(receiver: Receiver, own: Sender, triggers: Path, tmp_path: Path) -> None:
    body, delivery = updated(), f"again_{time.time_ns()}"
    assert receiver.post(own.name, body, own.signed(body, delivery_id=delivery)).status_code == 202
    where = {"HEADRACE_TRIGGERS": str(triggers)}
    replayed = run_cli("replay", delivery, **where)
    assert replayed.returncode == 0, replayed.stderr
    listed = json.loads(run_cli("deliveries", "--json", **where).stdout)
    mine = next(found for found in listed if found["delivery_id"] == delivery)
    assert [(c["dataset"], c["state"], c["detail"]) for c in mine["changes"]] == [
        (DATASETS[0], "waiting", ""),
        (DATASETS[0], "waiting", "replayed"),
    ]
    assert mine["key"][:10] in run_cli("deliveries", **where).stdout
    assert run_cli("replay", mine["key"][:16], **where).returncode == 0
    assert run_cli("replay", "no such", **where).returncode == 2
    narrower = {"HEADRACE_TRIGGERS": str(write_triggers(tmp_path, Sender()))}
    refused = run_cli("replay", delivery, **narrower)
    assert refused.returncode == 2
    assert "may name none of" in refused.stderr


def test_a_log_without_queries_and_secrets(receiver: Receiver, senders: dict[Scheme, Sender]) -> None:
    for scheme in (Scheme.HUGGINGFACE, Scheme.S3):
        sender = senders[scheme]
        headers = sender.signed(b"{}", delivery_id="")
        receiver.post(f"{sender.name}?secret={sender.secret}", b"{}", headers)
    assert f"POST /hooks/{senders[Scheme.S3].name} 202" in receiver.said()
    assert not any(sender.secret in receiver.said() for sender in senders.values())


def test_without_postgres_a_sender_is_asked_to_come_again(
    triggers: Path, own: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_TRIGGERS", str(triggers))
    monkeypatch.setenv("HEADRACE_DATABASE_URL", f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none")
    with receiving_here(make_app(load_settings())) as url, httpx.Client(base_url=url, trust_env=False) as client:
        body = updated()
        headers = own.signed(body, delivery_id=f"late_{time.time_ns()}")
        answer = client.post(f"/hooks/{own.name}", content=body, headers=headers)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
        assert client.post(f"/hooks/{own.name}", content=body).status_code == 401


def test_stopping_is_graceful(triggers: Path, tmp_path: Path) -> None:
    with receiving(tmp_path, triggers) as receiver:
        assert receiver.end() == 0, receiver.said()
        assert "receiving no more" in receiver.said()


def test_what_serve_refuses(receiver: Receiver, triggers: Path, tmp_path: Path) -> None:
    where = {"HEADRACE_TRIGGERS": str(triggers)}
    for host in ("0.0.0.0", "::", "example.org"):  # noqa: S104 - refused
        refused = run_cli("serve", "--host", host, "--port", "0", **where)
        assert refused.returncode == 2
        assert "--behind-proxy" in refused.stderr
    taken = run_cli("serve", "--port", str(receiver.port), **where)
    assert (taken.returncode, "cannot be listened on" in taken.stderr) == (3, True)
    broken = tmp_path / "triggers.yaml"
    broken.write_text("version: 2\n")
    assert run_cli("serve", "--port", "0", HEADRACE_TRIGGERS=str(broken)).returncode == 2


def test_a_broken_configuration_is_our_fault_and_no_message_is_lost(own: Sender, tmp_path: Path) -> None:
    file = write_triggers(tmp_path, own)
    good = file.read_text()
    with receiving(tmp_path, file) as receiver:
        body = updated()
        headers = own.signed(body, delivery_id=f"broken_{time.time_ns()}")
        file.write_text("version: 2\n")
        assert receiver.post(own.name, body, headers).status_code == 503
        file.write_text(good)
        assert receiver.post(own.name, body, headers).status_code == 202
