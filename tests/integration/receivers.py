"""Receivers of webhooks as processes, and what senders would send them."""

import contextlib
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import text

from domain.deliveries import UPDATED
from domain.triggers import Scheme
from infra import cli, credentials, signatures
from infra.db.session import transaction
from infra.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
DATASETS = ("tickets", "letters")
Json = dict[str, Any]
_numbers = itertools.count()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Sender:
    """A source of its own with a fresh secret, allowed to name both datasets."""

    scheme: Scheme = Scheme.STANDARD
    name: str = field(default_factory=lambda: f"s{os.getpid()}-{time.time_ns() % 10**9}-{next(_numbers)}")
    secret: str = ""

    def __post_init__(self) -> None:
        self.secret = signatures.new_secret(self.scheme)
        self.keep(self.secret)

    def keep(self, *secrets: str) -> None:
        """Make these the valid ones."""
        credentials.write(signatures.secrets_file(load_settings(), self.name), "".join(f"{s}\n" for s in secrets))

    def signed(self, body: bytes, *, delivery_id: str, now: float | None = None, event: str = "push") -> dict[str, str]:
        """Headers that make a body one of this sender's."""
        at = time.time() if now is None else now
        return signatures.sign(self.scheme, self.secret, body, delivery_id=delivery_id, now=at, event=event)


def write_triggers(folder: Path, *senders: Sender, **more: Any) -> Path:
    """A triggers.yaml in which each of the senders may name each dataset."""
    datasets = {
        name: {"workload": "support-triage", "sources": {sender.name: {} for sender in senders}, "debounce_s": 3600}
        for name in DATASETS
    }
    file = folder / "triggers.yaml"
    sources = {sender.name: {"scheme": str(sender.scheme)} for sender in senders}
    file.write_text(json.dumps({"version": 1, "sources": sources, "datasets": datasets, **more}))
    return file


def updated(dataset: str = DATASETS[0], **more: Any) -> bytes:
    """A body that says, in our own terms, that a dataset has changed."""
    return json.dumps({"type": UPDATED, "data": {"dataset": dataset}, **more}).encode()


@dataclass
class Receiver:
    """One process of `headrace webhooks serve`."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, source: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
        """Send it one message."""
        with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
            return client.post(f"{self.url}/hooks/{source}", content=body, headers=dict(headers))

    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text()

    def end(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


def run_cli(*arguments: str, **environment: str) -> Said:
    """One command of `headrace webhooks`, in this process: a fresh one takes seconds to import everything."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(os, "environ", os.environ.copy())
        patch.setattr(sys, "argv", ["headrace", "webhooks", *arguments])
        os.environ.update(environment)
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Said(code, out.getvalue(), err.getvalue())


@contextmanager
def receiving(folder: Path, triggers: Path, *arguments: str, **environment: str) -> Generator[Receiver]:
    """A receiver that listens and, unless arguments for `serve` are given, does nothing else; at the end it is gone.

    So are the changes that nobody has dealt with: other tests' dispatchers would find them.
    """
    port, extra = free_port(), arguments or ("--only-receive",)
    log = folder / f"receiver-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", "webhooks", "serve", "--port", str(port), *extra],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HEADRACE_TRIGGERS": str(triggers), **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    receiver = Receiver(port, process, log)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _answers(receiver):
            assert process.poll() is None, receiver.said()
            assert time.monotonic() < deadline, receiver.said()
            time.sleep(0.05)
        yield receiver
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE_S)
        _forget()


def _forget() -> None:
    query = "UPDATE changes SET state = 'failed', settled_at = now() WHERE dataset = ANY(:names) AND state = 'waiting'"
    with transaction() as db:
        db.execute(text(query), {"names": list(DATASETS)})


@contextmanager
def receiving_here(app: FastAPI) -> Generator[str]:
    """The same application in a thread of ours: its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)


def _answers(receiver: Receiver) -> bool:
    with contextlib.suppress(OSError, urllib.error.URLError):
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{receiver.url}/health", timeout=5) as answer:
            return answer.status == 200
    return False


def inbox(source: str) -> list[tuple[str, str, Sequence[str]]]:
    """(delivery id, event, dataset of each change) of each delivery of a source."""
    query = text(
        """SELECT d.delivery_id, d.event, array_remove(array_agg(c.dataset ORDER BY c.number), NULL)
           FROM deliveries d LEFT JOIN changes c ON c.delivery_key = d.key
           WHERE d.source = :source GROUP BY d.key, d.delivery_id, d.event, d.received_at ORDER BY d.received_at"""
    )
    with transaction() as db:
        return [(row[0], row[1], tuple(row[2])) for row in db.execute(query, {"source": source})]


def raw(port: int, data: bytes | Iterable[bytes], *, wait_s: float = 20.0) -> bytes:
    """Send bytes as they are, and read all that comes back until the peer closes, or says nothing for so long."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as connection:
        with contextlib.suppress(ConnectionError):
            for part in [data] if isinstance(data, bytes) else data:
                connection.sendall(part)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while chunk := connection.recv(65536):
                answer += chunk
    return answer
