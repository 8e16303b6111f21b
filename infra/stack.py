"""The embedded stack: what the settings do not give is brought up here, looked after, and taken down whole."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Collection, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from infra import credentials, doors, elsewhere, orphans, ports, postgres, services, startup
from infra.llm import models, vllm_cpu
from infra.service import QUIET, Ports, envs_folder, stop_of, weights_folder
from infra.settings import Settings, load_settings
from infra.startup import ServiceState, StackError, Surroundings
from infra.supervision import Process, Supervisor

__all__ = [
    "ServiceState",
    "Stack",
    "StackError",
    "down",
    "embedded",
    "environment",
    "log_path",
    "replaced",
    "status",
    "up",
]


@dataclass(frozen=True, slots=True)
class Stack:
    """What `up` brought up, and how our own processes reach it."""

    services: tuple[ServiceState, ...]
    environment: dict[str, str] = field(repr=False)


def up(settings: Settings, *, only: Collection[str] | None = None, report: Callable[[ServiceState], None]) -> Stack:
    """Bring up all that is ours, or the named services and what they need; what is healthy stays as it is.

    Raises DoorRefused before anything listens where it should not, or with a secret that is none, and StackError.
    """
    ours = embedded(settings)
    wanted = _with_needs(ours, ours if only is None else frozenset(only) & ours)
    doors.check(settings, wanted)  # a stack of others' servers has logins too
    if not ours:
        return Stack((), environment(settings))
    supervisor = Supervisor(settings)
    with _alone(settings, patience_s=None):
        supervisor.ensure({name: stop_of(name) for name in services.NAMES if name in ours})
        running = {name for name, process in supervisor.processes().items() if process.up}
        taken = ports.allocate(settings, wanted, running)
        surroundings = environment(settings)
        rows = {name: services.build(name, settings, taken, ours, _for_worker(surroundings)) for name in wanted}
        states = startup.start_all(Surroundings(settings, supervisor, taken), rows, report)
    return Stack(services=tuple(states[name] for name in wanted), environment=surroundings)


def down(settings: Settings) -> None:
    """Stop everything of ours, our own code first and Postgres last, also what a killed supervisor left behind."""
    supervisor = Supervisor(settings)
    with _alone(settings, patience_s=5):
        up_now = [name for name, process in supervisor.processes().items() if process.up or process.state == "BACKOFF"]
        middle = [name for name in up_now if name not in {*services.OURS, "postgres"}]
        for batch in (list(services.OURS), middle, ["postgres"]):
            with ThreadPoolExecutor(len(services.NAMES)) as pool:
                list(pool.map(supervisor.stop, [name for name in batch if name in up_now]))
        supervisor.shutdown()


def status(settings: Settings) -> list[ServiceState]:
    """How every service of ours is now; where none is ours, how those are that have an address."""
    if not settings.embedded:
        return elsewhere.states(settings)
    supervisor = Supervisor(settings)
    processes = supervisor.processes()
    known = ports.remembered(settings)
    ours = embedded(settings)
    records = [] if processes else orphans.records(settings.home / "run")
    left = {record.name for record in records if record.alive}

    def look(name: str) -> ServiceState:
        process = processes.get(name, Process("ABSENT"))
        if name not in known:
            return ServiceState(name, "", "stopped", "")
        row = services.build(name, settings, known, ours, {})
        if name in left:
            detail = "its supervisor is gone; run `headrace up` or `headrace down`"
            return ServiceState(name, row.description, "failed", row.url, detail=detail)
        if not process.up:
            phase = "failed" if process.ended else "stopped"
            return ServiceState(name, row.description, phase, row.url, detail=process.state.lower())
        phase = "healthy" if startup.healthy(row, settings, port=known[name]) else "starting"
        seconds = time.time() - process.started
        return ServiceState(name, row.description, phase, row.url, process.pid, seconds, _memory(process.pid))

    with ThreadPoolExecutor(len(services.NAMES)) as pool:
        return list(pool.map(look, [name for name in services.NAMES if name in ours]))


def environment(settings: Settings) -> dict[str, str]:
    """The variables our own processes run with: the user's addresses where given, the embedded ones elsewhere."""
    known = ports.remembered(settings)
    ours = embedded(settings)
    result = {
        **QUIET,
        "HEADRACE_HOME": str(settings.home),
        "HEADRACE_ENVS": str(envs_folder(settings)),
        "HEADRACE_WEIGHTS": str(weights_folder(settings)),
        "PREFECT_HOME": str(settings.home / "prefect"),
        # Results of finished chunks stay where a rerun looks for them.
        "PREFECT_LOCAL_STORAGE_PATH": str(settings.home / "prefect" / "storage"),
    }
    result.update(_given(settings))
    for name, variables in _embedded_variables(settings, known).items():
        if name in ours:
            result.update(variables())
    return result


def connect() -> Settings:
    """Let this process reach the stack as the worker does; what the user gave stays. Returns the settings with it.

    Whatever imports Prefect is imported after this: Prefect reads the environment once, at its import.
    """
    os.environ.update(environment(load_settings()))
    return load_settings()


def embedded(settings: Settings) -> frozenset[str]:
    """The services that are ours to run: all but those for which the user gave an address, or none at all."""
    if not settings.embedded:
        return frozenset()
    own = _own_addresses(settings, ports.remembered(settings))
    elsewhere = replaced(settings)
    absent = elsewhere - {"postgres"}
    if any(url not in own.values() for url in settings.engines.values()):
        absent |= services.MODELS.keys()
    if elsewhere >= {"postgres", "prefect", "mlflow", "phoenix"}:
        absent |= {"postgres"}
    if "postgres" in elsewhere and not settings.reader_url:
        absent |= {"dashboard"}
    return frozenset(services.NAMES) - absent


