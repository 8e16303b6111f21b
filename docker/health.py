"""Exits with 0 when the address answers 200: its argument, or HEALTH_URL. Without either there is nothing to ask."""

import os
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 4.0


def healthy(url: str) -> bool:
    """Whether the address answers 200 in time; no proxy is asked."""
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(url, timeout=TIMEOUT_S) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    asked = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("HEALTH_URL", "")
    sys.exit(0 if not asked or healthy(asked) else 1)
