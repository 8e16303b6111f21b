"""docker/compose.yaml as Compose would read it with nothing set, and the table of services beside it."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from infra import services, stack
from infra.service import Service
from infra.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
VARIABLE = re.compile(r"\$\{(\w+):-([^{}]*)\}")


def text() -> str:
    """The file as it is written."""
    return (DOCKER / "compose.yaml").read_text(encoding="utf-8")


@cache
def compose() -> dict[str, Any]:
    """Every variable at its default; `$$` is a dollar."""
    return yaml.safe_load(VARIABLE.sub(lambda found: found[2], text()).replace("$$", "$"))


def pin(lock: str, package: str) -> str:
    """The version that a lock names."""
    found = re.search(rf"^{re.escape(package)}==([^\s;]+)", (ROOT / "infra/locks" / lock).read_text(), re.MULTILINE)
    assert found, f"{package} is not in {lock}"
    return found[1]


def table(home: Path) -> dict[str, Service]:
    """The rows of a local stack, every port the first one that is tried."""
    settings = Settings(home=home, envs=home / "envs", weights=Path("/weights"))
    ports = {name: first for name, (_, first) in services.first_ports(settings).items()}
    ports["engine-strong"] = ports["engine-cheap"] + 1
    (home / "run").mkdir(parents=True)
    (home / "run" / "stack.json").write_text(json.dumps({"ports": ports}))
    ours = stack.environment(settings)
    everything = frozenset(services.NAMES)
    return {name: services.build(name, settings, ports, everything, ours) for name in services.NAMES}
