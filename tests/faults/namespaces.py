"""Two network namespaces with a cable between them and no way out: what is cut off there cannot go another way."""

import json
import os
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.faults.nemesis import PATIENCE_S, ROOT


@dataclass(frozen=True, slots=True)
class Namespace:
    """One end of the cable."""

    name: str
    link: str
    address: str

    def command(self, *words: str) -> list[str]:
        """A command line that runs inside."""
        return ["ip", "netns", "exec", self.name, *words]

    def start(self, *words: str, environment: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start a Python module inside."""
        return subprocess.Popen(
            self.command(sys.executable, "-m", *words),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            text=True,
            **options,
        )

    def set_link(self, state: str) -> None:
        """Its end of the cable, `up` or `down`."""
        _ip("-n", self.name, "link", "set", self.link, state)

    def opened(self) -> int:
        """Connections that were tried from inside, by the kernel's count."""
        lines = [line.split() for line in _run(self.command("cat", "/proc/net/snmp")).splitlines()]
        names, values = (line for line in lines if line[0] == "Tcp:")
        return int(values[names.index("ActiveOpens")])

    def fetch(self, url: str) -> Any:
        """The JSON at an address inside."""
        read = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=60).read().decode())"
        return json.loads(_run(self.command(sys.executable, "-c", read, url)))


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout


def _ip(*words: str) -> str:
    return _run(["ip", *words])


@contextmanager
def cabled() -> Generator[tuple[Namespace, Namespace]]:
    """Two namespaces without a default route, one cable between them; skips where the machine does not allow it."""
    ends = tuple(
        Namespace(f"headrace-{os.getpid()}-{end}", f"cable-{end}", f"10.99.0.{n}") for n, end in ((1, "a"), (2, "b"))
    )
    made: list[Namespace] = []
    try:
        for end in ends:
            try:
                _ip("netns", "add", end.name)
            except (OSError, subprocess.CalledProcessError) as error:
                # Only the kernel can say whether this machine allows it; a partition cannot be played without.
                said = getattr(error, "stderr", None) or error
                pytest.skip(f"no network namespaces here (root and iproute2 are needed): {said}")
            made.append(end)
        near, far = ends
        _ip("-n", near.name, "link", "add", near.link, "type", "veth", "peer", far.link, "netns", far.name)
        for end in ends:
            _ip("-n", end.name, "addr", "add", f"{end.address}/30", "dev", end.link)
            _ip("-n", end.name, "link", "set", "lo", "up")
            end.set_link("up")
            assert _ip("-n", end.name, "route", "show", "default") == "", "a partition could be walked around"
        yield near, far
    finally:
        for end in made:
            _ip("netns", "del", end.name)
