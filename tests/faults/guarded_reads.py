"""Reads what it is told to under guard, in a namespace of its own, with a listener wherever an attack would want one.

`python -m tests.faults.guarded_reads` takes a JSON object on stdin and says what came of it as JSON on stdout.
"""

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domain.errors import HeadraceError, NotPermitted
from domain.triggers import Permitted
from domain.workloads import Dataset
from infra.permits import permitted_files
from infra.snapshots import read_records

REBOUND = "rebound.example"
PUBLIC = "93.184.216.34"
"""An address that is public by its number; here it is one of this namespace's own."""
ROW = b'{"id": "1", "text": "caught"}\n'


@dataclass
class Canary:
    """Listens on an address and counts who comes; answers with a row, or with a redirect to another listener."""

    address: str
    port: int
    redirect: str | None = None
    heads: list[str] = field(default_factory=list[str])

    def sing(self) -> "Canary":
        """Begin to listen."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        listening = socket.create_server((self.address, self.port), family=family)
        threading.Thread(target=self._serve, args=(listening,), daemon=True).start()
        return self

    def _serve(self, listening: socket.socket) -> None:
        while True:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                self.heads.append("connected")
                self.heads[-1] = connection.recv(4096).decode(errors="replace")
                status = f"302 Found\r\nLocation: {self.redirect}" if self.redirect else "200 OK"
                connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(ROW)}\r\n\r\n".encode() + ROW)


def counted() -> tuple[int, int]:
    """Connections that this namespace has tried, and datagrams that it has sent, by the kernel's count."""
    lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
    found = {line[0] + name: 0 for line in lines for name in line[1:] if not name.lstrip("-").isdigit()}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        found.update({names[0] + name: int(value) for name, value in zip(names[1:], values[1:], strict=True)})
    return found["Tcp:ActiveOpens"], found["Udp:OutDatagrams"]


def read(uri: str, folder: Path, permitted: Permitted | None) -> str:
    """What comes of a workload's dataset at this uri: rows, or the name of the error."""
    dataset = Dataset(uri=uri, inputs=("text",), gold={"topic": "topic"})
    try:
        rows = list(read_records(dataset, dataset.uri, folder, labelled=False, permitted=permitted))
    except HeadraceError as error:
        said = "NotPermitted" if isinstance(error, NotPermitted) else type(error).__name__
        return f"{said}: {error}"
    except Exception as error:  # noqa: BLE001 - only without a guard: whatever the libraries raise
        return f"untranslated: {type(error).__name__}: {error}"
    return f"{len(rows)} rows"


def rebind(folder: Path, canaries: Sequence[Canary]) -> dict[str, Any]:
    """A name that stands for a public address when it is looked up first, and for loopback from then on."""
    asked: list[str] = []

    def resolver(_host: str, _port: int) -> list[str]:
        asked.append(PUBLIC if not asked else "127.0.0.1")
        return asked[-1:]

    permitted = Permitted(schemes=("http",), hosts=(REBOUND,))
    (file,) = permitted_files(f"http://{REBOUND}/rows.jsonl", folder, permitted, resolver=resolver)
    outcomes: list[str] = []
    for _ in range(2):
        try:
            with file.open() as stream:
                outcomes.append(f"{len(stream.read().splitlines())} rows")
        except HeadraceError as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    heads = {f"{c.address}:{c.port}": c.heads for c in canaries if c.heads}
    return {"looked up": asked, "outcomes": outcomes, "heads": heads}


def main() -> None:
    """Everything in its order; each part with what the kernel counted during it."""
    told = json.load(sys.stdin)
    folder, permitted = Path(told["folder"]), Permitted.model_validate(told["permitted"])
    canaries = [Canary(address, port, redirect).sing() for address, port, redirect in told["canaries"]]
    done: dict[str, Any] = {}
    for part, uris, guard in (
        ("guarded", told["uris"], permitted),
        ("redirected", told["redirected"], permitted),
        ("allowed", told["allowed"], permitted),
        ("unguarded", told["uris"] if told["unguarded"] else [], None),
    ):
        before, seen = counted(), [len(c.heads) for c in canaries]
        outcomes = {uri: read(uri, folder, guard) for uri in uris}
        opened, sent = (now - then for now, then in zip(counted(), before, strict=True))
        caught = {
            f"{c.address}:{c.port}": len(c.heads) - n for c, n in zip(canaries, seen, strict=True) if len(c.heads) > n
        }
        done[part] = {"outcomes": outcomes, "opened": opened, "datagrams": sent, "caught": caught}
        if part == "allowed":
            for canary in canaries:
                canary.heads.clear()
            done["rebind"] = rebind(folder, canaries)
    print(json.dumps(done))


if __name__ == "__main__":
    main()
