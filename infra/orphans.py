"""Processes of ours that outlived their supervisor: recognised by more than a number, ended by id."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.launch import start_ticks

MARK = "HEADRACE_STACK"
"""In the environment of everything the stack starts: the run folder it belongs to."""


@dataclass(frozen=True, slots=True)
class Record:
    """What `launch` wrote down of one service before it became the program."""

    name: str
    pid: int
    ticks: int
    session: int
    stop_signal: str

    @property
    def alive(self) -> bool:
        """Does the process still run?"""
        return self.leads(self.pid)

    def leads(self, pid: int) -> bool:
        """Is this the very process, not another under the same number?"""
        return pid == self.pid and start_ticks(pid) == self.ticks


def records(run: Path) -> list[Record]:
    """Every service's record; a half-written one is skipped, its process is found by the mark."""
    found: list[Record] = []
    for path in sorted((run / "pids").glob("*.json")):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found.append(Record(name=path.stem, **json.loads(path.read_text())))
    return found


def find(run: Path) -> list[psutil.Process]:
    """All live processes of this run folder's services, children included."""
    known = records(run)
    callers = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in callers and _ours(process, known, run):
                found[process.pid] = process
                found.update((child.pid, child) for child in process.children(recursive=True))
    return list(found.values())


def end(run: Path) -> None:
    """End them: each service as it likes to be ended, then whatever is left."""
    processes = find(run)
    leaders = {record.pid: record for record in records(run)}
    for process in processes:
        record = leaders.get(process.pid)
        asked = signal.Signals[f"SIG{record.stop_signal}"] if record and record.leads(process.pid) else None
        with contextlib.suppress(psutil.Error):
            process.send_signal(asked or signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=10)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    for path in (run / "pids").glob("*.json"):
        path.unlink(missing_ok=True)


def end_process(pid: int, *, wait_s: float) -> None:
    """Wait for one process to end, and kill it if it does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for _ in _ticking(wait_s):
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return
        process.kill()


def _ours(process: psutil.Process, known: list[Record], run: Path) -> bool:
    if any(record.leads(process.pid) or _in_group(process, record) for record in known):
        return True
    return process.environ().get(MARK) == str(run)


def _in_group(process: psutil.Process, record: Record) -> bool:
    """A number stays taken while its group lives, so a group of ours cannot be another's unless its leader is."""
    if os.getpgid(process.pid) != record.pid or os.getsid(process.pid) != record.session:
        return False
    leader = start_ticks(record.pid)
    return leader is None or leader == record.ticks


def _ticking(seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.1)
