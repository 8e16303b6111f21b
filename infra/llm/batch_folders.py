"""Batches on disk: a folder a batch, so that a process that dies finds what it has paid for when it starts again."""

import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from domain.requests import Request
from infra import credentials
from infra.llm.batch_files import request_line

INPUT, STATE, IDS, GIVEN, LOCK = "input.jsonl", "state.json", "ids", "given", "lock"
KEPT_S = 30 * 24 * 3600
"""How long a batch that nobody asks for is kept, seconds; hosted results are kept no longer either."""
_DRAFT = ".draft-"
_log = logging.getLogger(__name__)


class State(BaseModel):
    """What must outlive the process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runner: str
    revision: str | None
    after: str | None = None
    """The batch some of whose rows this one asks again."""
    file_id: str | None = None
    batch_id: str | None = None
    stopped: bool = False
    """We stopped it: rows without a result are asked again."""
    pid: int | None = None
    ticks: int | None = None


class Part:
    """One batch: its folder, whose lock is held until `release`, and its state."""

    def __init__(self, folder: Path, lock: int, state: State, ids: frozenset[str]) -> None:
        self.folder, self.state, self.ids = folder, state, ids
        self._lock = lock

    @property
    def input(self) -> Path:
        """The requests, a line each."""
        return self.folder / INPUT

    def save(self, **changes: object) -> None:
        """Change the state, on disk before anything else."""
        self.state = State.model_validate(self.state.model_dump() | changes)
        credentials.write(self.folder / STATE, self.state.model_dump_json())

    def given(self) -> frozenset[str]:
        """Rows whose replies were taken, by this process or one before it."""
        path = self.folder / GIVEN
        return frozenset(path.read_text().split()) if path.exists() else frozenset()

    def give(self, custom_id: str) -> None:
        """Note that a row's reply was taken."""
        with _open(self.folder / GIVEN, os.O_APPEND) as handle:
            os.write(handle, f"{custom_id}\n".encode())

    def remove(self) -> None:
        """Delete everything and let go."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Let go; the folder stays for whoever asks for its rows."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class Draft:
    """A batch being written."""

    def __init__(self, shelf: "Shelf", folder: Path, lock: int, state: State) -> None:
        self._shelf, self._folder, self._lock, self._state = shelf, folder, lock, state
        self._ids: dict[str, None] = {}
        self._input = _create(folder / INPUT)
        self.requests = self.bytes = 0

    def add(self, request: Request, line: bytes | None = None) -> None:
        """Write one request."""
        line = line or request_line(request)
        written = 0
        while written < len(line):
            written += os.write(self._input, line[written:])
        self._ids[request.hash] = None
        self.requests += 1
        self.bytes += len(line)

    def close(self) -> Part:
        """Name the folder by the digest of its requests; from now on the next process finds it."""
        os.close(self._input)
        part = Part(self._folder, self._lock, self._state, frozenset(self._ids))
        credentials.write(self._folder / IDS, "\n".join(self._ids))
        part.save()
        seed = "\n".join((self._state.runner, self._state.after or "", *self._ids))
        part.folder = self._shelf.place(self._folder, hashlib.sha256(seed.encode()).hexdigest()[:32])
        return part

    def discard(self) -> None:
        """Leave nothing."""
        os.close(self._input)
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)


class Shelf:
    """All batches below one folder, as one runner sees them: batches of another one are left alone."""

    def __init__(self, root: Path, *, runner: str) -> None:
        self.root, self.runner = root, runner
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        root.chmod(0o700)

    def draft(self, *, revision: str | None, after: str | None = None) -> Draft:
        """Begin a batch."""
        with self._alone():
            folder = self.root / f"{_DRAFT}{secrets.token_hex(8)}"
            folder.mkdir(mode=0o700)
            lock = _locked(folder)
        if lock is None:
            raise BlockingIOError(f"{folder} is locked")
        return Draft(self, folder, lock, State(runner=self.runner, revision=revision, after=after))

    def place(self, folder: Path, name: str) -> Path:
        """Give a finished draft its name; one that is taken belongs to a process that is alive."""
        with self._alone():
            target = self.root / name
            while target.exists():
                target = self.root / f"{name}-{secrets.token_hex(4)}"
            return folder.rename(target)

    def find(self) -> dict[str, tuple[State, frozenset[str]]]:
        """The batches that earlier processes left, by name; drafts that nobody writes and old batches are removed."""
        found: dict[str, tuple[State, frozenset[str]]] = {}
        with self._alone():
            for folder in sorted(path for path in self.root.iterdir() if path.is_dir()):
                if folder.name.startswith(_DRAFT) or _age(folder) > KEPT_S:
                    _remove(folder)
                    continue
                try:
                    state = State.model_validate_json((folder / STATE).read_bytes())
                    ids = frozenset((folder / IDS).read_text().split())
                except (OSError, ValidationError) as error:
                    _log.warning("%s is not a batch that can be resumed (%s)", folder, type(error).__name__)
                    continue
                if state.runner == self.runner:
                    found[folder.name] = (state, ids)
        return found

    def take(self, name: str) -> Part | None:
        """Take up a batch; None when another live process has it, or has finished it meanwhile."""
        folder = self.root / name
        with self._alone():
            lock = _locked(folder) if (folder / STATE).exists() else None
        if lock is None:
            return None
        state = State.model_validate_json((folder / STATE).read_bytes())
        return Part(folder, lock, state, frozenset((folder / IDS).read_text().split()))

    @contextmanager
    def _alone(self) -> Generator[None]:
        with _open(self.root / ".lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _age(folder: Path) -> float:
    state = folder / STATE
    return time.time() - (state if state.exists() else folder).stat().st_mtime


def _remove(folder: Path) -> None:
    lock = _locked(folder)
    if lock is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


@contextmanager
def _open(path: Path, flags: int = 0) -> Generator[int]:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


def _locked(folder: Path) -> int | None:
    """Hold the folder's lock for as long as the number is open; None when somebody else does."""
    handle = os.open(folder / LOCK, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle
