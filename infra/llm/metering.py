"""The model servers' own token counters, read from their Prometheus page."""

import re
from collections.abc import Iterable

import httpx

from domain.ledgers import Meter
from infra.llm.addresses import is_loopback

_SAMPLE = re.compile(r"^(?P<name>[\w:]+)(?:\{[^}]*\})? (?P<value>[-+.\deE]+)", re.MULTILINE)


def read_meter(base_url: str) -> Meter | None:
    """A server's counters now; None when it has no such page (then nothing can be reconciled, and that is said)."""
    address = base_url.rstrip("/").removesuffix("/v1") + "/metrics"
    try:
        response = httpx.get(address, timeout=10, trust_env=not is_loopback(address))
        response.raise_for_status()
    except httpx.HTTPError:
        return None
    sums: dict[str, float] = {}
    for match in _SAMPLE.finditer(response.text):
        sums[match["name"]] = sums.get(match["name"], 0.0) + float(match["value"])
    if "vllm:prompt_tokens_total" not in sums:
        return None
    return Meter(
        prompt=round(sums["vllm:prompt_tokens_total"]),
        completion=round(sums.get("vllm:generation_tokens_total", 0.0)),
        started=sums.get("process_start_time_seconds", 0.0),
    )


def read_meters(base_urls: Iterable[str]) -> dict[str, Meter]:
    """The counters of every server that has some."""
    readings = {url: read_meter(url) for url in sorted(set(base_urls))}
    return {url: meter for url, meter in readings.items() if meter is not None}
