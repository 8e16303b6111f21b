"""A sealed process: no socket by any way, and the open connection to Postgres goes on working."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.integration.recorded_runs import ROOT

SCRIPT = """
import asyncio, ctypes, errno, json, os, socket, subprocess, sys, threading
import psycopg
from sqlalchemy import text
from infra.db.session import database_url, transaction
from infra.sealing import seal

address = database_url().replace("postgresql+psycopg://", "postgresql://")
unconnected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
libc = ctypes.CDLL(None, use_errno=True)
sealed, found = threading.Event(), {}

def in_c(family=socket.AF_INET):
    return errno.errorcode.get(ctypes.get_errno()) if libc.socket(family, socket.SOCK_STREAM, 0) < 0 else "opened"

def earlier_thread():
    sealed.wait()
    found["a thread from before"] = in_c()

def refusal(work):
    try:
        return f"did it: {work()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"

thread = threading.Thread(target=earlier_thread)
thread.start()
with transaction() as db:
    db.execute(text("select 1"))
SEAL
sealed.set()
thread.join()
found["socket"] = refusal(socket.socket)
found["name"] = refusal(lambda: socket.getaddrinfo("localhost", 80))
found["datagram"] = refusal(lambda: unconnected.sendto(b"x", ("127.0.0.1", 9)))
found["in C"] = in_c()
found["unix socket in C"] = in_c(socket.AF_UNIX)
found["libpq"] = refusal(lambda: psycopg.connect(address))
child = "import socket\\ntry: print(socket.socket())\\nexcept OSError as error: print(type(error).__name__)"
found["child"] = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout.strip()
found["event loop"] = asyncio.run(asyncio.sleep(0, "runs"))
with transaction() as db:
    found["database"] = db.scalar(text("select 42"))
print(json.dumps({"found": found, "gap": holding.gap, "tried": holding.tried}))
"""


def ask(script: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def sealed(ledger: str) -> dict[str, Any]:
    """What a sealed process found out about itself."""
    return ask(SCRIPT.replace("SEAL", "holding = seal()"))


def test_the_kernel_holds_the_seal(sealed: dict[str, Any]) -> None:
    assert sealed["gap"] is None


@pytest.mark.parametrize("way", ["in C", "unix socket in C", "a thread from before"])
def test_no_socket_can_be_opened_past_python(sealed: dict[str, Any], way: str) -> None:
    assert sealed["found"][way] == "EPERM"


@pytest.mark.parametrize("way", ["socket", "name", "datagram"])
def test_python_says_who_tried(sealed: dict[str, Any], way: str) -> None:
    assert sealed["found"][way].startswith("NetworkForbidden: [Errno 1] no socket may be opened here; __main__:")
    assert [event.rpartition(" ")[2] for event in sealed["tried"]] == [
        "socket.__new__",
        "socket.getaddrinfo",
        "socket.sendto",
    ]


def test_another_connection_to_the_very_same_database_is_refused_too(sealed: dict[str, Any]) -> None:
    assert sealed["found"]["libpq"].startswith("OperationalError")


def test_a_child_is_sealed_as_well(sealed: dict[str, Any]) -> None:
    assert sealed["found"]["child"] == "PermissionError"


def test_the_open_connection_and_event_loops_go_on_working(sealed: dict[str, Any]) -> None:
    assert sealed["found"]["database"] == 42
    assert sealed["found"]["event loop"] == "runs"


def test_without_the_seal_all_of_it_would_have_been_possible(ledger: str) -> None:
    found = ask(SCRIPT.replace("SEAL", "import types; holding = types.SimpleNamespace(gap=None, tried=[])"))["found"]
    assert [found[way] for way in ("in C", "unix socket in C", "a thread from before")] == ["opened"] * 3
    assert all(found[way].startswith("did it") for way in ("socket", "name", "datagram", "libpq"))
    assert found["child"].startswith("<socket.socket")
