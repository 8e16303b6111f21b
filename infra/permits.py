"""Opening only what is permitted: datasets that are read because a message or a clock says so."""

import errno
import os
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pydantic import JsonValue

from domain.errors import DatasetError, Place
from domain.permits import LOCAL, WEB_PORTS, local_path, refusal, scheme_of, shown, web_address
from domain.triggers import Permitted
from infra.fetching import Resolve, fetch, resolve, signs
from infra.object_stores import MAGIC, stored_files

MOST_LINKS = 40
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
"""A descriptor to look at and to go on from: nothing is opened, no pipe waited for, no device touched."""


@dataclass(frozen=True, slots=True)
class PermittedFile:
    """A file that may be opened; `state` is what tells one state of it from another without reading it."""

    name: str
    open: Callable[[], BinaryIO]
    state: Callable[[], list[JsonValue]]


class _OutsideError(Exception):
    """A way led out of the permitted folders."""


def permitted_files(
    uri: str, folder: Path, permitted: Permitted, *, resolver: Resolve = resolve
) -> list[PermittedFile]:
    """The files that a uri names, in their order, each of which opens under guard; none when nothing is there.

    - Local files lie below a permitted folder, reached without `..` and without a link that leads out; a way is walked
      part by part from the folder's descriptor, so that swapping a part meanwhile changes nothing. Only regular files
      are opened. A hard link cannot be told from the file itself.
    - `http`, `https`: see `infra.fetching`.
    - Object stores, if their scheme is listed: the library of the scheme is handed the uri as it is, and uses the
      operator's credentials and the endpoint of its own configuration. Bucket and key are not checked, nor is the
      address that it connects to: list the scheme only where any bucket these credentials reach may be read. See
      `infra.object_stores` for its time.

    Raises NotPermitted, and DatasetError for what cannot be reached.
    """
    scheme = scheme_of(uri, permitted)
    if scheme == LOCAL:
        return _local_files(uri, folder, permitted)
    if scheme in WEB_PORTS:
        web_address(uri, permitted)
        opening = partial(fetch, uri, permitted, resolver=resolver)
        return [PermittedFile(uri, opening, partial(signs, uri, permitted, resolver=resolver))]
    return [PermittedFile(file.name, file.open, file.state) for file in stored_files(uri)]


def _local_files(uri: str, folder: Path, permitted: Permitted) -> list[PermittedFile]:
    roots = _Roots(uri, tuple(os.path.abspath(folder / root) for root in permitted.roots or (folder,)))
    path = os.path.abspath(folder / local_path(uri))
    try:
        root, parts = roots.place(path)
        found = sorted(set(roots.matching(root, (), parts))) if any(c in "/".join(parts) for c in MAGIC) else [parts]
        for each in found:
            with roots.at(root, each):
                pass  # it is there, and inside
    except _OutsideError as error:
        raise roots.refusal() from error
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        raise DatasetError(Place(shown(uri)), f"it cannot be reached: {error}"[:300]) from error
    return [
        PermittedFile(
            _name("/".join((root.rstrip("/"), *each)), uri, folder),
            partial(roots.open, root, each),
            partial(roots.state, root, each),
        )
        for each in found
    ]


def _name(file: str, uri: str, folder: Path) -> str:
    """A file's name as it is without a guard: what a row is called must not depend on who reads it."""
    relative = "://" not in uri and Path(file).is_relative_to(folder)
    return str(Path(file).relative_to(folder)) if relative else file


