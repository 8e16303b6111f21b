"""What every test starts from: none of the caller's own settings, and the environments that `make envs` built."""

import os
from collections.abc import Iterator

import pytest
import uvloop

from infra.service import envs_folder, weights_folder
from infra.settings import Settings, load_settings

OTHERS_NAMES = ("HEADRACE_", "DATABASE_URL", "PREFECT_", "MLFLOW_", "PHOENIX_", "VLLM_", "PG")
"""Whatever begins like this could lead a test to somebody's real servers."""


@pytest.fixture(scope="session")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """The loop that runs use: it lacks some of what asyncio's own can do."""
    return uvloop.EventLoopPolicy()


@pytest.fixture(scope="session", autouse=True)
def defaults() -> Iterator[Settings]:
    """Default settings; of the caller's own only the folders of environments and weights stay."""
    given = load_settings()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(OTHERS_NAMES)]:
            patch.delenv(name)
        patch.setenv("HEADRACE_ENVS", str(envs_folder(given)))
        patch.setenv("HEADRACE_WEIGHTS", str(weights_folder(given)))
        yield Settings()
