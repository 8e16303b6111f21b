"""Requests and replies of a Ray job as Parquet shards below a folder that every node of the cluster can reach."""

import hashlib
import os
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]
import orjson
import polars
from pydantic import JsonValue

from domain.canonical import digest
from domain.requests import Request

LONGEST_SHARD = 32 * 1024 * 1024
"""Bytes of request bodies in one shard; what is held in memory at once."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Some requests under one name, which their hashes make: the same requests are the same shard."""

    name: str
    rows: int


@dataclass(frozen=True, slots=True)
class Row:
    """What a job wrote for one request: a chat completion, or an error and whether the request is to blame."""

    body: bytes
    seconds: float
    error: str
    refused: bool


class Shards:
    """A folder for one way of asking: model, weights, engine arguments and template are part of its name."""

    def __init__(self, storage: str, asked: Mapping[str, JsonValue], *, rows: int) -> None:
        self._fs, root = cast("tuple[Any, str]", fsspec.core.url_to_fs(storage))
        self._rows = rows
        self.folder = f"{root.rstrip('/')}/{digest(dict(asked))[:24]}"
        for part in ("requests", "replies", "jobs"):
            self._fs.makedirs(f"{self.folder}/{part}", exist_ok=True)
        if self._local:
            os.chmod(self.folder, 0o700)  # rows may be confidential

    @property
    def _local(self) -> bool:
        return "file" in self._fs.protocol

    def uri(self, part: str, shard: Shard) -> str:
        """Where a shard's `requests` or `replies` are, as a job on another machine has to say it."""
        return str(self._fs.unstrip_protocol(self._path(part, f"{shard.name}.parquet")))

    def writer(self) -> "Writer":
        """Takes requests one by one."""
        return Writer(self, self._rows)

    def write(self, requests: Mapping[str, Request]) -> Shard:
        """Write a shard unless it is there already."""
        name = hashlib.sha256("".join(requests).encode()).hexdigest()[:32]
        path = self._path("requests", f"{name}.parquet")
        if not self._fs.exists(path):
            columns = {
                "request_hash": list(requests),
                "body": [orjson.dumps(request.body).decode() for request in requests.values()],
                "revision": [request.revision for request in requests.values()],
            }
            schema = {"request_hash": polars.String, "body": polars.String, "revision": polars.String}
            with self._complete(path) as part, cast(BinaryIO, self._fs.open(part, "wb")) as stream:
                polars.DataFrame(columns, schema).write_parquet(stream, compression="zstd")
        return Shard(name, len(requests))

    def write_spec(self, name: str, spec: JsonValue) -> str:
        """Write what a job is to do; its uri."""
        path = self._path("jobs", f"{name}.json")
        with self._complete(path) as part:
            self._fs.pipe_file(part, orjson.dumps(spec))
        return str(self._fs.unstrip_protocol(path))

    def write_log(self, name: str, log: str) -> str:
        """Keep what a job printed, beside the rows that it may quote; its uri."""
        path = self._path("jobs", f"{name}.log")
        self._fs.pipe_file(path, log.encode(errors="replace"))
        return str(self._fs.unstrip_protocol(path))

    def arrived(self, shards: Sequence[Shard]) -> list[Shard]:
        """Those of the shards that have a reply."""
        self._fs.invalidate_cache()
        there = {str(path).rpartition("/")[2] for path in self._fs.ls(f"{self.folder}/replies", detail=False)}
        return [shard for shard in shards if f"{shard.name}.parquet" in there]

    def read(self, shard: Shard) -> list[tuple[Request, Row | None]]:
        """Every request of a shard with what the job wrote for it; None where it wrote nothing."""
        rows = self._replies(shard)
        return [(request, rows.get(request.hash)) for request in self.requests(shard)]

    def requests(self, shard: Shard) -> list[Request]:
        """The requests of a shard."""
        rows = self._table("requests", shard).iter_rows(named=True)
        return [Request.of(orjson.loads(row["body"]), row["revision"]) for row in rows]

    def forget(self, shard: Shard, *, requests: bool = True) -> None:
        """Remove a shard's reply, and its requests when nobody needs them any more."""
        for part in ("requests", "replies") if requests else ("replies",):
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._path(part, f"{shard.name}.parquet"))

    def forget_spec(self, name: str) -> None:
        """Remove what a job that has ended was to do."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path("jobs", f"{name}.json"))

    @contextmanager
    def _complete(self, path: str) -> Generator[str]:
        """A name to write under; the file gets its own when it is whole."""
        part = f"{path}.{uuid.uuid4().hex}.part"
        yield part
        self._fs.mv(part, path)

    def _replies(self, shard: Shard) -> dict[str, Row]:
        path = self._path("replies", f"{shard.name}.parquet")
        if not self._fs.exists(path):
            return {}
        table = self._table("replies", shard)
        return {
            row["request_hash"]: Row(row["body"].encode(), row["seconds"], row["error"], row["refused"])
            for row in table.iter_rows(named=True)
        }

    def _table(self, part: str, shard: Shard) -> polars.DataFrame:
        with cast(BinaryIO, self._fs.open(self._path(part, f"{shard.name}.parquet"), "rb")) as stream:
            return polars.read_parquet(stream)

    def _path(self, part: str, name: str) -> str:
        return f"{self.folder}/{part}/{name}"


class Writer:
    """Cuts a stream of requests into shards; holds the requests of no more than one.

    Where a shard ends is said by the hash of its last request, not by counting from the start: when a job goes on after
    the ledger has taken some of its rows, the shards after those rows are the ones that were there before.
    """

    def __init__(self, shards: Shards, rows: int) -> None:
        self._shards = shards
        self._rows = rows
        self._held: dict[str, Request] = {}
        self._bytes = 0
        self._written: list[Shard] = []

    def add(self, request: Request) -> None:
        """Take a request, and write the shard that it ends, if it does."""
        self._held[request.hash] = request
        self._bytes += len(str(request.last["content"]))
        ends = int(request.hash[:8], 16) % self._rows == 0
        full = len(self._held) >= 4 * self._rows or self._bytes >= LONGEST_SHARD
        if ends or full:
            self._write()

    def close(self) -> list[Shard]:
        """Write what is held; all shards of the stream."""
        if self._held:
            self._write()
        return self._written

    def _write(self) -> None:
        self._written.append(self._shards.write(self._held))
        self._held, self._bytes = {}, 0
