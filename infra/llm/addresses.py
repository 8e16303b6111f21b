"""Addresses of model servers."""

from urllib.parse import urlsplit


def is_loopback(url: str) -> bool:
    """Whether a server is on this machine: such a one is never asked through a proxy."""
    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")
