"""The servers of the embedded stack that are not ours: Postgres, Prefect, MLflow, Phoenix, vLLM."""

from infra import credentials, doors, postgres
from infra.llm import vllm_cpu
from infra.service import NEEDS, QUIET, ROOT, Ports, Service, python, weights_folder, with_passfile
from infra.settings import Settings

MODELS = {"engine-cheap": "smollm2-135m-instruct", "engine-strong": "gemma3-270m"}
"""The model each embedded engine serves, under this name."""


def postgres_service(settings: Settings, ports: Ports) -> Service:
    """The ledger's server, and the other servers' databases."""
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


def prefect_service(settings: Settings, ports: Ports) -> Service:
    """Runs, schedules, events."""
    url = doors.origin(settings, "prefect", ports["prefect"])
    host = doors.listens_on(settings, "prefect")
    database = postgres.url(port=ports["postgres"], database="prefect", driver="postgresql+asyncpg")
    command = ("-m", "infra.prefect_server", "server", "start", "--host", host, "--port", str(ports["prefect"]))
    return Service(
        name="prefect",
        description="Prefect server: runs, schedules, events",
        venv="app",
        argv=(python(settings, "app"), *command),
        environment={
            **QUIET,
            **with_passfile(settings),
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(settings.home / "prefect"),
            "PREFECT_API_URL": f"{url}/api",
            **doors.behind_proxy(settings),
            "PREFECT_SERVER_UI_API_URL": f"{doors.public_origin(settings, 'prefect', ports['prefect'])}/api",
            "PREFECT_SERVER_API_AUTH_STRING": credentials.prefect_auth(settings),
            "PREFECT_API_AUTH_STRING": credentials.prefect_auth(settings),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",  # at DEBUG uvicorn writes down what clients log in with
        },
        url=url,
        health=f"{url}/api/health",
        needs=NEEDS["prefect"],
        start_timeout_s=600,
    )


def mlflow_service(settings: Settings, ports: Ports) -> Service:
    """Experiments, prompts, bundles."""
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
            **with_passfile(settings),
            "MLFLOW_BACKEND_STORE_URI": database,
            # Ten processes and 3.8 GB with it, two and 0.5 GB without.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        url=url,
        health=f"{url}/health",
        needs=NEEDS["mlflow"],
        start_timeout_s=600,
    )


def phoenix_service(settings: Settings, ports: Ports) -> Service:
    """Traces and evaluations."""
    url = doors.origin(settings, "phoenix", ports["phoenix"])
    public = doors.public_origin(settings, "phoenix", ports["phoenix"])
    return Service(
        name="phoenix",
        description="Phoenix server: traces and evaluations",
        venv="servers",
        argv=(python(settings, "servers"), "-m", "phoenix.server.main", "serve"),
        environment={
            **QUIET,
            **with_passfile(settings),
            **doors.behind_proxy(settings),
            # A browser that comes by TLS sends its cookie by TLS alone, and posts from no other page than Phoenix's.
            **({"PHOENIX_USE_SECURE_COOKIES": "true", "PHOENIX_CSRF_TRUSTED_ORIGINS": public} if public != url else {}),
            "PHOENIX_HOST": doors.listens_on(settings, "phoenix"),
            "PHOENIX_PORT": str(ports["phoenix"]),
            # Its gRPC port listens on every interface whatever the host says: authentication is what closes it.
            "PHOENIX_GRPC_PORT": str(ports["phoenix-grpc"]),
            "PHOENIX_ENABLE_AUTH": "true",
            "PHOENIX_SECRET": credentials.secret(settings, "phoenix-secret"),
            "PHOENIX_ADMIN_SECRET": credentials.phoenix_key(settings),
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
        needs=NEEDS["phoenix"],
        start_timeout_s=600,
    )


def engine_service(name: str, settings: Settings, ports: Ports) -> Service:
    """One of the two model servers, on the CPU."""
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
    if precision := vllm_cpu.precision():
        options["--dtype"] = precision
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
            "VLLM_API_KEY": credentials.model_key(settings),
        },
        url=f"http://127.0.0.1:{port}/v1",
        health=f"http://127.0.0.1:{port}/health",
        start_timeout_s=600,
        weights=model,
    )
