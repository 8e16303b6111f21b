"""S2: who knocks without a key, or with one that everybody knows, is turned away by every service that has a login.

Open by design, and only ever on loopback: health answers, MLflow (its login needs a package that we do not install),
the receiver's own document and its probe. An engine's key closes `/v1` and leaves `/health` and `/metrics` open.
"""

import asyncio
import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
import httpx
import psutil
import pytest
import websockets
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub

from domain.triggers import Scheme
from infra import orphans, ports, signatures
from infra.llm.scripted import Rule, Script, ScriptedServer
from infra.settings import Settings
from infra.stack import Stack
from tests.integration.receivers import Receiver, Sender, receiving, updated, write_triggers

pytestmark = pytest.mark.timeout(600)

DEFAULTS = ("admin:admin", "admin:password", "admin:pass", "headrace:headrace", "prefect:prefect", "admin:password1234")
PREFECT = """
GET admin/version
GET admin/settings
GET csrf-token?client=x
GET collections/views/aggregate-worker-metadata
POST flow_runs/filter
POST flows/filter
POST deployments/filter
POST work_pools/filter
POST variables/filter
POST block_documents/filter
POST block_types/filter
POST block_schemas/filter
POST events/filter
POST logs/filter
POST artifacts/filter
POST automations/filter
POST task_runs/filter
POST concurrency_limits/filter
POST v2/concurrency_limits/filter
POST events
POST flows/
POST variables/
POST work_pools/
POST admin/database/clear
"""
PHOENIX = """
GET v1/projects
GET v1/projects/default
GET v1/projects/default/spans
GET v1/projects/default/span_annotations?span_ids=0000000000000000
GET v1/datasets
GET v1/datasets/x/experiments
GET v1/prompts
GET v1/users
GET v1/annotation_configs
POST v1/traces
POST v1/span_annotations
POST v1/datasets/upload
POST v1/prompts
POST v1/projects
POST graphql
"""
ENGINE = """
GET models
POST chat/completions
POST files
POST batches
GET batches/b
"""
KEY = 24 * "b7"
OPEN = {
    "prefect": ("api/health",),
    "mlflow": ("health", "version", "api/2.0/mlflow/experiments/get?experiment_id=0"),
    "phoenix": ("healthz", "readyz"),
    "webhooks": ("health", "openapi.json", "hooks/anybody"),
    "engine": ("health", "metrics"),
}
"""What answers without a key: it says that somebody is there, or is on loopback alone."""


class Knocked(NamedTuple):
    """One call, and what it was answered."""

    where: str
    key: str
    status: int


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=30, follow_redirects=False) as client:
        yield client


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedServer]:
    """A model server as vLLM closes one."""
    with ScriptedServer(Script(model="m", rules=(Rule(pattern="x", label="y"),), api_key=KEY)) as server:
        yield server


@pytest.fixture(scope="module")
def sender(ledger: str) -> Sender:
    return Sender(Scheme.STANDARD)


