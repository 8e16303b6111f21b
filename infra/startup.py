"""Starting services: in parallel where their needs allow, each let through by its health, failures explained."""

import base64
import json
import queue
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from domain.errors import HeadraceError
from infra import credentials, postgres
from infra.llm import models
from infra.own_services import POOL, WORKER
from infra.quieting import write_logging
from infra.service import Ports, Service, python, weights_folder
from infra.settings import Settings
from infra.supervision import Process, Supervisor

Phase = Literal["stopped", "starting", "healthy", "failed"]
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Loopback is never asked of a proxy."""
PATIENCE_S = 5.0
"""How long a service that was up before may stay silent before it is started anew."""


class StackError(HeadraceError):
    """A service does not come up."""

    def __init__(self, service: str, cause: str, log: Path, fix: str) -> None:
        super().__init__(f"{service} did not start: {cause} (log: {log})", hint=fix)
        self.service = service
        self.cause = cause
        self.log = log


@dataclass(frozen=True, slots=True)
class ServiceState:
    """One service as a person wants to see it."""

    name: str
    description: str
    phase: Phase
    url: str
    pid: int | None = None
    seconds: float = 0.0
    """How long the start has taken, or, for `status`, how long it has been up."""
    memory_bytes: int | None = None
    detail: str = ""


Report = Callable[[ServiceState], None]


def healthy(service: Service, settings: Settings, *, port: int) -> bool:
    """Does the service answer as it should?"""
    if service.health.startswith("postgresql:"):
        return postgres.answers(settings, port)
    try:
        with DIRECT.open(service.health, timeout=3) as answer:
            return answer.status == 200 and (service.name != "worker" or _registered(service))
    except (urllib.error.URLError, OSError):
        return False


def _registered(worker: Service) -> bool:
    """Does the embedded Prefect know the worker? Its own health answer comes before its first poll and its pool."""
    auth = worker.environment.get("PREFECT_API_AUTH_STRING")
    if auth is None:
        return True
    request = urllib.request.Request(  # noqa: S310 - the address is ours, http on loopback
        f"{worker.environment['PREFECT_API_URL']}/work_pools/{POOL}/workers/filter",
        data=b'{"workers": {"status": {"any_": ["ONLINE"]}}}',
        headers={
            "Authorization": f"Basic {base64.b64encode(auth.encode()).decode()}",
            "Content-Type": "application/json",
        },
    )
    with DIRECT.open(request, timeout=3) as answer:
        return WORKER in {online["name"] for online in json.load(answer)}


Event = ServiceState | BaseException


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every start needs."""

    settings: Settings
    supervisor: Supervisor
    ports: Ports
    events: "queue.Queue[Event]" = field(default_factory=queue.Queue[Event])
    cancelled: threading.Event = field(default_factory=threading.Event)


def start_all(around: Surroundings, rows: Mapping[str, Service], report: Report) -> dict[str, ServiceState]:
    """Start the services, a thread each; the first failure keeps the rest from starting and is raised."""
    done: dict[str, ServiceState] = {}
    threads: list[threading.Thread] = []
    waiting = dict(rows)
    try:
        while len(done) < len(rows):
            for name in [name for name, row in waiting.items() if row.needs <= done.keys()]:
                thread = threading.Thread(target=_bring_up, args=(around, waiting.pop(name)), daemon=True)
                threads.append(thread)
                thread.start()
            event = around.events.get()
            if isinstance(event, BaseException):
                raise event
            report(event)
            if event.phase == "healthy":
                done[event.name] = event
    finally:
        around.cancelled.set()
        for thread in threads:
            thread.join(timeout=10)
    return done


def _bring_up(around: Surroundings, service: Service) -> None:
    try:
        _Start(around, service).run()
    except BaseException as error:  # noqa: BLE001 - handed to the thread that waits, which raises it
        around.events.put(error)


