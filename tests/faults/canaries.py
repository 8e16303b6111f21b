"""Secrets that are told apart by what they say, and where to look for them: files, archives, dumps, command lines."""

import os
import subprocess
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra import postgres
from infra.redaction import forms

CHUNK = 1 << 20


@dataclass
class Watch:
    """Looks for secrets; `hits` names the place, and the secret, never its value."""

    secrets: Mapping[str, str]
    hits: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    read: dict[str, int] = field(default_factory=dict[str, int])

    def look(self, kind: str, place: str, parts: Iterable[bytes]) -> None:
        """Look through bytes that come in parts, also across their borders."""
        wanted = [(name, form.encode()) for name, secret in self.secrets.items() for form in forms(secret)]
        longest = max(len(form) for _, form in wanted)
        end = b""
        for part in parts:
            text = end + part
            self.read[kind] = self.read.get(kind, 0) + len(part)
            self.hits |= {(name, f"{kind}: {place}") for name, form in wanted if form in text}
            end = text[-longest:]

    def look_into(self, kind: str, folder: Path, *, but: Iterable[Path] = ()) -> None:
        """Look through every file below a folder, and into archives, but for these folders."""
        left_out = tuple(but)
        for file in sorted(folder.rglob("*")):
            if any(file.is_relative_to(out) for out in left_out) or not file.is_file() or file.is_symlink():
                continue
            place = str(file.relative_to(folder))
            self.look(kind, place, _parts(file))
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    for name in archive.namelist():
                        self.look(kind, f"{place}/{name}", [archive.read(name)])

    def look_into_databases(self, port: int, passfile: Path, scratch: Path) -> None:
        """Look through a plain dump of every database, and of roles without their passwords."""
        for name in postgres.DATABASES:
            dump = scratch / f"{name}.sql"
            command = [
                str(postgres.binaries() / "pg_dump"),
                "-h",
                "127.0.0.1",
                "-p",
                str(port),
                "-U",
                postgres.SUPERUSER,
            ]
            environment = {**os.environ, "PGPASSFILE": str(passfile)}
            subprocess.run([*command, "-d", name, "-f", str(dump)], check=True, env=environment)
            self.look("database", name, _parts(dump))


def _parts(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while part := stream.read(CHUNK):
            yield part


class CommandLines:
    """Looks at the command line of every process of the machine, again and again until it is told to stop."""

    def __init__(self, watch: Watch) -> None:
        self.seen: set[bytes] = set()
        self._watch = watch
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self) -> "CommandLines":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _go_on(self) -> None:
        passes, old = 0, set[str]()
        while not self._over.wait(0.02):
            there = {name for name in os.listdir("/proc") if name.isdigit()}
            # Who has just begun is looked at every time, the others every fifth: all of them would take a processor.
            passes += 1
            looked = there if passes % 5 == 0 else there - old
            for process in looked:
                try:
                    line = Path(f"/proc/{process}/cmdline").read_bytes()
                except OSError:
                    continue  # it has ended
                if line and line not in self.seen:
                    self.seen.add(line)
                    self._watch.look("command line", line.split(b"\0")[0].decode(errors="replace"), [line])
            if looked is there:
                old = there
