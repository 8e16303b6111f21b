"""What does harm, and what looks on: processes that run and die, and counts to wait for."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
from sqlalchemy.engine import make_url

from infra.llm.scripted import CallReport, Script
from tests.faults.proxy import Proxy

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300.0
"""Nothing that a test waits for takes as long, on whatever machine."""
WINDOW = 16
SURROUNDINGS = {
    "HEADRACE_WINDOW": str(WINDOW),
    "HEADRACE_IN_FLIGHT": "8",
    "HEADRACE_LEASE_S": "3",
    "HEADRACE_CHUNK_ROWS": "300",
    "HEADRACE_OUTAGE_PATIENCE_S": "120",
    "HEADRACE_STORE_PATIENCE_S": "90",
    "HEADRACE_REQUEST_DEADLINE_S": "60",
}


def wait_for(happened: Callable[[], Any], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Look again and again until it is true; raises AssertionError when it never becomes so."""
    deadline = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < deadline, f"waited {patience_s:g} s for {what}"
        time.sleep(0.05)


@dataclass
class Flow:
    """One process that carries out a run."""

    pid: int
    out: Path
    ended: threading.Event = field(default_factory=threading.Event)
    code: int | None = None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Its exit code; negative for a signal."""
        assert self.ended.wait(patience_s), f"still running after {patience_s:g} s: {self.said()}"
        assert self.code is not None
        return self.code

    def finish(self) -> dict[str, Any]:
        """What it said at its end; raises AssertionError unless it succeeded."""
        code = self.wait()
        assert code == 0, f"ended with {code}: {self.said()}"
        return self.last()

    def last(self) -> dict[str, Any]:
        """Its last word."""
        return json.loads(self.said().strip().splitlines()[-1])

    def said(self) -> str:
        """All it has printed."""
        return self.out.read_text() if self.out.exists() else ""


class Foreman:
    """Starts runs as processes that a prepared process forks: `with Foreman(folder) as foreman`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._flows: dict[int, Flow] = {}
        self._started: queue.Queue[int] = queue.Queue()
        self._orders = threading.Lock()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.driver", "--serve"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()
        self._started.get(timeout=PATIENCE_S)
        assert self._process.poll() is None, "the driver cannot be started"
        return self

    def __exit__(self, *_: object) -> None:
        for flow in self._flows.values():
            if not flow.ended.is_set():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(flow.pid, signal.SIGKILL)
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._listening.join(PATIENCE_S)
        self._process.stdout.close()

    def _listen(self) -> None:
        for line in self._process.stdout:
            said = json.loads(line)
            if "code" in said:
                flow = self._flows[said["pid"]]
                flow.code = said["code"]
                flow.ended.set()
            else:
                pid = said.get("pid", 0)
                if pid:
                    self._flows[pid] = Flow(pid, self._out)
                self._started.put(pid)
        self._started.put(0)  # it has ended

    def start(self, workload: Path, run_id: str, *arguments: str, **environment: str) -> Flow:
        """Start a run, or go on with one."""
        with self._orders:
            self._out = self._folder / f"{run_id}-{uuid.uuid4().hex[:6]}.out"
            order = {
                "environment": {**os.environ, "PYTHONPATH": str(ROOT), **SURROUNDINGS, **environment},
                "arguments": ["--workload", str(workload), "--run-id", run_id, *arguments],
                "out": str(self._out),
            }
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            return self._flows[self._started.get(timeout=PATIENCE_S)]

    def kill(self) -> None:
        """Kill the parent of all its runs, and of them none."""
        self._process.kill()
        self._process.wait(PATIENCE_S)


@dataclass
class FakeWorker:
    """A fake model server as a process, on a port of its own that it keeps when it is started again."""

    script: Script
    folder: Path
    prefix: Sequence[str] = ()
    port: int = 0

    def start(self) -> None:
        """Start it, and wait until it listens."""
        script = self.folder / f"script-{uuid.uuid4().hex[:6]}.json"
        script.write_text(self.script.model_dump_json())
        command = [*self.prefix, sys.executable, "-m", "infra.llm.scripted"]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--script", str(script)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        self.port = json.loads(self.process.stdout.readline())["port"]

    @property
    def base_url(self) -> str:
        """What an OpenAI client wants."""
        return f"http://127.0.0.1:{self.port}/v1"

    def calls(self) -> CallReport:
        """Its counts since it was started."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_calls", timeout=60) as answer:
            return CallReport.model_validate_json(answer.read())

    def healthy(self) -> bool:
        """Whether it says so itself."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=60) as answer:
            return answer.status == 200

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> None:
        """Kill it if it lives."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.process.kill()
        self.process.wait(PATIENCE_S)
        self.process.stdout.close()


@contextmanager
def fake_worker(script: Script, folder: Path) -> Generator[FakeWorker]:
    """A fake model server in a process of its own, until the end of the block."""
    worker = FakeWorker(script, folder)
    worker.start()
    try:
        yield worker
    finally:
        worker.end()


@contextmanager
def restarting(worker: FakeWorker) -> Generator[list[int]]:
    """Start a fake worker again whenever it ends; yields the exit codes of those that did."""
    deaths: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            code = worker.process.poll()
            if code is not None and not over.is_set():
                deaths.append(code)
                worker.end()
                worker.start()
            over.wait(0.02)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield deaths
    finally:
        over.set()
        thread.join(PATIENCE_S)


def asked_again(rows: Mapping[str, int]) -> int:
    """Calls beyond the first of each row."""
    return sum(rows.values()) - len(rows)


def behind(proxy: Proxy, ledger: str, folder: Path) -> dict[str, str]:
    """The surroundings in which Postgres is reached through a proxy."""
    url = make_url(ledger)
    passwords = folder / "pgpass"  # they are given by port
    passwords.write_text(Path(os.environ["PGPASSFILE"]).read_text().replace(f":{url.port}:", f":{proxy.port}:"))
    passwords.chmod(0o600)
    through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
    return {"HEADRACE_DATABASE_URL": through, "PGPASSFILE": str(passwords)}
