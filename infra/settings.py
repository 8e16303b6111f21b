"""Every knob of Headrace: one frozen tree, read at the edge, each field described."""

import os
from functools import lru_cache
from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


def _given(standard_name: str, field: str) -> AliasChoices:
    """A field that other tools' users already set under a name of theirs."""
    return AliasChoices(f"HEADRACE_{field.upper()}", standard_name)


class Settings(BaseSettings):
    """Settings from the environment (prefix `HEADRACE_`); what the user gives replaces the embedded part."""

    model_config = SettingsConfigDict(
        env_prefix="HEADRACE_", env_nested_delimiter="__", frozen=True, extra="ignore", populate_by_name=True
    )

    home: Path = Field(
        default=Path("~/.local/share/headrace"),
        description="Where environments, weights, databases, logs and secrets live.",
    )
    envs: Path | None = Field(
        default=None,
        description="Folder of the environments, shared by several homes; default: `envs` in the home folder.",
    )
    weights: Path | None = Field(
        default=None, description="Folder of the model weights, shared likewise; default: `weights` in the home folder."
    )
    embedded: bool = Field(
        default=True,
        description="Whether a service without an address is started here; if not, each is somewhere else, "
        "as for a container.",
    )
    workloads: Path = Field(
        default=Path(__file__).parents[1] / "examples", description="Folder with one subfolder a workload."
    )
    triggers: Path | None = Field(
        default=None,
        description="The file that says which senders may start which runs; "
        "default: `triggers.yaml` beside the workloads.",
    )

    database_url: str | None = Field(
        default=None,
        validation_alias=_given("DATABASE_URL", "database_url"),
        description="A Postgres of yours, postgresql+psycopg://user@host:port/database; "
        "the password belongs in PGPASSFILE. Replaces the embedded server.",
    )
    reader_url: str | None = Field(
        default=None,
        description="The same database for the dashboard, as a role that may only read the schema `views`; "
        "the password belongs in PGPASSFILE.",
    )
    dashboard_url: str | None = Field(
        default=None, description="Where people find the dashboard; runs link to it. Written by the stack."
    )
    prefect_api_url: str | None = Field(
        default=None,
        validation_alias=_given("PREFECT_API_URL", "prefect_api_url"),
        description="A Prefect server of yours.",
    )
    mlflow_tracking_uri: str | None = Field(
        default=None,
        validation_alias=_given("MLFLOW_TRACKING_URI", "mlflow_tracking_uri"),
        description="An MLflow server of yours.",
    )
    phoenix_endpoint: str | None = Field(
        default=None,
        validation_alias=_given("PHOENIX_COLLECTOR_ENDPOINT", "phoenix_endpoint"),
        description="A Phoenix server of yours (base URL).",
    )
    phoenix_api_key: SecretStr | None = Field(
        default=None, validation_alias=_given("PHOENIX_API_KEY", "phoenix_api_key"), description="Its API key."
    )
    model_api_key: SecretStr | None = Field(
        default=None,
        validation_alias=_given("VLLM_API_KEY", "model_api_key"),
        description="Bearer key for the model servers.",
    )
    engines: dict[str, str] = Field(
        default_factory=dict,
        description='Base URLs of embedded model servers by served model name, {"name": "http://127.0.0.1:8000/v1"}. '
        "Written by the stack; a tier's own base_urls win.",
    )

    engine_revisions: dict[str, str] = Field(
        default_factory=dict,
        description="What identifies the weights behind `engines`, by served model name; written by the stack. "
        "It is part of every request's identity, so that other weights are never answered from the ledger.",
    )

    ray_address: str | None = Field(
        default=None,
        description="Dashboard of a Ray cluster of yours, http://host:8265; without it `engine: ray` starts Ray here.",
    )
    ray_storage: str | None = Field(
        default=None,
        description="Folder for its requests and replies, an fsspec uri that this machine and the cluster reach; "
        "default: `ray` in the home folder.",
    )
    ray_token_file: Path | None = Field(
        default=None, description="File with the cluster's token (RAY_AUTH_MODE=token there)."
    )

    host: str = Field(
        default="127.0.0.1",
        description="Address that Prefect, Phoenix and the receiver listen on. Another one than loopback needs "
        "`public_url` and `tls_proxy`; what has no login stays on loopback.",
    )
    public_url: str | None = Field(
        default=None,
        description="https://name of the proxy that ends TLS; it serves each service at the service's own port.",
    )
    tls_proxy: str | None = Field(default=None, description="Address or network that the proxy connects from.")

    port_postgres: int = Field(default=54329, description="First port tried for Postgres; the next free one is taken.")
    port_prefect: int = Field(default=4200, description="First port tried for Prefect.")
    port_mlflow: int = Field(default=5000, description="First port tried for MLflow.")
    port_phoenix: int = Field(default=6006, description="First port tried for Phoenix.")
    port_phoenix_grpc: int = Field(default=4317, description="First port tried for Phoenix's OTLP over gRPC.")
    port_engine: int = Field(default=8000, description="First port tried for the model servers.")
    port_worker: int = Field(default=4280, description="First port tried for the worker's own health answer.")
    port_webhooks: int = Field(default=8080, description="First port tried for the receiver of webhooks.")
    port_dashboard: int = Field(default=8501, description="First port tried for the dashboard.")

    chunk_rows: int = Field(default=10_000, ge=1, description="Rows in one Prefect task run.")
    in_flight: int = Field(
        default=32, ge=1, description="Requests under way at once per model server, at most; it adapts below that."
    )
    window: int = Field(
        default=1024,
        ge=1,
        description="Rows under way at once, sent or answered and not yet stored: what a kill may cost.",
    )
    request_deadline_s: float = Field(
        default=120.0, gt=0, description="Time one request may spend being answered, over all its tries, seconds."
    )
    outage_patience_s: float = Field(
        default=300.0, gt=0, description="How long a run waits while no model server answers, seconds."
    )
    lease_s: float = Field(
        default=30.0, gt=0, description="A run's process that is silent for so long, seconds, is taken as dead."
    )
    store_patience_s: float = Field(
        default=90.0, ge=0, description="So long a run waits for a Postgres that is away, seconds."
    )
    span_sample: float = Field(
        default=0.1, ge=0, le=1, description="Share of rows whose calls are sent to Phoenix as spans."
    )


_READ = ("HEADRACE_", "DATABASE_URL", "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PHOENIX_", "VLLM_API_KEY", "HOME")


def load_settings() -> Settings:
    """The settings that the environment gives now; the home folder comes back absolute."""
    return _settings(tuple(item for item in os.environ.items() if item[0].startswith(_READ)))


@lru_cache(maxsize=4)
def _settings(_environment: tuple[tuple[str, str], ...]) -> Settings:
    settings = Settings()
    return settings.model_copy(update={"home": settings.home.expanduser().resolve()})
