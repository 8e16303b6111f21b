"""A service of the embedded stack: its command, environment, port, health and needs, and nothing that acts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra import postgres
from infra.settings import Settings
from infra.supervision import Program, Stop

ROOT = Path(__file__).resolve().parents[1]
Ports = Mapping[str, int]

QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WEBSOCKETS_MAX_LOG_SIZE": "6",  # at DEBUG it writes down messages, and Prefect's first one is its password
}
"""Nothing phones home, nothing is fetched, nothing secret is logged."""
NEEDS = {
    "prefect": frozenset({"postgres"}),
    "mlflow": frozenset({"postgres"}),
    "phoenix": frozenset({"postgres"}),
    "worker": frozenset({"prefect"}),
    "webhooks": frozenset({"postgres", "prefect"}),
    "dashboard": frozenset({"postgres"}),
}
"""What must be healthy before a service starts."""
_STOPS = {
    "postgres": Stop("INT", wait_s=20, group=False),  # fast shutdown; it ends its own children, in order
    # A worker whose server left backs off for minutes after the signal: it goes first, and not for long.
    "worker": Stop(wait_s=8),
}


@dataclass(frozen=True, slots=True)
class Service:
    """One row of the table."""

    name: str
    description: str
    venv: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    url: str
    health: str
    """Address that answers 200 once the service is of use; postgresql:// means a connection."""
    needs: frozenset[str] = frozenset()
    start_timeout_s: float = 120
    weights: str | None = None
    """Model whose weights are built before the first start."""
    uid: int | None = None

    def program(self) -> Program:
        """The service as the supervisor sees it."""
        return Program(self.name, self.argv, self.environment, ROOT, stop_of(self.name), self.uid)


def stop_of(name: str) -> Stop:
    """How a service is stopped."""
    return _STOPS.get(name, Stop())


def envs_folder(settings: Settings) -> Path:
    """Where the environments are."""
    return settings.envs.expanduser().resolve() if settings.envs else settings.home / "envs"


def weights_folder(settings: Settings) -> Path:
    """Where the model weights are."""
    return settings.weights.expanduser().resolve() if settings.weights else settings.home / "weights"


def python(settings: Settings, venv: str) -> str:
    """The interpreter of an environment; the link is followed so that a rebuild does not change a running service."""
    return str((envs_folder(settings) / venv).resolve() / "bin" / "python")


def with_passfile(settings: Settings) -> dict[str, str]:
    """How a server of ours finds its database password."""
    return {"PGPASSFILE": str(postgres.passfile(settings))}
