"""Object stores, by the library of their scheme: whatever it raises and however long it takes, it ends as our error."""

import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, TypeVar, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]
from pydantic import JsonValue

from domain.errors import DatasetError, DatasetUnreachable, HeadraceError, Place
from domain.permits import shown

T = TypeVar("T")
MAGIC = "*?["
TOTAL_S = 600.0
"""So long a store may let us wait altogether, seconds: for the list of the files and for all that is read of them."""
LASTING = (FileNotFoundError, PermissionError, ImportError, ValueError)
"""What is the same at the next try."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of an object store; `state` is what tells one state of it from another without reading it."""

    name: str
    open: Callable[[], BinaryIO]
    state: Callable[[], list[JsonValue]]


def stored_files(uri: str, *, total_s: float = TOTAL_S) -> list[StoredFile]:
    """The files that a uri names, in their order; none when one is not there.

    The store may take `total_s` seconds for all that is asked of it from here on. Raises DatasetUnreachable for what
    another try may mend, and DatasetError; so do the files.
    """
    store = _Store(uri, total_s)
    fs, files = store.ask(partial(_found, uri))

    def state(file: str) -> list[JsonValue]:
        return store.ask(lambda: [str(fs.checksum(file)), fs.size(file)])

    def opened(file: str) -> BinaryIO:
        return cast(BinaryIO, _Stream(store, store.ask(partial(fs.open, file, "rb"))))

    return [StoredFile(file, partial(opened, file), partial(state, file)) for file in files]


def _found(uri: str) -> tuple[Any, list[str]]:
    fs, path = cast("tuple[Any, str]", fsspec.core.url_to_fs(uri))
    fs.invalidate_cache()
    files = cast(list[str], sorted(fs.glob(path)) if any(c in path for c in MAGIC) else [path])
    return fs, files if all(_is_file(fs, file) for file in files) else []


def _is_file(fs: Any, file: str) -> bool:
    try:
        return fs.info(file)["type"] == "file"  # `isfile` would take a store that is away for one without the file
    except FileNotFoundError:
        return False


class _Store:
    """A store, and how long it may still let us wait: its calls are made in threads that are left behind."""

    def __init__(self, uri: str, total_s: float) -> None:
        self._uri, self._total_s, self._left_s = uri, total_s, total_s

    def ask(self, call: Callable[[], T]) -> T:
        """What a call of the library gives; raises DatasetUnreachable and DatasetError."""
        answer: Future[T] = Future()

        def carry_out() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                answer.set_exception(error)

        began = time.monotonic()
        threading.Thread(target=carry_out, name="store", daemon=True).start()
        try:
            return answer.result(max(0.0, self._left_s))
        except HeadraceError:
            raise
        except LASTING as error:
            raise DatasetError(Place(shown(self._uri)), f"it cannot be reached: {error}"[:300]) from error
        except Exception as error:
            late = not answer.done()
            why = f"it took more than {self._total_s:g} seconds" if late else f"{type(error).__name__}: {error}"
            raise DatasetUnreachable(Place(shown(self._uri)), f"it cannot be reached: {why}"[:300]) from error
        finally:
            self._left_s -= time.monotonic() - began


class _Stream(io.RawIOBase):
    """A file of a store as a raw stream."""

    def __init__(self, store: _Store, stream: BinaryIO) -> None:
        self._store, self._stream = store, stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        # Not into the buffer itself: a call that was left behind would write there later.
        data = self._store.ask(partial(self._stream.read, len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._store.ask(partial(self._stream.seek, offset, whence))

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
