"""S1: whatever goes wrong, no secret is written anywhere but into the folder of secrets.

A stack of its own with secrets that are known, everything at DEBUG, model servers that fail and that repeat the key
they were given; then every file, database, command line, message and export is searched.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from infra import credentials, ports, postgres
from infra.llm.scripted import Fault, Script, ScriptedServer
from infra.settings import Settings
from tests.faults.canaries import CommandLines, Watch
from tests.faults.nemesis import ROOT, wait_for
from tests.integration import scripted_workloads
from tests.integration.scripted_workloads import RULES

pytestmark = pytest.mark.timeout(1800)
KEY = "model key"
PATIENCE_S = 900.0
"""A stack at DEBUG is slow to start on a busy machine."""
GENERATED = (
    "prefect-password", "phoenix-secret", "phoenix-admin-password", "phoenix-api-key",
    *(f"postgres-{role}" for role in (postgres.SUPERUSER, *postgres.DATABASES, postgres.READER)),
)  # fmt: skip
SIGNING = ("notify-own", "notify-failing", "webhook-own")
HEADERS = {
    "extra header of Prefect": ("PREFECT_CLIENT_CUSTOM_HEADERS", '{{"X-Extra": "{}"}}'),
    "extra header of Phoenix": ("PHOENIX_CLIENT_HEADERS", "x-extra={}"),
    "token of MLflow": ("MLFLOW_TRACKING_TOKEN", "{}"),
}
SLOW = Script(model="small", rules=RULES, latency_s=0.5)


class Parrot(BaseHTTPRequestHandler):
    """A model server that refuses everything and repeats what it was given; a receiver that keeps what it was told."""

    answer = 401
    bodies: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.bodies.append(body)  # type: ignore[attr-defined]
        given = self.headers.get("authorization", "")
        said = {"error": {"message": f"Incorrect API key: {given} {quote(given)} {given.encode().hex()}", "code": 401}}
        status = {"/own": 204, "/failing": 500}.get(self.path, 401)
        self.send_response(status)
        self.end_headers()
        if status != 204:
            self.wfile.write(json.dumps(said).encode())

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Stage:
    """A stack of its own, driven by the command line alone."""

    settings: Settings
    environment: Mapping[str, str]
    said: Path
    count: int = 0
    began: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start `headrace …`; what it prints is kept."""
        return self._python("-m", "infra.cli", *words)

    def ask(self, *words: str, code: int | None = 0) -> str:
        """The same, and wait for it; what it printed. None as code: whatever it may be."""
        return self._finish(self.start(*words), code)

    def turn(self, module: str) -> None:
        """One turn of a loop of the service, as the service takes it."""
        self._finish(
            self._python(
                "-c",
                "import logging, os; logging.basicConfig(level=logging.DEBUG); from infra import stack, settings as s; "
                f"os.environ.update(stack.environment(s.load_settings())); from infra import {module} as m; "
                "m.turn(s.load_settings())",
            ),
            0,
        )

    def _python(self, *words: str) -> subprocess.Popen[bytes]:
        self.count += 1
        with (self.said / f"{self.count}.out").open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *words], stdout=out, stderr=subprocess.STDOUT, env=dict(self.environment), cwd=ROOT
            )
        self.began.append(process)
        return process

    def _finish(self, process: subprocess.Popen[bytes], code: int | None) -> str:
        number = self.count
        ended = process.wait(PATIENCE_S)
        said = (self.said / f"{number}.out").read_text(errors="replace")
        assert code is None or ended == code, said[-3000:]
        return said

    def flow_processes(self) -> list[psutil.Process]:
        """Processes that carry out a run of this stack."""
        home = str(self.settings.home)
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                given = process.environ()
            except (psutil.Error, OSError):
                continue
            if given.get("HEADRACE_HOME") == home and "PREFECT__FLOW_RUN_ID" in given:
                found.append(process)
        return found


def planted(home: Path) -> dict[str, str]:
    """Every secret by name; those that would be generated are in their folder before anything starts."""
    settings = Settings(home=home)
    found = {name: "a1" + secrets.token_hex(16) for name in (*GENERATED, *SIGNING, KEY, *HEADERS)}
    for name in GENERATED:
        credentials.write(credentials.folder(settings) / name, found[name])
    for name in SIGNING:
        credentials.write(credentials.folder(settings) / name, f"whsec_{found[name]}\n")
    return found


