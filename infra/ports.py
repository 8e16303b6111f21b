"""Ports of the embedded stack: the first free one each, remembered so that addresses stay the same."""

import json
import socket
from collections.abc import Iterable
from pathlib import Path

from infra import credentials, services
from infra.settings import Settings


def remembered(settings: Settings) -> dict[str, int]:
    """The ports of every service that was brought up before."""
    try:
        return dict(json.loads(_file(settings).read_text())["ports"])
    except FileNotFoundError:
        return {}


def allocate(settings: Settings, wanted: Iterable[str], running: Iterable[str]) -> dict[str, int]:
    """Ports for the wanted services: a running one keeps its own, a stopped one too unless somebody took it."""
    ports = remembered(settings)
    kept = set(running)
    chosen = set(wanted)
    for name, (service, first) in services.first_ports(settings).items():
        if service not in chosen or (service in kept and name in ports):
            continue
        if name not in ports or not _free(ports[name]):
            others = {port for other, port in ports.items() if other != name}
            ports[name] = next(port for port in range(first, 65536) if port not in others and _free(port))
    _file(settings).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    credentials.dump(_file(settings), {"ports": ports})
    return ports


def _file(settings: Settings) -> Path:
    return settings.home / "run" / "stack.json"


def _free(port: int) -> bool:
    """Can every interface be bound? A server elsewhere on the same number would take some of the connections."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
