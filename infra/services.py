"""The embedded stack as a table: each service's command, environment, port, health and needs, and nothing that acts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from infra import credentials, postgres
from infra.llm import vllm_cpu
from infra.settings import Settings
from infra.supervision import Program, Stop

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"engine-cheap": "smollm2-135m-instruct", "engine-strong": "gemma3-270m"}
"""The model each embedded engine serves, under this name."""

POOL, WORKER = "local", "headrace-local"
"""The work pool and its worker, as Prefect calls them."""
Ports = Mapping[str, int]

QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Nothing phones home, nothing is fetched."""


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
        return Program(self.name, self.argv, self.environment, ROOT, STOPS[self.name], self.uid)


def envs_folder(settings: Settings) -> Path:
    """Where the environments are."""
    return settings.envs.expanduser().resolve() if settings.envs else settings.home / "envs"


def weights_folder(settings: Settings) -> Path:
    """Where the model weights are."""
    return settings.weights.expanduser().resolve() if settings.weights else settings.home / "weights"


def python(settings: Settings, venv: str) -> str:
    """The interpreter of an environment; the link is followed so that a rebuild does not change a running service."""
    return str((envs_folder(settings) / venv).resolve() / "bin" / "python")


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
    }


def needs(name: str, embedded: frozenset[str]) -> frozenset[str]:
    """What must be healthy before this service starts, of the parts that are ours."""
    return _NEEDS.get(name, frozenset()) & embedded


def build(name: str, settings: Settings, ports: Ports, embedded: frozenset[str], ours: Mapping[str, str]) -> Service:
    """The row of one service; `ours` is the environment of our own processes, which the worker gets."""
    if name == "worker":
        return _worker(settings, ports, needs(name, embedded), ours)
    if name in MODELS:
        return _engine(name, settings, ports)
    return _BUILDERS[name](settings, ports)


def _postgres(settings: Settings, ports: Ports) -> Service:
    port = ports["postgres"]
    return Service(
        name="postgres",
        description="Postgres 18, the ledger and the servers' databases",
        venv="app",
        argv=postgres.argv(settings, port),
        environment={"TZ": "UTC"},
        url=f"postgresql://127.0.0.1:{port}",
        health="postgresql://",
        start_timeout_s=60,
        uid=postgres.rights().uid,
    )


def _prefect(settings: Settings, ports: Ports) -> Service:
    url = f"http://127.0.0.1:{ports['prefect']}"
    database = postgres.url(port=ports["postgres"], database="prefect", driver="postgresql+asyncpg")
    command = ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(ports["prefect"]))
    return Service(
        name="prefect",
        description="Prefect server: runs, schedules, events",
        venv="app",
        argv=(python(settings, "app"), *command),
        environment={
            **QUIET,
            **_passfile(settings),
            "PREFECT_HOME": str(settings.home / "prefect"),
            "PREFECT_API_URL": f"{url}/api",
            "PREFECT_SERVER_UI_API_URL": f"{url}/api",
            "PREFECT_SERVER_API_AUTH_STRING": prefect_auth(settings),
            "PREFECT_API_AUTH_STRING": prefect_auth(settings),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        },
        url=url,
        health=f"{url}/api/health",
        needs=_NEEDS["prefect"],
        start_timeout_s=240,
    )


