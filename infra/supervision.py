"""The door to supervisor: one daemon per home folder that starts, restarts and stops our programs, and no others."""

import contextlib
import hashlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport  # pyright: ignore[reportMissingTypeStubs]

from domain.errors import HeadraceError
from infra import credentials, launch, orphans
from infra.settings import Settings

INHERITED_AND_UNWANTED = (
    "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV",
    "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGPASSWORD", "PGSERVICE",
)  # fmt: skip
"""Variables of the caller's shell that would bend every program."""


STOP_AT_MOST_S = 30
_PYTHON = Path(sys.prefix).resolve() / "bin" / "python"
"""The same path whichever link to the environment was used: another one would look like a changed configuration."""


class SupervisionError(HeadraceError):
    """The supervisor itself does not come up."""

    hint = "Run `headrace down`, then `headrace up`."


@dataclass(frozen=True, slots=True)
class Stop:
    """How a program ends: the signal it understands, how long it may take, and whether its children get it too."""

    signal: str = "TERM"
    wait_s: int = 10
    group: bool = True


@dataclass(frozen=True, slots=True)
class Program:
    """One process to keep alive."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    stop: Stop
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """What the supervisor says of a program."""

    state: str
    """STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL, UNKNOWN, or ABSENT without a supervisor."""
    pid: int | None = None
    started: float = 0.0

    @property
    def up(self) -> bool:
        """Is there a process, as far as the supervisor knows?"""
        return self.state in {"STARTING", "RUNNING"}

    @property
    def ended(self) -> bool:
        """Did it end on its own?"""
        return self.state in {"BACKOFF", "EXITED", "FATAL"}


class Supervisor:
    """The supervisor of one home folder."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._run = settings.home / "run"
        self._socket = _socket_path(self._run)

    def log_path(self, name: str) -> Path:
        """Everything a program prints."""
        return self._settings.home / "logs" / f"{name}.log"

    def ensure(self, programs: Mapping[str, Stop]) -> None:
        """Have a supervisor that knows these programs; what an earlier, killed one left behind ends first."""
        for folder in (self._run, self._run / "pids", self._settings.home / "logs"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = self._run / "supervisord.conf"
        text = self._config(programs)
        changed = not config.exists() or config.read_text() != text
        if not self.running():
            orphans.end(self._run)
            credentials.write(config, text)
            self._start(config)
        elif changed:
            credentials.write(config, text)
            self._reload()

    def running(self) -> bool:
        """Does the supervisor answer?"""
        try:
            return self._call("getState")["statename"] == "RUNNING"
        except (OSError, http.client.HTTPException):
            return False

    def processes(self) -> dict[str, Process]:
        """Every known program's state; empty without a supervisor."""
        try:
            infos = self._call("getAllProcessInfo")
        except (OSError, http.client.HTTPException):
            return {}
        return {info["name"]: Process(info["statename"], info["pid"] or None, info["start"]) for info in infos}

    def differs(self, program: Program) -> bool:
        """Would a launch now differ from the last one?"""
        path = self._launch_file(program.name)
        return not path.exists() or json.loads(path.read_text()) != self._launch(program)

    def describe(self, program: Program) -> None:
        """Write how a program is launched, its secrets included, for its owner alone."""
        self._launch_file(program.name).parent.mkdir(exist_ok=True, mode=0o700)
        credentials.dump(self._launch_file(program.name), self._launch(program))

    def start(self, name: str) -> None:
        """Start a program and return at once."""
        self._call("startProcess", name, False)

    def stop(self, name: str) -> None:
        """Stop a program and its group; the supervisor kills what has not ended in time."""
        with contextlib.suppress(xmlrpc.client.Fault):  # not running, or ending by itself at this moment
            self._call("stopProcess", name, False)
        deadline = time.monotonic() + STOP_AT_MOST_S
        while time.monotonic() < deadline:
            process = self.processes().get(name)
            if process is None or process.state in {"STOPPED", "EXITED", "FATAL"}:
                return
            time.sleep(0.1)

    def shutdown(self) -> None:
        """End the supervisor, then whatever any program of ours left running."""
        pid = self._pid()
        if self.running():
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._call("shutdown")
        if pid is not None:
            orphans.end_process(pid, wait_s=20)
        orphans.end(self._run)

    def _launch_file(self, name: str) -> Path:
        return credentials.folder(self._settings) / "launch" / f"{name}.json"

    def _launch(self, program: Program) -> dict[str, object]:
        return {
            "argv": list(program.argv),
            "environment": {**program.environment, orphans.MARK: str(self._run)},
            "folder": str(program.folder),
            "pid_file": str(self._run / "pids" / f"{program.name}.json"),
            "stop_signal": program.stop.signal,
            "uid": program.uid,
            "unset": list(INHERITED_AND_UNWANTED),
        }

    def _pid(self) -> int | None:
        try:
            return int(self._call("getPID"))
        except (OSError, http.client.HTTPException):
            return None

    def _call(self, method: str, *arguments: object) -> Any:
        """One remote call on a connection of its own: the transport is not safe to share between threads."""
        transport = SupervisorTransport("", "", f"unix://{self._socket}")
        try:
            with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as proxy:  # pyright: ignore[reportArgumentType]
                return getattr(proxy.supervisor, method)(*arguments)
        finally:
            transport.close()

    def _start(self, config: Path) -> None:
        command = [str(_PYTHON), "-m", "supervisor.supervisord", "-c", str(config)]
        # The caller may itself be a program of a stack: the mark is for what this supervisor starts.
        environment = {name: value for name, value in os.environ.items() if name != orphans.MARK}
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=environment)
        if result.returncode != 0:
            words = (result.stderr or result.stdout).strip().splitlines() or ["no reason given"]
            raise SupervisionError(f"supervisord ended with {result.returncode}: {words[-1]}")
        deadline = time.monotonic() + 20
        while not self.running():
            if time.monotonic() > deadline:
                raise SupervisionError(f"supervisord does not answer; its log is {self.log_path('supervisord')}")
            time.sleep(0.05)

    def _reload(self) -> None:
        added, changed, removed = self._call("reloadConfig")[0]
        for name in (*changed, *removed):
            self.stop(name)
            self._call("removeProcessGroup", name)
        for name in (*changed, *added):
            self._call("addProcessGroup", name)

    def _config(self, programs: Mapping[str, Stop]) -> str:
        """No secret and nothing that changes often: each program is `launch.py` and the name of its launch file."""
        root = "user=root\n" if os.geteuid() == 0 else ""
        head = (
            f"[supervisord]\nlogfile={self.log_path('supervisord')}\nlogfile_maxbytes=5MB\nlogfile_backups=1\n"
            f"pidfile={self._run / 'supervisord.pid'}\nchilddir={self._run}\nminfds=1024\n{root}\n"
            f"[unix_http_server]\nfile={self._socket}\nchmod=0700\n\n"
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n"
        )
        body = (self._program(name, stop) for name, stop in sorted(programs.items()))
        return head.replace("%", "%%") + "".join(body)

    def _program(self, name: str, stop: Stop) -> str:
        command = f'"{_PYTHON}" -I -S "{launch.__file__}" "{self._launch_file(name)}"'
        text = (
            f"\n[program:{name}]\ncommand={command}\nautostart=false\nautorestart=true\nstartsecs=1\nstartretries=3\n"
            f"stopsignal={stop.signal}\nstopwaitsecs={stop.wait_s}\nstopasgroup={str(stop.group).lower()}\nkillasgroup=true\n"
            f"redirect_stderr=true\nstdout_logfile={self.log_path(name)}\n"
            "stdout_logfile_maxbytes=10MB\nstdout_logfile_backups=3\n"
        )
        return text.replace("%", "%%")


def _socket_path(run: Path) -> Path:
    """In the run folder, or in a short private one when the path is longer than a socket's may be."""
    path = run / "supervisor.sock"
    if len(os.fsencode(path)) < 90:  # 107 less what supervisor appends while binding
        return path
    digest = hashlib.sha256(os.fsencode(run)).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"headrace-{os.geteuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid() or folder.stat().st_mode & 0o077:
        raise SupervisionError(f"{folder} belongs to somebody else", hint="Set HEADRACE_HOME to a shorter path.")
    return folder / "supervisor.sock"
