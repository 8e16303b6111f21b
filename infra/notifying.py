"""The notifier: sends what is written down as signed Standard Webhooks, again and again until it has arrived."""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from standardwebhooks.webhooks import Webhook

from domain.canonical import digest
from domain.triggers import Endpoint
from infra import credentials
from infra.db.session import transaction
from infra.db.store import notices
from infra.db.store.notices import Notice
from infra.fetching import run_apart
from infra.llm.addresses import is_loopback
from infra.settings import Settings
from infra.triggers import load_triggers

log = logging.getLogger("headrace")
WAITS_S = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds between one try and the next: ten tries in a little over three days, as Standard Webhooks suggests."""
TRY_S = 15.0
"""Time for one try as a whole, seconds."""
LEASE_S = 4 * TRY_S
AT_ONCE = 16
GONE = 410


@dataclass(frozen=True, slots=True)
class Sent:
    """How a try ended: delivered, or why not; `last` when no other try can help."""

    error: str = ""
    last: bool = False


def turn(settings: Settings, *, try_s: float = TRY_S) -> bool:
    """Send what is due, up to sixteen notices side by side, each in `try_s` seconds; whether there may be more.

    Each is sent at least once: a sender that dies after the endpoint has it and before it is written down sends it
    again, with the same webhook-id. Raises StoreError, and WorkloadError when triggers.yaml cannot be read.
    """
    endpoints = load_triggers(settings).notify
    with transaction() as db:
        claimed = notices.claim(db, most=AT_ONCE, lease_s=LEASE_S)
    if not claimed:
        return False
    for notice, sent in zip(claimed, run_apart(_send_all(claimed, endpoints, settings, try_s)), strict=True):
        _settle(notice, sent)
    return True


def _settle(notice: Notice, sent: Sent) -> None:
    over = sent.last or notice.tries > len(WAITS_S)
    with transaction() as db:
        if not sent.error:
            notices.settle(db, notice, state="delivered")
        elif over:
            notices.settle(db, notice, state="dead", error=sent.error)
        else:
            notices.put_off(db, notice, wait_s=WAITS_S[notice.tries - 1], error=sent.error)
    if sent.error:
        then = "it is given up" if over else f"the next try is in {WAITS_S[notice.tries - 1]:,} s"
        log.warning("%s could not be told of %s: %s; %s", notice.endpoint, notice.key, sent.error, then)


async def _send_all(
    claimed: list[Notice], endpoints: Mapping[str, Endpoint], settings: Settings, try_s: float
) -> list[Sent]:
    async with _client(try_s) as client:
        tries = (_send(client, notice, endpoints.get(notice.endpoint), settings, try_s) for notice in claimed)
        return await asyncio.gather(*tries)


async def send_once(notice: Notice, endpoint: Endpoint, settings: Settings) -> Sent:
    """One try, outside the queue."""
    async with _client(TRY_S) as client:
        return await _send(client, notice, endpoint, settings, TRY_S)


def _client(try_s: float) -> httpx.AsyncClient:
    # No redirect takes a signed message elsewhere; no proxy or .netrc of the environment has a say.
    return httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=try_s)


async def _send(
    client: httpx.AsyncClient, notice: Notice, endpoint: Endpoint | None, settings: Settings, try_s: float
) -> Sent:
    if endpoint is None:
        return Sent("triggers.yaml has no such endpoint any more", last=True)
    body = json.dumps(notice.payload, ensure_ascii=False, separators=(",", ":"))
    try:
        if urlsplit(endpoint.url).scheme != "https" and not is_loopback(endpoint.url):
            return Sent("its url must begin with https, because it is not on this machine")
        headers = signed(notice, body, secrets_of(settings, notice.endpoint))
        async with asyncio.timeout(try_s), client.stream("POST", endpoint.url, content=body, headers=headers) as reply:
            status = reply.status_code
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return Sent(f"{type(error).__name__}: {error}"[:200].removesuffix(": "))
    except Exception as error:  # noqa: BLE001 - a secret that is empty, and whatever else would stop the other notices
        return Sent(f"it could not be sent: {type(error).__name__}")
    return _answered(status)


def _answered(status: int) -> Sent:
    if 200 <= status < 300:
        return Sent()
    if status == GONE:
        return Sent("it answers 410: it wants no more", last=True)
    return Sent(f"it answers with status {status}" + (", and redirects are not followed" if status // 100 == 3 else ""))


def signed(notice: Notice, body: str, secrets: list[str]) -> dict[str, str]:
    """The headers of a try: the id is the same each time, time and signature are of now; one signature a secret.

    Raises ValueError for a secret that is none.
    """
    now = datetime.now(UTC)
    name = "msg_" + digest([notice.endpoint, notice.key])[:32]
    return {
        "content-type": "application/json",
        "user-agent": "headrace",
        "webhook-id": name,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(name, now, body) for secret in secrets),
    }


def secrets_file(settings: Settings, endpoint: str) -> Path:
    """Where an endpoint's secrets are, one to a line; a message is signed with each of them."""
    return credentials.folder(settings) / f"notify-{endpoint}"


def secrets_of(settings: Settings, endpoint: str) -> list[str]:
    """An endpoint's secrets; raises ValueError when there are none."""
    file = secrets_file(settings, endpoint)
    found = file.read_text(encoding="ascii").split() if file.is_file() else []
    if not found:
        raise ValueError(f"there is no secret; make one with `headrace notices secret {endpoint}`")
    return found
