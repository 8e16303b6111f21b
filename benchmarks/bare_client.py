"""The bare client that Headrace is measured against: aiohttp, a bounded number of lanes, no database, no checks.

What a competent engineer writes in an hour: one session with keep-alive, as many calls under way as Headrace's window,
each answer parsed and its text kept. The bodies are the very bytes that Headrace sends, made beforehand, so nothing is
rendered here. Runs as a process of its own and prints one line of JSON. The server's key, if it wants one, is in
`VLLM_API_KEY`.
"""

import argparse
import asyncio
import json
import os
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
import orjson
import uvloop


async def ask_all(url: str, bodies: Sequence[bytes], *, in_flight: int, api_key: str | None) -> list[str]:
    """The text of the answer to every body, in their order; raises aiohttp.ClientError."""
    texts = [""] * len(bodies)
    left: Iterator[tuple[int, bytes]] = iter(enumerate(bodies))
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"

    async def lane(http: aiohttp.ClientSession) -> None:
        for place, body in left:
            async with http.post(url, data=body) as answer:
                answer.raise_for_status()
                parsed = orjson.loads(await answer.read())
            texts[place] = parsed["choices"][0]["message"]["content"]

    connector = aiohttp.TCPConnector(limit=in_flight)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as http:
        await asyncio.gather(*(lane(http) for _ in range(in_flight)))
    return texts


def main(argv: Sequence[str] | None = None) -> None:
    """Post every line of a file and print how long it took."""
    parser = argparse.ArgumentParser(description="A bare aiohttp client.")
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--bodies", type=Path, required=True, help="One request body a line.")
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--uvloop", action="store_true", help="Run on uvloop instead of asyncio's own event loop.")
    options = parser.parse_args(argv)
    bodies = options.bodies.read_bytes().splitlines()
    began, cpu = time.perf_counter(), time.process_time()
    url = f"{options.base_url}/chat/completions"
    run = uvloop.run if options.uvloop else asyncio.run
    texts = run(ask_all(url, bodies, in_flight=options.in_flight, api_key=os.environ.get("VLLM_API_KEY")))
    seconds = time.perf_counter() - began
    figures = {
        "rows": len(texts),
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "characters": sum(map(len, texts)),
        "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
