"""The model servers' own token counters, read from their Prometheus page."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import aiohttp
import httpx

from domain.ledgers import Meter
from infra.llm.addresses import is_loopback
from infra.llm.bodies import read_body

LOOK_S = 2.0
LONGEST_PAGE = 4 * 2**20
_SAMPLE = re.compile(r"^(?P<name>[\w:]+)(?:\{[^}]*\})? (?P<value>[-+.\deE]+)", re.MULTILINE)


def read_meter(base_url: str) -> Meter | None:
    """A server's counters now; None when it has no such page (then nothing can be reconciled, and that is said)."""
    address = _page(base_url)
    try:
        response = httpx.get(address, timeout=10, trust_env=not is_loopback(address))
        response.raise_for_status()
    except httpx.HTTPError:
        return None
    sums = _sums(response.text)
    if "vllm:prompt_tokens_total" not in sums:
        return None
    return Meter(
        prompt=round(sums["vllm:prompt_tokens_total"]),
        completion=round(sums.get("vllm:generation_tokens_total", 0.0)),
        started=sums.get("process_start_time_seconds", 0.0),
    )


@dataclass(frozen=True, slots=True)
class Queue:
    """A server's load now: requests that wait inside it, and tokens it has generated since it started."""

    waiting: float
    tokens: float


async def read_queue(http: aiohttp.ClientSession, base_url: str) -> Queue | None:
    """A server's load; None when it has no such page. Raises what aiohttp raises when it does not answer."""
    timeout = aiohttp.ClientTimeout(total=LOOK_S)
    async with http.get(_page(base_url), timeout=timeout, allow_redirects=False) as response:
        page = await read_body(response, LONGEST_PAGE) if response.status == 200 else b""
    sums = _sums(page.decode(errors="replace"))
    if "vllm:generation_tokens_total" not in sums:
        return None
    return Queue(sums.get("vllm:num_requests_waiting", 0.0), sums["vllm:generation_tokens_total"])


def _page(base_url: str) -> str:
    return base_url.rstrip("/").removesuffix("/v1") + "/metrics"


def _sums(text: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for match in _SAMPLE.finditer(text):
        sums[match["name"]] = sums.get(match["name"], 0.0) + float(match["value"])
    return sums


def read_meters(base_urls: Iterable[str]) -> dict[str, Meter]:
    """The counters of every server that has some."""
    readings = {url: read_meter(url) for url in sorted(set(base_urls))}
    return {url: meter for url, meter in readings.items() if meter is not None}
