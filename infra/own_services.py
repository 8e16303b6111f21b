"""The services of the embedded stack that run our own code: worker, receiver of webhooks, dashboard."""

from collections.abc import Mapping

from domain.doors import is_loopback
from infra import dashboard, doors
from infra.service import QUIET, ROOT, Ports, Service, python
from infra.settings import Settings

POOL, WORKER = "local", "headrace-local"
"""The work pool and its worker, as Prefect calls them."""


def worker_service(settings: Settings, ports: Ports, waits: frozenset[str], ours: Mapping[str, str]) -> Service:
    """Carries the flows out; `ours` is the environment of our own processes."""
    url = f"http://127.0.0.1:{ports['worker']}"
    command = ("-m", "infra.prefect_worker", "worker", "start", "--pool", POOL, "--type", "process", "--name", WORKER)
    return Service(
        name="worker",
        description="Prefect worker: carries the flows out",
        venv="app",
        argv=(python(settings, "app"), *command, "--install-policy", "never", "--with-healthcheck"),
        environment={
            **ours,
            "PYTHONPATH": str(ROOT),
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # else a run that died before it was opened looks alive
            "PREFECT_WORKER_QUERY_SECONDS": "2",  # a run that somebody starts begins at once, not within ten seconds
            # Prefect keeps runner_storage in the temporary folder, which two users of a machine would share.
            "TMPDIR": str(settings.home / "tmp"),
            "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
            "PREFECT_WORKER_WEBSERVER_PORT": str(ports["worker"]),
        },
        url=url,
        health=f"{url}/health",
        needs=waits,
    )


def webhooks_service(settings: Settings, ports: Ports, waits: frozenset[str], ours: Mapping[str, str]) -> Service:
    """Receives messages, and does what they start."""
    url = doors.origin(settings, "webhooks", ports["webhooks"])
    host = doors.listens_on(settings, "webhooks")
    command = ("-m", "infra.cli", "webhooks", "serve", "--host", host, "--port", str(ports["webhooks"]))
    proxied = () if is_loopback(host) else ("--behind-proxy",)
    return Service(
        name="webhooks",
        description="Receiver of webhooks: starts runs when data change, ends lost ones",
        venv="app",
        argv=(python(settings, "app"), *command, *proxied),
        environment={**ours, "PYTHONPATH": str(ROOT)},
        url=url,
        health=f"{url}/health",
        needs=waits,
    )


def dashboard_service(settings: Settings, ports: Ports, waits: frozenset[str], ours: Mapping[str, str]) -> Service:
    """Reads views of the ledger as a role that may read nothing else; it gets no other secret."""
    url = f"http://127.0.0.1:{ports['dashboard']}"
    command = ("-m", "infra.cli", "dashboard", "--host", "127.0.0.1", "--port", str(ports["dashboard"]))
    return Service(
        name="dashboard",
        description="Dashboard: quality, cost, router, triggers",
        venv="app",
        argv=(python(settings, "app"), *command),
        environment={
            **QUIET,
            "PYTHONPATH": str(ROOT),
            "HEADRACE_READER_URL": ours.get("HEADRACE_READER_URL", ""),
            "PGPASSFILE": dashboard.passfile(settings, ours),
        },
        url=url,
        health=f"{url}/_stcore/health",
        needs=waits,
    )
