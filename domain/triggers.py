"""Triggers: what the user writes in `triggers.yaml`; which senders may say that which dataset has changed."""

from enum import StrEnum
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from domain.workloads import Scope

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
POLL = "poll"
"""The source of deliveries that we make ourselves, when a file that is looked at now and then has changed."""


class _Written(BaseModel):
    """A part of the file: unknown keys are errors, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Scheme(StrEnum):
    """How a sender proves who it is, and what its payloads look like."""

    STANDARD = "standard-webhooks"
    GITHUB = "github"
    HUGGINGFACE = "huggingface"
    LAKEFS = "lakefs"
    S3 = "s3"
    MLFLOW = "mlflow"


class Source(_Written):
    """A sender, reached as POST /hooks/<its name>; its secrets are in the file `webhook-<name>` among our secrets."""

    scheme: Scheme = Scheme.STANDARD


class Selector(_Written):
    """Which of a sender's events mean a dataset; what is empty selects nothing away."""

    repository: str | None = Field(
        default=None, description="owner/name at GitHub and Hugging Face, repository or bucket, prompt or model name."
    )
    ref: str | None = Field(default=None, description="Branch.")
    paths: tuple[str, ...] = Field(default=(), description="Globs, of which one must fit a changed file or key.")


class WatchedDataset(_Written):
    """A dataset of a workload whose changes start a run."""

    workload: str = Field(description="Name of a folder below the workloads folder.")
    rows: Literal["labelled", "incoming"] = Field(
        default="labelled", description="labelled: dataset.uri starts optimize-workload; incoming starts route-batch."
    )
    sources: dict[Name, Selector] = Field(default={}, description="Senders that may say that it has changed.")
    poll_s: float | None = Field(default=None, ge=1, description="Look at the files themselves so often, seconds.")
    debounce_s: float = Field(default=2.0, ge=0, le=3600, description="Wait so long for further news, seconds.")
    scope: Scope = Field(default=Scope.RECHECK, description="How much of the loop a change of labelled rows starts.")
    max_usd: float | None = Field(default=None, ge=0, description="Pause a run before it has spent more, USD.")
    starter: Literal["headrace", "automation"] = Field(
        default="headrace", description="automation: only the event is emitted, and an automation of yours starts runs."
    )


class Permitted(_Written):
    """Where datasets may lie that are read without anybody watching."""

    schemes: tuple[Name, ...] = Field(default=("file",), description="fsspec's names: file, https, s3, hf, …")
    hosts: tuple[str, ...] = Field(default=(), description="Hosts that may be asked, host or host:port.")
    roots: tuple[str, ...] = Field(
        default=(), description="Folders that local files must lie in; empty means the workload's own folder."
    )


class NoticeEvent(StrEnum):
    """What others are told of."""

    PROMOTED = "headrace.bundle.promoted"
    GATE_FAILED = "headrace.gate.failed"
    AUDIT_ALARM = "headrace.audit.alarm"
    RUN_FAILED = "headrace.run.failed"


class Endpoint(_Written):
    """Somebody who is told, by signed Standard Webhooks; the secret is in the file `notify-<name>`."""

    url: str = Field(pattern=r"^https?://", description="Where the message is sent.")
    events: tuple[NoticeEvent, ...] = Field(default=tuple(NoticeEvent), description="Default: all of them.")

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        parts = urlsplit(url)  # ValueError for brackets around what is no address
        if not parts.hostname or parts.port == 0:  # ValueError for a port that is none
            raise ValueError("it names no host and port that could be asked")
        return url


class Triggers(_Written):
    """The whole file."""

    version: Literal[1] = 1
    sources: dict[Name, Source] = {}
    datasets: dict[Name, WatchedDataset] = {}
    permitted: Permitted = Permitted()
    notify: dict[Name, Endpoint] = {}

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name, dataset in self.datasets.items():
            if unknown := sorted(dataset.sources.keys() - self.sources.keys()):
                raise ValueError(f"datasets.{name} names sources that are not declared: {', '.join(unknown)}")
        if POLL in self.sources:
            raise ValueError(f"sources.{POLL}: the name is taken")
        return self