@dataclass(frozen=True, slots=True)
class _Roots:
    """The folders that local files must lie in; their own paths are the operator's and may hold links."""

    uri: str
    paths: tuple[str, ...]

    def refusal(self) -> Exception:
        """The error for a way that leads out."""
        fix = "Put it there, or add its folder to permitted.roots in triggers.yaml."
        return refusal(self.uri, f"it lies outside the permitted folders ({', '.join(self.paths)})", fix)

    def place(self, path: str) -> tuple[str, tuple[str, ...]]:
        """The first root that holds a path, by its name alone, and the way from there; raises _OutsideError."""
        for root in self.paths:
            for known in (root, os.path.realpath(root)):
                if path == known or path.startswith(known.rstrip("/") + "/"):
                    return root, tuple(part for part in path[len(known) :].split("/") if part not in {"", "."})
        raise _OutsideError

    def open(self, root: str, parts: Sequence[str]) -> BinaryIO:
        """A regular file, opened; raises NotPermitted for anything else, DatasetError when it is gone."""
        try:
            with self.at(root, parts) as found:
                self._refuse_others(found)
                # The very file that was looked at, whatever bears its name by now.
                return os.fdopen(os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY), "rb")
        except _OutsideError as error:
            raise self.refusal() from error
        except FileNotFoundError as error:
            raise DatasetError(Place(shown(self.uri)), "no such file") from error

    def state(self, root: str, parts: Sequence[str]) -> list[JsonValue]:
        """Size, time of the last change in ns and inode; raises as `open` does."""
        try:
            with self.at(root, parts) as found:
                status = self._refuse_others(found)
        except _OutsideError as error:
            raise self.refusal() from error
        return [status.st_size, status.st_mtime_ns, status.st_ino]

    def _refuse_others(self, found: int) -> os.stat_result:
        status = os.fstat(found)
        if stat.S_ISDIR(status.st_mode):
            raise DatasetError(Place(shown(self.uri)), "this is a folder", hint="Name its files: folder/*.jsonl.")
        if not stat.S_ISREG(status.st_mode):
            raise refusal(self.uri, "this is no regular file", "Pipes, sockets and devices are not read.")
        return status

    @contextmanager
    def at(self, root: str, parts: Sequence[str]) -> Generator[int]:
        """A descriptor of what lies at a way below a root, links followed as far as they stay inside.

        Raises _OutsideError and OSError.
        """
        below = [os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
        left, links = list(reversed(parts)), 0
        try:
            while left:
                part = left.pop()
                if part == "..":  # out of a link: back to the folder that we came through, and not above the root
                    if len(below) == 1:
                        raise _OutsideError
                    os.close(below.pop())
                elif part not in {"", "."}:
                    below.append(os.open(part, _LOOK, dir_fd=below[-1]))
                    if stat.S_ISLNK(os.fstat(below[-1]).st_mode):
                        links += 1
                        if links > MOST_LINKS:
                            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                        left += self._follow(below)
            yield below[-1]
        finally:
            for each in below:
                os.close(each)

    def _follow(self, below: list[int]) -> list[str]:
        """The way that the link at the end leads, its last part first; an absolute one begins at a root again."""
        link = below.pop()
        try:
            target = os.readlink("", dir_fd=link)
        finally:
            os.close(link)
        if not target.startswith("/"):
            return list(reversed(target.split("/")))
        root, parts = self.place(target)
        if ".." in parts:
            raise _OutsideError
        start = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for each in below:
            os.close(each)
        below[:] = [start]
        return list(reversed(parts))

    def matching(self, root: str, done: tuple[str, ...], left: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The ways that a pattern stands for; `**` stands for folders, none or more, and follows no link."""
        if not left:
            if self._exists(root, done):
                yield done
            return
        head, rest = left[0], left[1:]
        if head == "**":
            yield from self.matching(root, done, rest)
            for name in self._names(root, done, folders=True):
                yield from self.matching(root, (*done, name), left)
        elif any(c in head for c in MAGIC):
            for name in self._names(root, done):
                if fnmatchcase(name, head):
                    yield from self.matching(root, (*done, name), rest)
        else:
            yield from self.matching(root, (*done, head), rest)

    def _exists(self, root: str, parts: Sequence[str]) -> bool:
        try:
            with self.at(root, parts):
                return True
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _names(self, root: str, parts: Sequence[str], *, folders: bool = False) -> list[str]:
        try:
            with self.at(root, parts) as found:
                listed = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            with os.scandir(listed) as entries:
                return [entry.name for entry in entries if not folders or entry.is_dir(follow_symlinks=False)]
        finally:
            os.close(listed)
