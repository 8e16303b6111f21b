"""Test messages: signed as their source's scheme wants it, shown as a command, and sent."""

import json
import secrets as randomness
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx

from domain.errors import HeadraceError, NotFound
from domain.sample_messages import sample_message
from domain.triggers import Scheme, Source
from infra import signatures
from infra.settings import Settings
from infra.triggers import load_triggers

ANSWER_S = 30.0
_VERBATIM = {Scheme.HUGGINGFACE: "", Scheme.LAKEFS: "Bearer ", Scheme.S3: "Bearer "}
"""Schemes that send the secret itself, and what stands before it."""


class Unreachable(HeadraceError):
    """The receiver does not answer."""

    retryable = True
    hint = "Start it with `headrace webhooks serve`, or give its address with --url."


@dataclass(frozen=True, slots=True)
class Message:
    """A request that is ready to be sent."""

    url: str
    headers: dict[str, str]
    body: bytes
    curl: str
    """The same for a shell; a secret that the scheme sends as it is is read from its file there."""


def declared(settings: Settings, source: str) -> Source:
    """A source of triggers.yaml; raises NotFound."""
    sources = load_triggers(settings).sources
    if source not in sources:
        names = ", ".join(sources) or "none"
        raise NotFound(f"There is no source {source!r}.", hint=f"triggers.yaml declares: {names}.")
    return sources[source]


def sample(settings: Settings, source: str, dataset: str, *, url: str, now: float) -> Message:
    """A message from a source that means a dataset; raises NotFound when triggers.yaml does not let it, or there is
    no secret. `now` in seconds since 1970."""
    scheme = declared(settings, source).scheme
    watched = load_triggers(settings).datasets.get(dataset)
    if watched is None or source not in watched.sources:
        raise NotFound(f"{source} may not say that {dataset!r} has changed.", hint="triggers.yaml says who may.")
    known = signatures.secrets_of(settings, source)
    if not known:
        raise NotFound(f"{source} has no secret.", hint=f"Make one with `headrace webhooks secret {source}`.")
    at = datetime.fromtimestamp(now, UTC).isoformat()
    event, payload = sample_message(scheme, dataset, watched.sources[source], unique=randomness.token_hex(20), at=at)
    body = json.dumps(payload).encode()
    delivery_id = f"test_{randomness.token_hex(12)}"
    signed = signatures.sign(scheme, known[0], body, delivery_id=delivery_id, now=now, event=event)
    headers = {"content-type": "application/json", **signed}
    address = f"{url.rstrip('/')}/hooks/{source}"
    return Message(address, headers, body, _curl(settings, source, scheme, address, headers, body))


def _curl(settings: Settings, source: str, scheme: Scheme, url: str, headers: dict[str, str], body: bytes) -> str:
    before = _VERBATIM.get(scheme)
    read = f'"{{}}: {before}$(head -n1 {shlex.quote(str(signatures.secrets_file(settings, source)))})"'
    shown = [
        read.format(name)
        if before is not None and name in ("authorization", "x-webhook-secret")
        else shlex.quote(f"{name}: {value}")
        for name, value in headers.items()
    ]
    lines = [f"curl -i {shlex.quote(url)}", *(f"-H {header}" for header in shown)]
    return " \\\n  ".join([*lines, f"--data-binary {shlex.quote(body.decode())}"])


def send(message: Message) -> tuple[int, str]:
    """Status and body of the answer; raises Unreachable."""
    try:
        with httpx.Client(trust_env=False, timeout=ANSWER_S) as client:
            answer = client.post(message.url, headers=message.headers, content=message.body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(f"{message.url} does not answer: {type(error).__name__}.") from error
    return answer.status_code, answer.text
