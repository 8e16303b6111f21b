"""Servers that are somewhere else are asked at their addresses, and nothing of ours is taken for theirs."""

import socket
from pathlib import Path

from infra import elsewhere, stack
from infra.settings import Settings
from tests.unit.test_serving import served

PAGES = {"/api/health": True, "/health": "OK", "/readyz": "OK"}


def closed() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_each_server_is_asked_where_it_says_that_it_is_well(tmp_path: Path) -> None:
    with served(PAGES) as base:
        url = base.removesuffix("/v1")
        settings = Settings(
            home=tmp_path,
            embedded=False,
            prefect_api_url=f"{url}/api",
            mlflow_tracking_uri=f"{url}/",
            phoenix_endpoint=url,
            engines={"small": f"{url}/v1"},
        )
        states = stack.status(settings)
    assert [(state.name, state.phase) for state in states] == [
        ("prefect", "healthy"),
        ("mlflow", "healthy"),
        ("phoenix", "healthy"),
        ("engine small", "healthy"),
    ]
    assert states[1].url == url


def test_what_does_not_answer_says_why(tmp_path: Path) -> None:
    port = closed()
    with served({}) as base:
        url = base.removesuffix("/v1")
        settings = Settings(
            home=tmp_path,
            embedded=False,
            database_url=f"postgresql+psycopg://headrace@127.0.0.1:{port}/headrace".replace("@", ":w0rd@"),
            prefect_api_url=f"{url}/api",
            mlflow_tracking_uri=f"http://127.0.0.1:{port}",
            phoenix_endpoint="file:///etc/hostname",
        )
        states = {state.name: state for state in elsewhere.states(settings)}
    assert {state.phase for state in states.values()} == {"failed"}
    assert states["prefect"].detail == "it answers 404"
    assert states["mlflow"].detail.startswith("no answer: ")
    assert states["phoenix"].detail == "its address is neither http nor https"
    assert "connection" in states["postgres"].detail
    assert "w0rd" not in repr(states)
    assert states["postgres"].url == f"postgresql://127.0.0.1:{port}"


def test_where_nothing_is_ours_nothing_is_started(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, embedded=False, workloads=tmp_path)
    assert stack.embedded(settings) == frozenset()
    assert stack.up(settings, report=lambda state: None).services == ()
    assert list(tmp_path.iterdir()) == []
    assert stack.embedded(settings.model_copy(update={"embedded": True}))
