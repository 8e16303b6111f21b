"""A Postgres of the fault tests' own, whatever the other tests do to theirs, and runs as processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.nemesis import Foreman
from tests.integration.conftest import home, ledger  # noqa: F401 - fixtures; this folder gets servers of its own


@pytest.fixture(scope="module")
def foreman(ledger: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreman]:  # noqa: F811
    """Starts runs as processes of their own."""
    with Foreman(tmp_path_factory.mktemp("runs")) as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test's workload is written; its last part is the workload's name."""
    return tmp_path / "workload"
