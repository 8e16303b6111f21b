"""Who sent a message: each scheme's proof, checked on the raw body in constant time, and its secrets.

A source's secrets are in the file `webhook-<source>` of the secrets folder, one to a line, the newest first. All of
them are valid, and they are read at each request: a secret is changed without a restart and without a lost message.
"""

import base64
import hashlib
import hmac
import logging
import re
import secrets as randomness
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from domain.errors import HeadraceError, InputError, Place
from domain.triggers import Scheme
from infra import credentials
from infra.settings import Settings

log = logging.getLogger("headrace")
Headers = Sequence[tuple[str, str]]
"""Names in lower case, values as latin-1, in the order in which they came, repeats and all."""
TOLERANCE_S = 300
"""A message whose time is further from ours is refused, both ways."""
MOST_SECRETS = 2
PREFIX = "whsec_"
_STAMP = re.compile(r"[0-9]{1,11}", re.ASCII)


class NotBelieved(HeadraceError):
    """A message does not prove that it comes from its source; what is missing is for our log, not for the sender."""

    hint = "Compare the sender's secret with `webhook-<source>` in our secrets folder, and both clocks."


@dataclass(frozen=True, slots=True)
class Believed:
    """A message that comes from its source: its id, by which it is known again, and the event that its head names."""

    delivery_id: str
    event: str = ""


def secrets_file(settings: Settings, source: str) -> Path:
    """Where the secrets of a source are; `source` is a name of triggers.yaml."""
    return credentials.folder(settings) / f"webhook-{source}"


def secrets_of(settings: Settings, source: str) -> tuple[str, ...]:
    """The valid secrets of a source, the newest first; none when there is no file, or none that can be read."""
    try:
        return tuple(secrets_file(settings, source).read_text(encoding="ascii").split())
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        log.error("the secrets of the source %s cannot be read: %s", source, type(error).__name__)  # noqa: TRY400
        return ()


def new_secret(scheme: Scheme) -> str:
    """A secret of 256 bits, in the form that the scheme's senders take."""
    if scheme is Scheme.STANDARD:
        return PREFIX + base64.b64encode(randomness.token_bytes(32)).decode()
    return randomness.token_hex(32)


def same(given: bytes, expected: bytes) -> bool:
    """Whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(given, expected)


def verify(scheme: Scheme, headers: Headers, body: bytes, secrets: Sequence[str], *, now: float) -> Believed:
    """Make sure that a message was sent by somebody who knows one of the secrets; `now` in seconds since 1970.

    Raises NotBelieved, and InputError when it is believed and has no id of its own.

    | scheme | proof | delivery id |
    |---|---|---|
    | standard-webhooks | HMAC over id, time and body | webhook-id |
    | mlflow | the same under other names, raw key | X-MLflow-Delivery-Id |
    | github | HMAC of the body | X-GitHub-Delivery, unsigned: a body sent again under another id counts as new |
    | huggingface | the secret itself | sha256 of the body, and the hour: a ref moved to and fro says the same again |
    | lakefs, s3 | the secret itself, `Bearer` or bare | sha256 of the body, which holds event time or sequencer |
    """
    if not secrets:
        raise NotBelieved(
            "the source has no secret, so nobody is believed", hint="Make one with `headrace webhooks secret SOURCE`."
        )
    return _CHECKS[scheme](headers, body, secrets, now)


def _signed(
    names: tuple[str, str, str], key: Callable[[str], str | bytes]
) -> Callable[[Headers, bytes, Sequence[str], float], Believed]:
    """Standard Webhooks' check, under these names of id, time and signature, with a secret as this key."""

    def check(headers: Headers, body: bytes, secrets: Sequence[str], now: float) -> Believed:
        delivery_id, stamp, signature = (_only(headers, name) for name in names)
        if not _STAMP.fullmatch(stamp):
            raise NotBelieved("the time of the message is no number of seconds")
        # The library looks at the time too, by the machine's clock; this one also bounds schemes and clocks of ours.
        if abs(int(stamp) - now) > TOLERANCE_S:
            raise NotBelieved(f"the message is {abs(int(stamp) - now):.0f} s away from our clock")
        given = {"webhook-id": delivery_id, "webhook-timestamp": stamp, "webhook-signature": signature}
        if not sum(_library_believes(key, secret, given, body) for secret in secrets):  # all of them, always
            raise NotBelieved("no signature of the message fits")
        return Believed(_printable(delivery_id))

    return check


