"""Fault tests: a Postgres of their own, runs as processes, and a line with the figure that each test is about."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.nemesis import Foreman
from tests.integration.conftest import home, ledger, run_id

__all__ = ["home", "ledger", "run_id"]  # fixtures


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a test's figure; `pytest -rP` or `-s` shows it."""

    def say(figure: str) -> None:
        print(f"\n{request.node.name}: {figure}")

    return say


@pytest.fixture(scope="session")
def foreman(ledger: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreman]:
    """Starts runs as processes of their own."""
    with Foreman(tmp_path_factory.mktemp("runs")) as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test's workload is written; its last part is the workload's name."""
    return tmp_path / "workload"
