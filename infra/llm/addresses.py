"""Addresses of model servers."""

from urllib.parse import urlsplit

from domain import doors


def is_loopback(url: str) -> bool:
    """Whether a server is on this machine: such a one is never asked through a proxy. A name that begins like an
    address is a name, and may lead anywhere."""
    return doors.is_loopback(urlsplit(url).hostname or "")
