"""One embedded stack for all integration tests, in a home of its own; each part comes up when a test first asks."""

import os
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings

from infra import deploying, orphans, stack
from infra.db.session import database_url, engine_for, migrate
from infra.settings import Settings
from infra.stack import ServiceState, Stack
from tests.integration.begun_runs import open_run

SMALL = {
    "HEADRACE_CHUNK_ROWS": "30",
    "HEADRACE_IN_FLIGHT": "8",
    "HEADRACE_WINDOW": "16",
    "HEADRACE_OUTAGE_PATIENCE_S": "4",
    "HEADRACE_SPAN_SAMPLE": "0.2",
    "HEADRACE_LEASE_S": "10",
}
"""A hundred rows are several chunks, a killed flow leaves most of them undone, and the dead are soon known to be."""


def _ignore(state: ServiceState) -> None:
    pass


@pytest.fixture(scope="session")
def home(defaults: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The shared stack's home, nothing up yet; at the end all of it is down, and no process is left."""
    settings = defaults.model_copy(
        update={
            "home": tmp_path_factory.mktemp("shared") / "home",
            # Below the ports that the kernel hands out for outgoing connections.
            "port_postgres": 25432,
            "port_prefect": 24200,
            "port_mlflow": 25000,
            "port_phoenix": 26006,
            "port_phoenix_grpc": 24317,
            "port_worker": 24280,
            "port_webhooks": 28080,
            "port_dashboard": 28501,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setenv(name, value)
        yield settings
        family = orphans.find(settings.home / "run")
        stack.down(settings)
    left = [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not left, "`down` leaves nothing behind"


def _up(settings: Settings, *names: str) -> Stack:
    """Bring up services and what they need, and let this process reach them as the command line does."""
    running = stack.up(settings, only=names, report=_ignore)
    os.environ.update(running.environment)
    return running


@pytest.fixture(scope="session")
def ledger(home: Settings) -> Iterator[str]:
    """The ledger's address: Postgres is up and migrated."""
    _up(home, "postgres")
    migrate()
    yield database_url()
    engine_for(database_url()).dispose()


@pytest.fixture
def run_id(ledger: str) -> str:
    """A run that has begun."""
    return open_run()


@pytest.fixture(scope="session")
def mlflow_uri(home: Settings) -> str:
    """MLflow's address."""
    return _up(home, "mlflow").environment["MLFLOW_TRACKING_URI"]


@pytest.fixture(scope="session")
def phoenix(home: Settings) -> str:
    """Phoenix's address."""
    return _up(home, "phoenix").environment["PHOENIX_COLLECTOR_ENDPOINT"]


@pytest.fixture(scope="session")
def dashboard(home: Settings, ledger: str) -> str:
    """The dashboard's address, as the stack serves it."""
    return _up(home, "dashboard").environment["HEADRACE_DASHBOARD_URL"]


@pytest.fixture(scope="session")
def running(home: Settings, ledger: str) -> Iterator[Stack]:
    """The whole stack but the engines, deployed: flows can be started by name."""
    surroundings = _up(home, "prefect", "mlflow", "phoenix").environment
    # Prefect read its settings when it was imported.
    known: dict[Any, str] = {
        PREFECT_API_URL: surroundings["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: surroundings["PREFECT_API_AUTH_STRING"],
        PREFECT_HOME: surroundings["PREFECT_HOME"],
    }
    with temporary_settings(known):
        deploying.deploy(home=home.home)
        yield _up(home, "mlflow", "phoenix", "worker")
