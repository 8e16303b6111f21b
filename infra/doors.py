"""Looks at the doors of the stack before it starts: where it would listen, and with which secrets."""

import os
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

from domain import doors
from domain.doors import Doors
from domain.errors import InputError, Place
from infra.settings import Settings

HAVE_LOGIN = frozenset({"prefect", "phoenix", "webhooks"})
"""Services that ask everybody for a secret, and may therefore listen elsewhere than on loopback.

MLflow as it is installed here cannot (its login needs Flask-WTF), and Streamlit has none: a proxy on this machine
reaches them at 127.0.0.1 and asks for a login itself.
"""
LOGINS = ("PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PHOENIX_API_KEY")
"""Variables with which users log in to servers of their own."""


class DoorRefused(InputError):
    """The stack would be open to people who have no business there."""


def check(settings: Settings, services: Collection[str]) -> None:
    """Raises DoorRefused, with every objection and what mends it, before any of these services listens."""
    secrets = _secrets(settings, engines=any(name.startswith("engine-") for name in services))
    logins = _logins(settings)
    found = doors.objections(
        Doors(settings.host, settings.public_url, settings.tls_proxy, secrets=secrets, logins=logins)
    )
    if found:
        first = found[0]
        more = "".join(f"; {other.setting}: {other.message}" for other in found[1:])
        fix = " ".join(dict.fromkeys(objection.fix for objection in found))
        raise DoorRefused(Place(first.setting), f"{first.message}{more}", hint=fix)


def listens_on(settings: Settings, service: str) -> str:
    """The address that a service listens on: what has no login of its own stays on loopback."""
    return settings.host if service in HAVE_LOGIN else doors.LOOPBACK


def origin(settings: Settings, service: str, port: int) -> str:
    """Where processes of this machine reach a service: http://address:port."""
    return f"http://{doors.reached_at(listens_on(settings, service))}:{port}"


def public_origin(settings: Settings, service: str, port: int) -> str:
    """Where browsers reach a service: through the proxy, when there is one."""
    if settings.public_url is None or service not in HAVE_LOGIN:
        return origin(settings, service, port)
    return f"{settings.public_url.rstrip('/')}:{port}"


def behind_proxy(settings: Settings) -> dict[str, str]:
    """What uvicorn has to know: whose word about the original address and scheme it takes, and nobody else's."""
    return {"FORWARDED_ALLOW_IPS": settings.tls_proxy} if settings.tls_proxy else {}


def _secrets(settings: Settings, *, engines: bool) -> dict[str, list[str]]:
    """What closes services of ours, by where it is kept; what is generated is looked at as well, it may be edited."""
    folder = settings.home / "secrets"
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {_shown(file): _lines(file) for file in files if file.is_file() and _is_secret(file)}
    if settings.model_api_key is not None and engines:
        found["VLLM_API_KEY"] = [settings.model_api_key.get_secret_value()]
    return found


def _is_secret(file: Path) -> bool:
    return file.suffix == "" and not file.name.startswith(".") and "pgpass" not in file.name


def _shown(file: Path) -> str:
    return f"secrets/{file.name}"


def _lines(file: Path) -> list[str]:
    # The scheme's prefix is no secret.
    return [line.removeprefix("whsec_") for line in file.read_text(errors="replace").split()]


def _logins(settings: Settings) -> dict[str, str]:
    found = {name: os.environ[name] for name in LOGINS if os.environ.get(name)}
    if settings.database_url and (password := urlsplit(settings.database_url).password):
        found["DATABASE_URL"] = password
    return found
