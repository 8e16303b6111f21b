"""A Postgres behind a network that fails: answers that never come, and what a repeated write leaves."""

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from domain.errors import StoreError
from infra.db.session import engine_for, retried, transaction
from infra.db.store import runs
from infra.db.tables import ProgressRow


@dataclass
class Proxy:
    """Passes everything on, until `falls_silent` says that a connection shall hear and say nothing more."""

    to: tuple[str, int]
    before: bool
    """Whether the COMMIT itself is lost, or only its answer."""
    left: int = 1
    """How many connections may still fall silent."""
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    open: list[socket.socket] = field(default_factory=list[socket.socket])

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def serve(self) -> None:
        """Take connections until the listener is closed."""
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.to)
            self.open += [client, server]
            silent = threading.Event()
            for source, target, outward in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass, args=(source, target, silent, outward), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, silent: threading.Event, outward: bool) -> None:
        try:
            while data := source.recv(65536):
                commits = outward and b"COMMIT" in data and self.left > 0
                if commits:
                    self.left -= 1
                    if self.before:
                        silent.set()
                if not silent.is_set():
                    if commits:
                        silent.set()
                    target.sendall(data)
        except OSError:
            pass  # the test is over

    def close(self) -> None:
        for each in (self.listener, *self.open):
            each.close()


@pytest.fixture(params=[True, False], ids=["commit-lost", "answer-lost"])
def proxy(
    request: pytest.FixtureRequest, ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    """Between this process and Postgres; the next COMMIT is its last word."""
    url = make_url(ledger)
    between = Proxy((url.host or "", url.port or 0), before=request.param)
    threading.Thread(target=between.serve, daemon=True).start()
    through = url.set(host="127.0.0.1", port=between.port).render_as_string(hide_password=False)
    monkeypatch.setenv("HEADRACE_DATABASE_URL", through)
    passwords = tmp_path / "pgpass"  # they are given by port
    passwords.write_text(Path(os.environ["PGPASSFILE"]).read_text().replace(f":{url.port}:", f":{between.port}:"))
    passwords.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    yield between
    engine_for(through).dispose()
    between.close()


def test_a_commit_that_is_not_answered_is_repeated_and_leaves_one_row(run_id: str, proxy: Proxy) -> None:
    tries: list[int] = []

    def write(db: Session) -> None:
        tries.append(1)
        runs.save_progress(db, run_id, "stage", done=len(tries), total=2, unit="rows")

    retried(write)
    assert (len(tries), proxy.left) == (2, 0)
    with transaction() as db:
        rows = db.scalars(select(func.count()).select_from(ProgressRow).where(ProgressRow.run_id == run_id)).one()
        assert rows == 1
        assert [stage.done for stage in runs.load_progress(db, run_id)] == [2]


def test_a_transaction_whose_commit_is_not_answered_fails_as_retryable(run_id: str, proxy: Proxy) -> None:
    with pytest.raises(StoreError) as raised, transaction() as db:
        runs.change_run(db, run_id, state="written")
    assert raised.value.retryable