@pytest.fixture(scope="module")
def receiver(sender: Sender, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    folder = tmp_path_factory.mktemp("doors")
    with receiving(folder, write_triggers(folder, sender)) as found:
        yield found


def _keys(scheme: str) -> list[tuple[str, dict[str, str]]]:
    """No key, and each that everybody knows."""
    if scheme == "Basic":
        coded = [(pair, base64.b64encode(pair.encode()).decode()) for pair in DEFAULTS]
    else:
        coded = [(pair, pair.rpartition(":")[2]) for pair in DEFAULTS]
    return [("none", {}), *((name, {"Authorization": f"{scheme} {value}"}) for name, value in coded)]


def _knock(client: httpx.Client, base: str, doors: str, scheme: str) -> list[Knocked]:
    knocked: list[Knocked] = []
    for door in doors.split("\n")[1:-1]:
        method, path = door.split()
        for name, headers in _keys(scheme):
            answer = client.request(method, f"{base}/{path}", headers=headers, content=b"{}")
            knocked.append(Knocked(door, name, answer.status_code))
    return knocked


def _turned_away(knocked: list[Knocked]) -> list[Knocked]:
    return [knock for knock in knocked if knock.status not in {401, 403}]


def test_prefect_answers_nobody_without_its_password(client: httpx.Client, running: Stack) -> None:
    knocked = _knock(client, running.environment["PREFECT_API_URL"], PREFECT, "Basic")

    assert len({knock.where for knock in knocked}) == 24
    assert _turned_away(knocked) == []


def test_prefect_tells_nobody_its_events_over_a_websocket(running: Stack) -> None:
    async def listened(token: str | None) -> bool:
        url = running.environment["PREFECT_API_URL"].replace("http", "ws", 1) + "/events/out"
        async with websockets.connect(url, subprotocols=[websockets.Subprotocol("prefect")], proxy=None) as socket:
            await socket.send(json.dumps({"type": "auth", "token": token}))
            try:
                return "auth_success" in str(await socket.recv())
            except websockets.ConnectionClosed:
                return False

    assert not any(asyncio.run(listened(token)) for token in (None, "", *DEFAULTS))
    assert asyncio.run(listened(running.environment["PREFECT_API_AUTH_STRING"]))


def test_phoenix_answers_nobody_without_its_key(client: httpx.Client, running: Stack) -> None:
    base = running.environment["PHOENIX_COLLECTOR_ENDPOINT"]
    knocked = _knock(client, base, PHOENIX, "Bearer")

    assert len({knock.where for knock in knocked}) == 15
    assert _turned_away(knocked) == []


@pytest.mark.parametrize("password", ["admin", "password", "phoenix", ""])
def test_phoenix_has_no_default_password(client: httpx.Client, running: Stack, password: str) -> None:
    base = running.environment["PHOENIX_COLLECTOR_ENDPOINT"]
    answer = client.post(f"{base}/auth/login", json={"email": "admin@localhost", "password": password})

    assert answer.status_code in {401, 422}
    assert not answer.headers.get("set-cookie")


def test_phoenix_takes_nothing_over_grpc_without_its_key(home: Settings, running: Stack) -> None:
    """Its gRPC port listens on every interface, whatever its settings say; this is what closes it."""
    with grpc.insecure_channel(f"127.0.0.1:{ports.remembered(home)['phoenix-grpc']}") as channel:
        stub: Any = TraceServiceStub(channel)
        for given in (None, *(value for _, value in _keys("Bearer"))):
            headers = tuple((name.lower(), value) for name, value in (given or {}).items()) or None
            with pytest.raises(grpc.RpcError) as caught:
                stub.Export(ExportTraceServiceRequest(), metadata=headers, timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_an_engine_answers_nobody_without_its_key(client: httpx.Client, engine: ScriptedServer) -> None:
    knocked = _knock(client, engine.base_url, ENGINE, "Bearer")

    assert len({knock.where for knock in knocked}) == 5
    assert _turned_away(knocked) == []


def test_the_receiver_believes_nobody_without_the_secret(
    client: httpx.Client, receiver: Receiver, sender: Sender
) -> None:
    body = updated()
    heads: list[dict[str, str]] = [{}]
    heads += [
        signatures.sign(sender.scheme, secret, body, delivery_id=f"d-{n}", now=time.time(), event="push")
        for n, secret in enumerate(("password", "secret12", "whsec_c2VjcmV0", "password1234"))
    ]
    answered = [client.post(f"{receiver.url}/hooks/{sender.name}", content=body, headers=head) for head in heads]

    assert {answer.status_code for answer in answered} == {401}
    good = sender.signed(body, delivery_id="d-good")
    assert client.post(f"{receiver.url}/hooks/{sender.name}", content=body, headers=good).status_code == 202


def test_what_is_open_is_known(
    client: httpx.Client, running: Stack, receiver: Receiver, engine: ScriptedServer
) -> None:
    bases = {
        "prefect": running.environment["PREFECT_API_URL"].removesuffix("/api"),
        "mlflow": running.environment["MLFLOW_TRACKING_URI"],
        "phoenix": running.environment["PHOENIX_COLLECTOR_ENDPOINT"],
        "webhooks": receiver.url,
        "engine": engine.root_url,
    }
    answers = {
        f"{name} {path}": client.get(f"{bases[name]}/{path}").status_code for name in OPEN for path in OPEN[name]
    }

    assert set(answers.values()) == {200}, answers
    assert {httpx.URL(base).host for base in bases.values()} == {"127.0.0.1"}


def test_nothing_listens_elsewhere_but_phoenixs_grpc(
    home: Settings, running: Stack, receiver: Receiver, report: Callable[[str], None]
) -> None:
    ours = {process.pid for process in orphans.find(home.home / "run")} | {receiver.process.pid}
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.net_connections("inet")
        if connection.pid in ours and connection.laddr and connection.status == psutil.CONN_LISTEN
    }
    elsewhere = {(address, port) for address, port in listening if address not in {"127.0.0.1", "::1"}}
    report(f"{len(listening)} listeners, elsewhere {sorted(elsewhere)}")

    assert len(listening) >= 7
    assert {port for _, port in elsewhere} <= {ports.remembered(home)["phoenix-grpc"]}


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a test's figure; `pytest -rP` or `-s` shows it."""

    def say(figure: str) -> None:
        print(f"\n{request.node.name}: {figure}")

    return say
