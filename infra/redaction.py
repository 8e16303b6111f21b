"""Taking secrets out of what others said to us before it is kept: a server may repeat the key that it was given."""

import base64
from functools import lru_cache
from urllib.parse import quote, quote_plus

STARS = "***"
SHORTEST = 6
"""A secret of fewer characters is left alone: it would be found in anything."""


def redacted(text: str, *secrets: str | None) -> str:
    """A text without these secrets, plain, URL-encoded or in base64 at any place of what was encoded."""
    for secret in secrets:
        if secret and len(secret) >= SHORTEST:
            for form in forms(secret):
                text = text.replace(form, STARS)
    return text


@lru_cache(maxsize=64)
def forms(secret: str) -> tuple[str, ...]:
    """How a secret may be written, the longest first; of base64 what does not depend on its neighbours."""
    found = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), secret.encode().hex()}
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + secret.encode()).decode().rstrip("=")
        whole = encoded[(0, 2, 3)[before] : len(encoded) - (0 if (before + len(secret.encode())) % 3 == 0 else 1)]
        found |= {whole, whole.replace("+", "-").replace("/", "_")}
    return tuple(sorted(found, key=len, reverse=True))
