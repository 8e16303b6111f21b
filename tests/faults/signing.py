"""Schemathesis' hooks: messages go to sources that exist, and are signed as those want it.

`HEADRACE_TEST_SENDERS` holds {source: [scheme, secret]} as JSON; an empty secret signs nothing.
"""

import itertools
import json
import os
import time
from typing import Any
from urllib.parse import urlsplit

import requests
import schemathesis

from domain.triggers import Scheme
from infra.signatures import sign

SENDERS: dict[str, tuple[str, str]] = json.loads(os.environ["HEADRACE_TEST_SENDERS"])
_numbers = itertools.count()


class Signing(requests.auth.AuthBase):
    """Signs the raw body, after all that was made up for it has been written."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the headers of the scheme of the source in the path."""
        scheme, secret = SENDERS.get(urlsplit(request.url or "").path.rpartition("/")[2], ("", ""))
        body = request.body or b""
        raw = body.encode() if isinstance(body, str) else bytes(body)
        if secret and _is_text(raw):
            delivery = f"fuzz_{os.getpid()}_{next(_numbers)}"
            headers = sign(Scheme(scheme), secret, raw, delivery_id=delivery, now=time.time(), event="push")
            request.headers.update(headers)
        return request


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


@schemathesis.hook
def map_path_parameters(_context: object, path_parameters: dict[str, Any]) -> dict[str, Any]:
    """Most names that are made up belong to nobody: three of four become a source that exists."""
    n = next(_numbers)
    if n % 4 and path_parameters and "source" in path_parameters:
        return {**path_parameters, "source": sorted(SENDERS)[n % len(SENDERS)]}
    return path_parameters


if any(secret for _, secret in SENDERS.values()):
    schemathesis.auth.set_from_requests(Signing())
