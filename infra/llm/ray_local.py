"""A Ray of our own on this machine: started for a batch, on loopback only, ended by process id."""

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from domain.errors import ModelUnavailable
from infra.launch import start_ticks
from infra.llm.ray_jobs import Jobs

MARK = "HEADRACE_RAY"
"""In the environment of everything that this Ray starts: its temporary folder."""
OWNER = "owner"
"""In that folder: the process that started this Ray, and when that process began."""
START_S = 180.0
END_S = 30.0
OBJECT_STORE_BYTES = 512 * 1024 * 1024
"""Requests and replies on their way; the weights are not in it."""


class LocalRay:
    """`async with` starts a head and ends exactly that: no other Ray of the machine is touched."""

    def __init__(self, python: Path, *, environment: Mapping[str, str], log: Path) -> None:
        self._python = python
        self._environment = dict(environment)
        self._log = log
        self._head: subprocess.Popen[bytes] | None = None
        # Sockets live below it, and their paths may have about 100 characters: not in the home folder.
        self._folder = Path()
        self.address = ""
        self.token = secrets.token_hex(32)

    async def __aenter__(self) -> Self:
        if not self._python.exists():
            raise ModelUnavailable("the environment ray is not installed", hint="Run: python3 infra/bootstrap.py ray")
        self._folder = Path(tempfile.mkdtemp(prefix="headrace-ray-"))  # 0700
        try:
            await asyncio.to_thread(self._start)
            await self._wait()
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self._end))
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self._end))

    def processes(self) -> list[psutil.Process]:
        """Everything alive that this Ray started."""
        return _marked().get(self._folder, [])

    def _start(self) -> None:
        _end_forgotten()
        (self._folder / OWNER).write_text(f"{os.getpid()} {start_ticks(os.getpid())}")
        token = self._folder / "token"
        token.touch(0o600)
        token.write_text(self.token)
        dashboard, agent, client = _free_ports(3)
        self.address = f"http://127.0.0.1:{dashboard}"
        options = {
            "--node-ip-address": "127.0.0.1",
            "--port": "0",
            "--dashboard-host": "127.0.0.1",
            "--dashboard-port": str(dashboard),
            "--dashboard-agent-listen-port": str(agent),
            "--ray-client-server-port": str(client),
            "--min-worker-port": "0",
            "--max-worker-port": "0",
            "--include-dashboard": "true",
            # Places for tasks, not cores: reading, engine and replies must fit side by side on the smallest machine.
            "--num-cpus": str(max(os.cpu_count() or 1, 4)),
            "--object-store-memory": str(OBJECT_STORE_BYTES),
            "--temp-dir": str(self._folder / "s"),
        }
        words = [f"{name}={value}" for name, value in options.items()]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._head = subprocess.Popen(
                [str(self._python.parent / "ray"), "start", "--head", "--block", "--disable-usage-stats", *words],
                env=self._own_environment(token),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _own_environment(self, token: Path) -> dict[str, str]:
        """Nothing of ours but what is needed: the jobs' code has no business with the rest."""
        path = os.pathsep.join([str(self._python.parent), os.environ.get("PATH", os.defpath)])
        return {
            "PATH": path,
            "HOME": str(self._folder),
            "LANG": "C.UTF-8",
            **self._environment,
            MARK: str(self._folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # there is no other node that work could go to
            # Ray takes 127.0.0.1 for "find my address" and listens on every interface. Told that it is no cluster, as
            # on a desktop, it stays on loopback.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }

    async def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        async with Jobs(self.address, self.token) as jobs:
            while True:
                try:
                    await jobs.version()
                except ModelUnavailable:
                    if self._head is not None and self._head.poll() is not None:
                        raise self._failed(f"it ended with {self._head.returncode}") from None
                    if time.monotonic() > deadline:
                        raise self._failed(f"no answer within {START_S:.0f} s") from None
                    await asyncio.sleep(0.5)
                else:
                    return

    def _failed(self, cause: str) -> ModelUnavailable:
        return ModelUnavailable(f"Ray did not start: {cause} (log: {self._log})", hint="Read the log.")

    def _end(self) -> None:
        """End the head as it likes to be ended, then whatever carries our mark; nothing is left behind."""
        if self._head is not None and self._head.poll() is None:
            self._head.terminate()
        _end_all(self._folder)
        if self._head is not None:
            self._head.wait(timeout=END_S)


def _marked() -> dict[Path, list[psutil.Process]]:
    """Live processes of such Rays, by folder."""
    found: dict[Path, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            folder = process.environ().get(MARK)
            if folder and process.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(Path(folder), []).append(process)
    return found


def _end_all(folder: Path) -> None:
    """End every process of one Ray, by id, and remove its folder."""
    asked = _marked().get(folder, [])
    # Engines do not notice that their Ray has gone: they are asked too, and killed when they do not answer.
    for process in asked:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(asked, timeout=END_S)
    while alive := _marked().get(folder):
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=5)
    shutil.rmtree(folder, ignore_errors=True)


def _end_forgotten() -> None:
    """End what an owner that was killed has left behind; its job would go on for nobody."""
    for folder in _marked():
        with contextlib.suppress(OSError, ValueError):
            pid, ticks = (folder / OWNER).read_text().split()
            if str(start_ticks(int(pid))) != ticks:
                _end_all(folder)


def _free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has now."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