@pytest.fixture
def parrot() -> Iterator[tuple[str, list[str]]]:
    """The address of a server that repeats what it is given, and the bodies that it got."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        bodies: list[str]

    with Server(("127.0.0.1", 0), Parrot) as server:
        server.bodies = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", server.bodies
        server.shutdown()


@pytest.fixture
def known(tmp_path: Path) -> dict[str, str]:
    """The secrets of the stage."""
    return planted(tmp_path / "home")


@pytest.fixture
def stage(defaults: Settings, known: dict[str, str], parrot: tuple[str, Any], tmp_path: Path) -> Iterator[Stage]:
    """A stack at DEBUG with these secrets, nothing up yet."""
    first = {
        "POSTGRES": 26432, "PREFECT": 26200, "MLFLOW": 26100, "PHOENIX": 26106, "PHOENIX_GRPC": 26317, "WORKER": 26280,
        "WEBHOOKS": 26080,
    }  # fmt: skip
    (tmp_path / "workloads").mkdir()
    (tmp_path / "said").mkdir()
    notify = {name: {"url": f"{parrot[0]}/{name}"} for name in ("own", "failing")}
    dataset = {"workload": "good", "sources": {"own": {}}, "poll_s": 5}
    triggers = {"version": 1, "sources": {"own": {}}, "datasets": {"good": dataset}, "notify": notify}
    (tmp_path / "triggers.yaml").write_text(json.dumps(triggers))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "PHOENIX", "MLFLOW"))},
        "PYTHONPATH": str(ROOT),
        "HEADRACE_HOME": str(tmp_path / "home"),
        "HEADRACE_WORKLOADS": str(tmp_path / "workloads"),
        "HEADRACE_TRIGGERS": str(tmp_path / "triggers.yaml"),
        "HEADRACE_ENGINES": json.dumps({"none": "http://127.0.0.1:9/v1"}),
        "HEADRACE_REQUEST_DEADLINE_S": "6",
        "HEADRACE_OUTAGE_PATIENCE_S": "4",
        "HEADRACE_LEASE_S": "10",
        "VLLM_API_KEY": known[KEY],
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "headrace,httpx,httpcore,openai,instructor,dspy,aiohttp,mlflow,websockets",
        "PREFECT_SERVER_LOGGING_LEVEL": "DEBUG",
        **{f"HEADRACE_PORT_{name}": str(port) for name, port in first.items()},
        **{name: template.format(known[what]) for what, (name, template) in HEADERS.items()},
    }
    for name in ("HEADRACE_DATABASE_URL", "DATABASE_URL", "PGPASSFILE"):
        environment.pop(name, None)
    settings = defaults.model_copy(update={"home": tmp_path / "home"})
    found = Stage(settings, environment, tmp_path / "said")
    try:
        yield found
    finally:
        for process in found.began:
            process.kill()
            process.wait()
        found.ask("down", code=None)


def receive(stage: Stage) -> None:
    """Messages to the receiver: signed, signed by somebody else, and with a secret where none belongs."""
    url = f"http://127.0.0.1:{ports.remembered(stage.settings)['webhooks']}"
    stage.ask("webhooks", "send-test", "own", "good", "--url", url)
    own = (credentials.folder(stage.settings) / "webhook-own").read_text().strip()
    for headers, body in (
        ({"webhook-id": "1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}, "{}"),
        ({"webhook-id": own, "webhook-timestamp": own, "webhook-signature": f"v1,{own}"}, own),
        ({"authorization": f"Bearer {own}", "x-webhook-secret": own}, json.dumps({"secret": own})),
    ):
        assert 400 <= httpx.post(f"{url}/hooks/own", headers=headers, content=body).status_code < 500
    stage.ask("webhooks", "deliveries")


def play(stage: Stage, servers: Mapping[str, ScriptedServer], parrot: str, exports: Path) -> dict[str, Any]:
    """Runs that succeed, are refused, run out of time, are asked again, are killed; all is listed and exported."""
    folder = Path(stage.environment["HEADRACE_WORKLOADS"])
    common: dict[str, Any] = {"rows": 60, "incoming": 10}
    small, large, slow = servers["small"], servers["large"], servers["slow"]
    search = {"name": "bootstrap-random-search", "candidates": 1, "validation_rows": 8}
    scripted_workloads.write(folder / "good", name="good", cheap=small, strong=large, optimizer=search, **common)
    scripted_workloads.write(folder / "slow", name="slow", cheap=slow, strong=slow, **common)
    refused = scripted_workloads.write(folder / "refused", name="refused", cheap=small, strong=large, **common)
    spec = json.loads((refused.folder / "workload.yaml").read_text())
    for tier in spec["tiers"].values():
        tier["base_urls"] = [f"{parrot}/v1"]
    (refused.folder / "workload.yaml").write_text(json.dumps(spec))
    stage.ask("up")
    stage.ask("run", "good")
    stage.ask("run", "refused", code=None)
    killed = stage.start("run", "slow")
    wait_for(lambda: slow.calls.requests > 3, "the slow run")
    for process in stage.flow_processes():
        process.send_signal(signal.SIGKILL)
    killed.wait(PATIENCE_S)
    receive(stage)
    for module in ("polling", "notifying"):
        stage.turn(module)  # the service does not log at DEBUG; this does
    stage.ask("notices", "test", "own")
    runs = json.loads(stage.ask("runs", "--json"))
    for run in runs:
        stage.ask("export", run["id"], str(exports / f"{run['id']}.zip"), code=None)
    stage.ask("show", "last", "--quarantined", code=None)
    stage.ask("export", "champion@good", str(exports / "champion"))
    stage.ask("status", code=None)
    return {run["workload"]: run["state"] for run in runs if run["kind"] == "optimize"}


def test_no_secret_is_found_anywhere(
    stage: Stage, known: dict[str, str], parrot: tuple[str, list[str]], tmp_path: Path, report: Callable[[str], None]
) -> None:
    watch, exports = Watch(known), tmp_path / "exports"
    exports.mkdir()
    faults = (
        # Rows to be routed; without an answer of the optimiser's there would be no run.
        Fault(kind="hang", match=r"over 1061 "),
        Fault(kind="status", status=401, match=r"number 1063 "),
        Fault(kind="off_schema", share=0.3, first=1),
    )
    with ExitStack() as stack, CommandLines(watch) as lines:
        scripts = {
            "small": Script(model="small", rules=RULES, noise=0.2, sharpness=8, faults=faults, api_key=known[KEY]),
            "large": Script(model="large", rules=RULES, api_key=known[KEY]),
            "slow": SLOW.model_copy(update={"api_key": known[KEY]}),
        }
        servers = {name: stack.enter_context(ScriptedServer(script)) for name, script in scripts.items()}
        states = play(stage, servers, parrot[0], exports)
        port = ports.remembered(stage.settings)["postgres"]
        (tmp_path / "dumps").mkdir()
        watch.look_into_databases(port, postgres.passfile(stage.settings), tmp_path / "dumps")
    watch.look_into("home", stage.settings.home, but=[stage.settings.home / "secrets"])
    watch.look_into("output", stage.said)
    watch.look_into("export", exports)
    watch.look("notice", "bodies", [body.encode() for body in parrot[1]])
    quarantined = (tmp_path / "dumps" / "headrace.sql").read_text(errors="replace").count("Incorrect API key")
    report(
        f"{len(known)} secrets, {states}; {quarantined} refusals on record; searched "
        + ", ".join(f"{kind} {size / 2**20:.1f} MiB" for kind, size in sorted(watch.read.items()))
        + f", {len(lines.seen)} command lines; {len(watch.hits)} hits"
    )
    assert states == {"good": "completed", "refused": "failed", "slow": "crashed"}
    assert quarantined > 0, "what the server said is kept, without the key"
    assert set(watch.read) == {"command line", "database", "export", "home", "notice", "output"}
    assert any("headrace.run.failed" in body for body in parrot[1])
    assert sorted(watch.hits) == []


@pytest.mark.parametrize("where", ["file", "base64", "url", "command line", "across parts"])
def test_the_search_finds_what_is_there(tmp_path: Path, where: str) -> None:
    secret = "a1+/=" + secrets.token_hex(16)
    watch = Watch({"planted": secret})
    if where == "command line":
        with CommandLines(watch) as lines, subprocess.Popen(["sleep", "60"], executable=None) as other:
            sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", secret])
            wait_for(lambda: any(secret.encode() in line for line in lines.seen), "the command line")
            for process in (sleeper, other):
                process.kill()
                process.wait()
    elif where == "across parts":
        watch.look("part", "x", [secret[:9].encode(), secret[9:].encode()])
    else:
        text = {"file": secret, "base64": credentials_of(secret), "url": quote(secret, safe="")}[where]
        (tmp_path / "x.log").write_text(f"before {text} after")
        watch.look_into("file", tmp_path)
    assert {name for name, _ in watch.hits} == {"planted"}


def credentials_of(secret: str) -> str:
    """A header of HTTP's basic scheme."""
    import base64

    return base64.b64encode(f"headrace:{secret}".encode()).decode()
