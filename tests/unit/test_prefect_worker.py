"""Prefect's worker while its server is away: it asks on, because its end would be the end of its flows."""

import subprocess
import sys

import pytest

AWAY = """
import asyncio, sys
import httpx
from prefect._internal import observers
from prefect.workers import base
from infra import prefect_worker

if "repaired" in sys.argv:
    prefect_worker.repair()

class Back(Exception):
    pass

async def poll():
    tries.append(1)
    raise Back if len(tries) > 7 else httpx.ConnectError("away")

for module in (base, observers):
    tries = []
    try:
        asyncio.run(module.critical_service_loop(poll, interval=0, printer=lambda *words: None))
    except (Back, RuntimeError) as ended:
        print(type(ended).__name__, len(tries))
"""


@pytest.mark.parametrize(("how", "ends"), [("repaired", "Back 8"), ("as it is", "RuntimeError 3")])
def test_the_loops_of_a_worker_outlast_their_server_only_once_it_is_repaired(how: str, ends: str) -> None:
    """When the second case fails, Prefect has changed this, and `infra/prefect_worker.py` needs another look."""
    done = subprocess.run([sys.executable, "-c", AWAY, how], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [ends, ends], done.stderr