def replaced(settings: Settings) -> frozenset[str]:
    """Of the ledger (`postgres`), Prefect, MLflow and Phoenix those for which the user gave an address."""
    own = _own_addresses(settings, ports.remembered(settings))
    given = {
        "postgres": settings.database_url,
        "prefect": settings.prefect_api_url,
        "mlflow": settings.mlflow_tracking_uri,
        "phoenix": settings.phoenix_endpoint,
    }
    # A shell that has our own variables loaded gives our own addresses back: those count as not given.
    return frozenset(name for name, value in given.items() if value and value != own.get(name))


def log_path(settings: Settings, service: str) -> Path:
    """The log of one service."""
    return Supervisor(settings).log_path(service)


def _own_addresses(settings: Settings, known: Ports) -> dict[str, str]:
    own = {name: doors.origin(settings, name, port) for name, port in known.items()}
    own.update({name: f"{own[name]}/v1" for name in services.MODELS if name in own})
    if "prefect" in own:
        own["prefect"] += "/api"
    if "postgres" in own:
        own["postgres"] = postgres.url(port=known["postgres"], database="headrace", driver="postgresql+psycopg")
    return own


def _given(settings: Settings) -> dict[str, str]:
    """What the user set, under the names that the tools read."""
    given = {
        "HEADRACE_DATABASE_URL": settings.database_url,
        "HEADRACE_READER_URL": settings.reader_url,
        "PREFECT_API_URL": settings.prefect_api_url,
        "MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri,
        "PHOENIX_COLLECTOR_ENDPOINT": settings.phoenix_endpoint,
        "PHOENIX_API_KEY": settings.phoenix_api_key.get_secret_value() if settings.phoenix_api_key else None,
        "VLLM_API_KEY": settings.model_api_key.get_secret_value() if settings.model_api_key else None,
        "HEADRACE_ENGINES": json.dumps(settings.engines, sort_keys=True) if settings.engines else None,
    }
    return {name: value for name, value in given.items() if value}


def _embedded_variables(settings: Settings, known: Ports) -> dict[str, Callable[[], dict[str, str]]]:
    """The variables each embedded service adds; only of services that were brought up."""
    own = _own_addresses(settings, known)

    def database() -> dict[str, str]:
        if settings.database_url and settings.database_url != own["postgres"]:
            return {}
        return {
            "HEADRACE_DATABASE_URL": own["postgres"],
            "HEADRACE_READER_URL": postgres.url(
                port=known["postgres"], database="headrace", role=postgres.READER, driver="postgresql+psycopg"
            ),
            "PGPASSFILE": str(postgres.passfile(settings)),
        }

    def engines() -> dict[str, str]:
        urls = {model: own[name] for name, model in services.MODELS.items() if name in own}
        built = {model: models.revision(weights_folder(settings), model) for model in urls}
        revisions = {model: vllm_cpu.served_revision(found) for model, found in built.items() if found}
        return {
            "HEADRACE_ENGINES": json.dumps(urls, sort_keys=True),
            "HEADRACE_ENGINE_REVISIONS": json.dumps(revisions, sort_keys=True),
            "VLLM_API_KEY": credentials.model_key(settings),
        }

    variables: dict[str, Callable[[], dict[str, str]]] = {
        "postgres": database,
        "prefect": lambda: {
            "PREFECT_API_URL": own["prefect"],
            "PREFECT_API_AUTH_STRING": credentials.prefect_auth(settings),
        },
        "mlflow": lambda: {"MLFLOW_TRACKING_URI": own["mlflow"]},
        "dashboard": lambda: {"HEADRACE_DASHBOARD_URL": own["dashboard"]},
        "phoenix": lambda: {
            "PHOENIX_COLLECTOR_ENDPOINT": own["phoenix"],
            "PHOENIX_API_KEY": credentials.phoenix_key(settings),
        },
        **dict.fromkeys(services.MODELS, engines),
    }
    return {name: function for name, function in variables.items() if name in own}


def _for_worker(surroundings: dict[str, str]) -> dict[str, str]:
    """The caller's own settings reach the flows too, and a changed one restarts the worker."""
    chosen = {name: value for name, value in os.environ.items() if name.startswith("HEADRACE_")}
    chosen.pop(orphans.MARK, None)
    return {**chosen, **surroundings}


def _with_needs(ours: frozenset[str], chosen: frozenset[str]) -> tuple[str, ...]:
    """The chosen services and everything they wait for, in table order."""
    wanted = set(chosen)
    while more := {need for name in wanted for need in services.needs(name, ours)} - wanted:
        wanted |= more
    return tuple(name for name in services.NAMES if name in wanted)


def _memory(pid: int | None) -> int | None:
    """Memory of a service and its children; pages they share are counted once."""
    try:
        leader = psutil.Process(pid)
        family = [leader, *leader.children(recursive=True)]
        return sum(process.memory_full_info().pss for process in family)
    except (psutil.Error, AttributeError):
        return None


@contextlib.contextmanager
def _alone(settings: Settings, *, patience_s: float | None) -> Generator[None]:
    """One `up` or `down` at a time; a `down` does not wait for an endless `up`."""
    run = settings.home / "run"
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (run / "lock").open("w") as handle:
        deadline = None if patience_s is None else time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline is not None and time.monotonic() > deadline:
                    break
                time.sleep(0.1)
        yield
