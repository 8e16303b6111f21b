"""Who may reach the stack: what speaks against opening a door, and which secrets are none."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
SHORTEST = 16
"""Characters of a secret, at least."""
_FEWEST_DIFFERENT = 6
_WIDEST = {4: 16, 6: 48}
"""Prefix length, by IP version, that a proxy's network has at least."""
_GUESSED = """
admin admin1 admin123 administrator arize changeit changeme change-me default demo dummy empty example guest headrace
letmein local minio minioadmin mlflow none pass passw0rd password password1 password12 password123 password1234 phoenix
postgres prefect qwerty root secret sk-1234 test token user vllm welcome 0000 1234 12345 123456 12345678 123456789
1234567890
"""
_KNOWN_BY_ALL = frozenset(_GUESSED.split())


@dataclass(frozen=True, slots=True)
class Objection:
    """Why the stack does not start: the setting, what is wrong with it, and what mends it. It names no secret."""

    setting: str
    message: str
    fix: str


@dataclass(frozen=True, slots=True)
class Doors:
    """Where the stack would be reached: address listened on, the proxy's public address, whence the proxy comes.

    `secrets` are those that close our own services, by the name of the setting or file that holds them; `logins` those
    that are sent to services of the user's own.
    """

    host: str
    public_url: str | None
    proxy: str | None
    secrets: Mapping[str, Sequence[str]]
    logins: Mapping[str, str]


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only; a name other than localhost may lead anywhere."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reached_at(host: str) -> str:
    """The address at which this machine itself reaches what listens on `host`, as it stands in a URL."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # localhost; any other name is objected to
        return LOOPBACK
    if address.is_unspecified:
        return LOOPBACK
    return f"[{host}]" if address.version == 6 else host


def objections(doors: Doors) -> list[Objection]:
    """Everything that speaks against starting; nothing for a stack on loopback with secrets worth the name."""
    found = [] if is_loopback(doors.host) else _open_without_proxy(doors)
    for name, values in doors.secrets.items():
        found += [_weak(name, why) for value in values if (why := weakness(value))][:1]
    for name, value in doors.logins.items():
        if _is_known(value):
            found.append(_weak(name, "a password that everybody knows"))
    return found


def weakness(secret: str) -> str | None:
    """Why a secret is none, or None; of `user:password` the password counts."""
    password = secret.rpartition(":")[2]
    if _is_known(secret):
        return "a password that everybody knows"
    if len(password) < SHORTEST:
        return f"shorter than {SHORTEST} characters"
    if len(set(password)) < _FEWEST_DIFFERENT:
        return f"made of fewer than {_FEWEST_DIFFERENT} different characters"
    return None


def _is_known(secret: str) -> bool:
    user, _, password = secret.strip().casefold().rpartition(":")
    return password in _KNOWN_BY_ALL or not password or (bool(user) and user == password)


def _weak(name: str, why: str) -> Objection:
    fix = f"Give {name} at least {SHORTEST} characters made at random, or remove it: one is made."
    return Objection(name, f"it is {why}", fix)


def _open_without_proxy(doors: Doors) -> list[Objection]:
    elsewhere = f"{doors.host} can be reached from elsewhere"
    stay = "or leave HEADRACE_HOST at 127.0.0.1, where a proxy on this machine reaches it too"
    found: list[Objection] = []
    try:
        ipaddress.ip_address(doors.host)
    except ValueError:
        return [Objection("HEADRACE_HOST", f"{doors.host!r} is no IP address", "Give the address of an interface.")]
    url = urlsplit(doors.public_url or "")
    if url.scheme != "https" or not url.hostname:
        said = f"{elsewhere}, and HEADRACE_PUBLIC_URL is no https address: passwords would travel in clear"
        found.append(Objection("HEADRACE_HOST", said, f"Put a proxy with TLS in front and name its address, {stay}."))
    elif url.path.strip("/") or url.query or url.port:
        fix = "Give scheme and host alone; the proxy serves each service at the service's own port."
        found.append(Objection("HEADRACE_PUBLIC_URL", "it has a port, a path or a query", fix))
    if (why := _no_proxy(doors.proxy)) is not None:
        fix = f"Give HEADRACE_TLS_PROXY the address that the proxy connects from, {stay}."
        found.append(Objection("HEADRACE_TLS_PROXY", f"{elsewhere}, and {why}", fix))
    return found


def _no_proxy(proxy: str | None) -> str | None:
    if not proxy:
        return "no proxy is named that alone may connect"
    try:
        network = ipaddress.ip_network(proxy)
    except ValueError:
        return f"{proxy!r} is neither an IP address nor a network"
    return None if network.prefixlen >= _WIDEST[network.version] else f"{proxy} is no proxy, but half of the world"