def _mlflow(settings: Settings, ports: Ports) -> Service:
    url = f"http://127.0.0.1:{ports['mlflow']}"
    artifacts = settings.home / "mlartifacts"
    database = postgres.url(port=ports["postgres"], database="mlflow", driver="postgresql+psycopg")
    command = ("-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(ports["mlflow"]), "--workers", "1")
    return Service(
        name="mlflow",
        description="MLflow server: experiments, prompts, bundles",
        venv="app",  # beside Phoenix's graphql-core 3.3 its run pages answer 500
        argv=(python(settings, "app"), *command, "--serve-artifacts", "--artifacts-destination", str(artifacts)),
        environment={
            **QUIET,
            **_passfile(settings),
            "MLFLOW_BACKEND_STORE_URI": database,
            # Ten processes and 3.8 GB with it, two and 0.5 GB without.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        url=url,
        health=f"{url}/health",
        needs=_NEEDS["mlflow"],
        start_timeout_s=240,
    )


def _phoenix(settings: Settings, ports: Ports) -> Service:
    url = f"http://127.0.0.1:{ports['phoenix']}"
    return Service(
        name="phoenix",
        description="Phoenix server: traces and evaluations",
        venv="servers",
        argv=(python(settings, "servers"), "-m", "phoenix.server.main", "serve"),
        environment={
            **QUIET,
            **_passfile(settings),
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(ports["phoenix"]),
            # Its gRPC port listens on every interface whatever the host says: authentication is what closes it.
            "PHOENIX_GRPC_PORT": str(ports["phoenix-grpc"]),
            "PHOENIX_ENABLE_AUTH": "true",
            "PHOENIX_SECRET": credentials.secret(settings, "phoenix-secret"),
            "PHOENIX_ADMIN_SECRET": phoenix_key(settings),
            "PHOENIX_DEFAULT_ADMIN_INITIAL_PASSWORD": credentials.secret(settings, "phoenix-admin-password"),
            "PHOENIX_SQL_DATABASE_URL": postgres.url(port=ports["postgres"], database="phoenix"),
            "PHOENIX_WORKING_DIR": str(settings.home / "phoenix"),
            "PHOENIX_TELEMETRY_ENABLED": "false",
            "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
            "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
            "PHOENIX_ENABLE_MCP_SERVER": "false",
            "PHOENIX_LOG_MIGRATIONS": "false",
            "PHOENIX_ALLOWED_SANDBOX_PROVIDERS": "NONE",
        },
        url=url,
        health=f"{url}/readyz",
        needs=_NEEDS["phoenix"],
        start_timeout_s=240,
    )


def _engine(name: str, settings: Settings, ports: Ports) -> Service:
    model, port = MODELS[name], ports[name]
    options = {
        "--model": str(weights_folder(settings) / model),
        "--served-model-name": model,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--max-model-len": "2048",
        # Confidence needs probabilities over what the schema allows, for up to 20 alternatives.
        "--logprobs-mode": "processed_logprobs",
        "--max-logprobs": "20",
        # Small models fill JSON with blanks until the token limit; only this server option stops them.
        "--structured-outputs-config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
        "--generation-config": "vllm",
    }
    flags = ("--enforce-eager", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log")
    words = [word for pair in options.items() for word in pair]
    return Service(
        name=name,
        description=f"vLLM on the CPU serving {model}",
        venv="engine",
        # The distribution is called vllm-cpu, so `vllm serve` does not find itself; the module does.
        argv=(python(settings, "engine"), "-m", "vllm.entrypoints.openai.api_server", *words, *flags),
        environment={
            **QUIET,
            **vllm_cpu.environment(settings.home / "cache"),
            "VLLM_API_KEY": model_key(settings),
        },
        url=f"http://127.0.0.1:{port}/v1",
        health=f"http://127.0.0.1:{port}/health",
        start_timeout_s=600,
        weights=model,
    )


def _worker(settings: Settings, ports: Ports, waits: frozenset[str], ours: Mapping[str, str]) -> Service:
    url = f"http://127.0.0.1:{ports['worker']}"
    command = ("-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", WORKER)
    return Service(
        name="worker",
        description="Prefect worker: carries the flows out",
        venv="app",
        argv=(python(settings, "app"), *command, "--install-policy", "never", "--with-healthcheck"),
        environment={
            **ours,
            "PYTHONPATH": str(ROOT),
            # Prefect keeps runner_storage in the temporary folder, which two users of a machine would share.
            "TMPDIR": str(settings.home / "tmp"),
            "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
            "PREFECT_WORKER_WEBSERVER_PORT": str(ports["worker"]),
        },
        url=url,
        health=f"{url}/health",
        needs=waits,
    )


def prefect_auth(settings: Settings) -> str:
    """User and password of the embedded Prefect server."""
    return f"headrace:{credentials.secret(settings, 'prefect-password')}"


def phoenix_key(settings: Settings) -> str:
    """The embedded Phoenix's administrator secret, which it takes as an API key."""
    return credentials.secret(settings, "phoenix-api-key")


def model_key(settings: Settings) -> str:
    """Bearer key of the embedded engines: the user's, or a generated one."""
    given = settings.model_api_key
    return given.get_secret_value() if given else credentials.secret(settings, "model-api-key")


def _passfile(settings: Settings) -> dict[str, str]:
    return {"PGPASSFILE": str(postgres.passfile(settings))}


_NEEDS = {
    "prefect": frozenset({"postgres"}),
    "mlflow": frozenset({"postgres"}),
    "phoenix": frozenset({"postgres"}),
    "worker": frozenset({"prefect"}),
}
_BUILDERS: dict[str, Callable[[Settings, Ports], Service]] = {
    "postgres": _postgres,
    "prefect": _prefect,
    "mlflow": _mlflow,
    "phoenix": _phoenix,
}
NAMES = (*_BUILDERS, *MODELS, "worker")
"""Every service there can be, in the order they are shown."""
STOPS = {
    **dict.fromkeys(NAMES, Stop()),
    # Fast shutdown; it ends its own children, in order.
    "postgres": Stop("INT", wait_s=20, group=False),
    # A worker whose server left backs off for minutes after the signal: it goes first, and not for long.
    "worker": Stop(wait_s=8),
}
