"""The embedded stack as a table: which services there are, their ports and what each needs."""

from collections.abc import Callable, Mapping

from infra.own_services import dashboard_service, webhooks_service, worker_service
from infra.servers import (
    MODELS,
    engine_service,
    mlflow_service,
    phoenix_service,
    postgres_service,
    prefect_service,
)
from infra.service import NEEDS, Ports, Service
from infra.settings import Settings

_BUILDERS: dict[str, Callable[[Settings, Ports], Service]] = {
    "postgres": postgres_service,
    "prefect": prefect_service,
    "mlflow": mlflow_service,
    "phoenix": phoenix_service,
}
OURS = {"worker": worker_service, "webhooks": webhooks_service, "dashboard": dashboard_service}
"""What runs our own code: started once the ledger is migrated and the deployments are there."""
NAMES = (*_BUILDERS, *MODELS, *OURS)
"""Every service there can be, in the order they are shown."""


def first_ports(settings: Settings) -> dict[str, tuple[str, int]]:
    """Every port by name: the service it belongs to and where the search for a free one starts."""
    return {
        "postgres": ("postgres", settings.port_postgres),
        "prefect": ("prefect", settings.port_prefect),
        "mlflow": ("mlflow", settings.port_mlflow),
        "phoenix": ("phoenix", settings.port_phoenix),
        "phoenix-grpc": ("phoenix", settings.port_phoenix_grpc),
        "engine-cheap": ("engine-cheap", settings.port_engine),
        "engine-strong": ("engine-strong", settings.port_engine),
        "worker": ("worker", settings.port_worker),
        "webhooks": ("webhooks", settings.port_webhooks),
        "dashboard": ("dashboard", settings.port_dashboard),
    }


def needs(name: str, embedded: frozenset[str]) -> frozenset[str]:
    """What must be healthy before this service starts, of the parts that are ours."""
    return NEEDS.get(name, frozenset()) & embedded


def build(name: str, settings: Settings, ports: Ports, embedded: frozenset[str], ours: Mapping[str, str]) -> Service:
    """The row of one service; `ours` is the environment of our own processes, which the worker gets."""
    if name in OURS:
        return OURS[name](settings, ports, needs(name, embedded), ours)
    if name in MODELS:
        return engine_service(name, settings, ports)
    return _BUILDERS[name](settings, ports)