def _library_believes(key: Callable[[str], str | bytes], secret: str, headers: dict[str, str], body: bytes) -> bool:
    try:
        Webhook(key(secret)).verify(body, headers, json_parse=False)
    # A signature without a comma, one that is not ASCII or not base64, a body that is not UTF-8: the library lets
    # ValueErrors of all kinds through, and would let anybody have a 500.
    except (WebhookVerificationError, ValueError):
        return False
    except Exception as error:  # noqa: BLE001 - an empty secret, and whatever else it does not declare
        log.error("a signature could not be checked: %s", type(error).__name__)  # noqa: TRY400
        return False
    return True


def _github(headers: Headers, body: bytes, secrets: Sequence[str], _now: float) -> Believed:
    given = _only(headers, "x-hub-signature-256").encode("latin-1")
    if not sum(same(given, _hub(secret, body).encode()) for secret in secrets):
        raise NotBelieved("the signature does not fit")
    names = dict(headers)
    return Believed(_printable(names.get("x-github-delivery", "")), names.get("x-github-event", ""))


def _hub(secret: str, body: bytes) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _huggingface(headers: Headers, body: bytes, secrets: Sequence[str], now: float) -> Believed:
    _verbatim(_only(headers, "x-webhook-secret"), secrets)
    return Believed(f"{hashlib.sha256(body).hexdigest()}-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H}")


def _bearer(headers: Headers, body: bytes, secrets: Sequence[str], _now: float) -> Believed:
    given = _only(headers, "authorization")
    scheme, _, token = given.partition(" ")
    _verbatim(token.strip() if scheme.lower() == "bearer" else given, secrets)
    return Believed(hashlib.sha256(body).hexdigest())


def _verbatim(given: str, secrets: Sequence[str]) -> None:
    if not sum(same(given.encode("latin-1"), secret.encode()) for secret in secrets):
        raise NotBelieved("the secret does not fit")


def _only(headers: Headers, name: str) -> str:
    """The one value of a header; a second one could be meant for somebody else who looks."""
    values = [value for key, value in headers if key == name]
    if len(values) != 1 or not values[0]:
        raise NotBelieved(f"the header {name} is {'given twice' if len(values) > 1 else 'missing'}")
    return values[0]


def _printable(delivery_id: str) -> str:
    if not delivery_id or not delivery_id.isascii() or not delivery_id.isprintable():
        raise InputError(Place("head"), "the delivery id is missing, or no plain text", hint="Send its header.")
    return delivery_id


_STANDARD = ("webhook-id", "webhook-timestamp", "webhook-signature")
_MLFLOW = ("x-mlflow-delivery-id", "x-mlflow-timestamp", "x-mlflow-signature")
_CHECKS: dict[Scheme, Callable[[Headers, bytes, Sequence[str], float], Believed]] = {
    Scheme.STANDARD: _signed(_STANDARD, str),
    Scheme.MLFLOW: _signed(_MLFLOW, str.encode),
    Scheme.GITHUB: _github,
    Scheme.HUGGINGFACE: _huggingface,
    Scheme.LAKEFS: _bearer,
    Scheme.S3: _bearer,
}


def sign(scheme: Scheme, secret: str, body: bytes, *, delivery_id: str, now: float, event: str = "") -> dict[str, str]:
    """The headers that make a message of ours one of this scheme: the sender's side of `verify`."""
    match scheme:
        case Scheme.STANDARD | Scheme.MLFLOW:
            names = _STANDARD if scheme is Scheme.STANDARD else _MLFLOW
            signer: Any = Webhook(secret if scheme is Scheme.STANDARD else secret.encode())
            at = datetime.fromtimestamp(int(now), UTC)
            values = (delivery_id, str(int(now)), signer.sign(delivery_id, at, body.decode()))
            return dict(zip(names, values, strict=True))
        case Scheme.GITHUB:
            return {
                "x-hub-signature-256": _hub(secret, body),
                "x-github-delivery": delivery_id,
                "x-github-event": event,
            }
        case Scheme.HUGGINGFACE:
            return {"x-webhook-secret": secret}
        case Scheme.LAKEFS | Scheme.S3:
            return {"authorization": f"Bearer {secret}"}
