"""The three servers and the worker for real: reachable with the generated keys, closed without them."""

import base64
import json
import urllib.error
import urllib.request
from typing import Any

import grpc
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub

from infra import credentials, orphans, ports, stack
from infra.settings import Settings
from infra.stack import Stack

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def settings(home: Settings) -> Settings:
    """The shared stack's."""
    return home


def _answer(url: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:  # noqa: S310 - loopback
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def test_what_was_asked_for_and_its_needs_are_up_and_nothing_else(settings: Settings, running: Stack) -> None:
    assert [state.name for state in running.services] == ["postgres", "prefect", "mlflow", "phoenix", "worker"]
    phases = {state.name: state.phase for state in stack.status(settings)}
    assert {name for name, phase in phases.items() if phase == "healthy"} == {state.name for state in running.services}
    assert "HEADRACE_ENGINES" not in running.environment


def test_prefect_answers_with_its_password_only(running: Stack) -> None:
    url = running.environment["PREFECT_API_URL"] + "/admin/version"
    key = base64.b64encode(running.environment["PREFECT_API_AUTH_STRING"].encode()).decode()
    assert _answer(url)[0] == 401
    assert _answer(url, Authorization=f"Basic {key}")[0] == 200


def test_the_worker_made_its_pool_and_is_online(running: Stack) -> None:
    url = running.environment["PREFECT_API_URL"] + "/work_pools/local"
    key = base64.b64encode(running.environment["PREFECT_API_AUTH_STRING"].encode()).decode()
    code, body = _answer(url, Authorization=f"Basic {key}")
    assert (code, json.loads(body)["type"]) == (200, "process")


def test_phoenix_answers_with_its_key_only(running: Stack) -> None:
    url = running.environment["PHOENIX_COLLECTOR_ENDPOINT"] + "/v1/projects"
    assert _answer(url)[0] == 401
    assert _answer(url, Authorization=f"Bearer {running.environment['PHOENIX_API_KEY']}")[0] == 200


def test_phoenix_takes_no_span_over_grpc_from_somebody_without_the_key(settings: Settings, running: Stack) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{ports.remembered(settings)['phoenix-grpc']}") as channel:
        stub: Any = TraceServiceStub(channel)
        export = stub.Export
        for headers in (None, (("authorization", "Bearer wrong"),)):
            with pytest.raises(grpc.RpcError) as caught:
                export(ExportTraceServiceRequest(), metadata=headers, timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        allowed = (("authorization", f"Bearer {running.environment['PHOENIX_API_KEY']}"),)
        export(ExportTraceServiceRequest(), metadata=allowed, timeout=10)


def test_mlflow_keeps_its_experiments_in_postgres(running: Stack) -> None:
    url = running.environment["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/experiments/get?experiment_id=0"
    code, body = _answer(url)
    assert code == 200
    assert json.loads(body)["experiment"]["artifact_location"].startswith("mlflow-artifacts:")


def test_only_phoenix_listens_beyond_this_machine_and_only_for_grpc(settings: Settings, running: Stack) -> None:
    ours = {process.pid for process in orphans.find(settings.home / "run")}
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.net_connections("inet")
        if connection.laddr and connection.pid in ours and connection.status == psutil.CONN_LISTEN
    }
    outside = {port for address, port in listening if address not in {"127.0.0.1", "::1"}}
    assert outside <= {ports.remembered(settings)["phoenix-grpc"]}


def test_no_secret_reaches_a_log_or_the_run_folder(settings: Settings, running: Stack) -> None:
    hidden = credentials.known(settings)
    for path in (*settings.home.glob("run/*"), *settings.home.glob("logs/*")):
        assert not path.is_file() or not any(value in path.read_text(errors="replace") for value in hidden), path
