"""The processes of a benchmark: the mock model, a client that prints its figures, and its memory seen from outside."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil

ROOT = Path(__file__).resolve().parents[1]
Json = dict[str, Any]


class BenchmarkError(Exception):
    """A process of a benchmark that did not do its work."""


@dataclass(frozen=True, slots=True)
class Mock:
    """A running mock model server."""

    base_url: str
    process: subprocess.Popen[bytes]

    def calls(self) -> int:
        """Calls it has answered since it started."""
        return int(self._count()["calls"])

    def first_call_at(self) -> float:
        """When the first call came, seconds on the monotonic clock; 0 when none did."""
        return float(self._count()["first_at"])

    def _count(self) -> Json:
        with urllib.request.urlopen(self.base_url.removesuffix("/v1") + "/_calls", timeout=10) as answer:  # noqa: S310
            return cast(Json, json.load(answer))


@contextmanager
def mock_model() -> Generator[Mock]:
    """A mock model server, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="headrace-mock-") as folder:
        port = Path(folder, "port")
        command = [sys.executable, "-m", "benchmarks.mock_model", "--port-file", str(port)]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        try:
            deadline = time.monotonic() + 30
            while not port.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchmarkError("the mock model did not start")
                time.sleep(0.02)
            yield Mock(f"http://127.0.0.1:{port.read_text()}/v1", process)
        finally:
            process.terminate()
            process.wait(10)


@dataclass(frozen=True, slots=True)
class Sample:
    """A process's memory at one moment: bytes resident, and how far it was."""

    at: float
    rss: int
    done: int


@dataclass(slots=True)
class Ran:
    """What a client process printed, its samples, and how it ended."""

    figures: Json
    code: int
    began: float
    samples: list[Sample] = field(default_factory=list[Sample])


def run(
    arguments: Sequence[str],
    *,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    done: Callable[[], int] | None = None,
    kill_at: int | None = None,
    timeout_s: float = 7200,
) -> Ran:
    """Run `python arguments` and read the JSON of its last line.

    With `done` (how many rows are through) its memory is sampled five times a second; with `kill_at` too it is killed
    with SIGKILL once so many are. Raises BenchmarkError when it fails in any other way.
    """
    with tempfile.TemporaryFile() as errors:
        began = time.monotonic()
        process = subprocess.Popen(
            [python, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        ran = Ran({}, 0, began)
        watcher = threading.Thread(target=_watch, args=(process, ran, done, kill_at), daemon=True) if done else None
        if watcher:
            watcher.start()
        try:
            out, _ = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
        if watcher:
            watcher.join()
        ran.code = process.returncode
        if ran.code == -signal.SIGKILL and kill_at is not None:
            return ran
        if ran.code != 0:
            errors.seek(0)
            tail = errors.read().decode(errors="replace")[-2000:]
            raise BenchmarkError(f"{' '.join(arguments[:3])} ended with {ran.code}:\n{tail}")
        ran.figures = cast(Json, json.loads(out.decode().strip().splitlines()[-1]))
        return ran


def _watch(process: subprocess.Popen[bytes], ran: Ran, done: Callable[[], int] | None, kill_at: int | None) -> None:
    seen = psutil.Process(process.pid)
    while process.poll() is None and done is not None:
        try:
            family = [seen, *seen.children(recursive=True)]
            rss = sum(one.memory_info().rss for one in family)
        except psutil.Error:
            return
        ran.samples.append(Sample(time.monotonic(), rss, done()))
        if kill_at is not None and ran.samples[-1].done >= kill_at:
            process.kill()
            return
        time.sleep(0.2)