class _Start:
    """One service on its way up."""

    def __init__(self, around: Surroundings, service: Service) -> None:
        self._settings = around.settings
        self._supervisor = around.supervisor
        self._events = around.events
        self._cancelled = around.cancelled
        self._service = service
        self._port = around.ports[service.name]
        self._log = around.supervisor.log_path(service.name)
        self._log_offset = self._log.stat().st_size if self._log.exists() else 0
        self._began = time.monotonic()

    def run(self) -> None:
        process = self._process()
        program = self._service.program()
        fresh = not process.up or self._supervisor.differs(program) or self._silent(process)
        if fresh:
            self._say("starting")
            self._check_environment()
            if process.up or process.ended:
                self._supervisor.stop(program.name)
            self._prepare()
            self._supervisor.describe(program)
            self._supervisor.start(program.name)
        process = self._gate()
        if fresh and self._service.name == "postgres":
            postgres.create_databases(self._settings, self._port)
        self._say("healthy", pid=process.pid)

    def _silent(self, process: Process) -> bool:
        """Up for longer than a start takes, and yet no answer."""
        deadline = time.monotonic() + PATIENCE_S
        while time.time() - process.started > self._service.start_timeout_s:
            if self._healthy():
                return False
            if time.monotonic() > deadline:
                return True
            time.sleep(0.2)
        return False

    def _gate(self) -> Process:
        """Wait for health; a process that ends, or takes too long, is a failure with a cause."""
        pid: int | None = None
        deadline = self._began + self._service.start_timeout_s
        while not self._cancelled.is_set():
            process = self._process()
            pid = pid or process.pid
            if not process.up or process.pid != pid:
                self._supervisor.stop(self._service.name)
                raise self._failed(self._cause() or "it ended at once and printed nothing")
            if self._healthy():
                return process
            if time.monotonic() > deadline:
                last = self._cause()
                raise self._failed(
                    f"no answer at {self._service.health} within {self._service.start_timeout_s:.0f} s"
                    + (f"; it last said: {last}" if last else "")
                )
            time.sleep(0.2)
        raise self._failed("another service failed first")

    def _prepare(self) -> None:
        if temporary := self._service.environment.get("TMPDIR"):
            Path(temporary).mkdir(exist_ok=True, mode=0o700)
        if home := self._service.environment.get("PREFECT_HOME"):
            write_logging(Path(home))
        if self._service.name == "postgres":
            try:
                postgres.prepare(self._settings, self._port, self._log)
            except postgres.PostgresError as error:
                raise StackError("postgres", error.message, self._log, error.fix) from error
        model = self._service.weights
        if model and models.revision(weights_folder(self._settings), model) is None:
            self._build_weights(model)

    def _build_weights(self, model: str) -> None:
        """Convert in the engine's environment; its progress lines are shown, all else goes to the log."""
        folder = weights_folder(self._settings)
        command = [self._service.argv[0], "-P", models.__file__, model, str(folder)]
        with (
            self._log.open("a") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as conversion,
        ):
            for line in conversion.stdout or ():
                log.write(line)
                log.flush()
                if line.startswith(f"{model}: "):
                    self._say("starting", detail=line.removeprefix(f"{model}: ").strip())
                if self._cancelled.is_set():
                    conversion.terminate()
        if conversion.returncode != 0:
            raise self._failed(self._cause() or f"building the weights ended with {conversion.returncode}")

    def _check_environment(self) -> None:
        interpreter = Path(python(self._settings, self._service.venv))
        if not interpreter.exists():
            raise StackError(
                self._service.name,
                f"the environment {self._service.venv} is not installed",
                self._log,
                f"Run: python3 infra/bootstrap.py {self._service.venv}",
            )

    def _process(self) -> Process:
        return self._supervisor.processes().get(self._service.name, Process("ABSENT"))

    def _healthy(self) -> bool:
        return healthy(self._service, self._settings, port=self._port)

    def _say(self, phase: Phase, *, pid: int | None = None, detail: str = "") -> None:
        seconds = time.monotonic() - self._began
        service = self._service
        state = ServiceState(service.name, service.description, phase, service.url, pid, seconds, detail=detail)
        self._events.put(state)

    def _failed(self, cause: str) -> StackError:
        self._say("failed", detail=cause)
        fix = "Read the log, then run: headrace up"
        if re.search(r"address already in use|port .* in use", cause, re.IGNORECASE):
            fix = "Another program took the port meanwhile; run `headrace up` again, it takes the next free one."
        if re.search(r"ModuleNotFoundError|ImportError|PackageNotFoundError", cause):
            fix = f"Run: python3 infra/bootstrap.py {self._service.venv} --rebuild"
        return StackError(self._service.name, cause, self._log, fix)

    def _cause(self) -> str:
        """The last line of this start's log that sounds like a reason, else its last line; no secrets in it."""
        if not self._log.exists():
            return ""
        with self._log.open(errors="replace") as log:
            log.seek(self._log_offset)
            lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in log.read().splitlines()]
        lines = [line for line in lines if line and not re.search(r"root cause above|Traceback|^File ", line)]
        named = [line for line in lines if re.search(r"\b\w*(Error|Exception|Interrupt)\b: |\bFATAL\b", line)]
        hinted = [line for line in lines if re.search(r"error|denied|cannot|failed", line, re.IGNORECASE)]
        cause = (named or hinted or lines or [""])[-1][:300]
        for value in credentials.known(self._settings):
            cause = cause.replace(value, "***")
        return cause
