"""One canonical JSON and one digest: the identity of everything Headrace stores."""

import hashlib
import json

from pydantic import JsonValue

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: JsonValue) -> bytes:
    """JSON with sorted keys and no spaces, UTF-8; equal values give equal bytes."""
    return _ENCODER.encode(value).encode()


def digest(value: JsonValue) -> str:
    """sha256 (64 hex digits) of the canonical form."""
    return hashlib.sha256(canonical(value)).hexdigest()


def share(identity: str, *, salt: str) -> float:
    """A number in [0, 1) that depends on nothing but the identity and the salt."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{identity}".encode()).digest()[:8]) / 2**64
