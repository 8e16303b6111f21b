"""Fault tests: the integration tests' stack, and a line with the figure that each test is about."""

from collections.abc import Callable

import pytest

from tests.integration.conftest import home, ledger, run_id

__all__ = ["home", "ledger", "run_id"]  # fixtures


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a test's figure; `pytest -rP` or `-s` shows it."""

    def say(figure: str) -> None:
        print(f"\n{request.node.name}: {figure}")

    return say
