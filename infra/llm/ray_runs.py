"""One Ray job over some shards: submitted, watched shard by shard, stopped when nobody wants it any more."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from domain.errors import ModelUnavailable
from infra.llm.ray_jobs import Jobs
from infra.llm.ray_local import LocalRay
from infra.llm.ray_shards import Shard, Shards

SCRIPT = Path(__file__).with_name("ray_job.py")
BATCH_ROWS = 32
"""Rows that Ray Data hands to the engine together; eight batches are under way at once."""
PATIENCE_S = 120.0
"""How long Ray may not be reachable while a job runs."""
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}

_log = logging.getLogger("headrace.ray")


class Cluster:
    """A Ray cluster by its dashboard's address, or the Ray of this machine, started when it is first needed."""

    def __init__(self, ray: str | LocalRay, token: str | None) -> None:
        self._ray = ray
        self._token = token
        self._jobs: Jobs | None = None
        self._open = AsyncExitStack()
        self._opening = asyncio.Lock()

    async def connect(self) -> Jobs:
        """Its Jobs API; raises ModelUnavailable."""
        async with self._opening:
            if self._jobs is None:
                address, token = self._ray, self._token
                if isinstance(address, LocalRay):
                    local = await self._open.enter_async_context(address)
                    address, token = local.address, local.token
                self._jobs = await self._open.enter_async_context(Jobs(address, token))
            return self._jobs

    async def disconnect(self) -> None:
        """Close the connection and end the local Ray; the next job starts anew."""
        async with self._opening:
            self._jobs = None
            await self._open.aclose()


class RayRun:
    """One job over some shards, from its submission to its end."""

    def __init__(
        self, cluster: Cluster, shards: Shards, todo: Sequence[Shard], *, asked: Mapping[str, JsonValue], poll_s: float
    ) -> None:
        self._cluster = cluster
        self._shards = shards
        self._asked, self._poll_s = asked, poll_s
        self._all = len(todo)
        self.missing = list(todo)
        """Shards without a reply; final once `arrivals` has ended."""
        self.name = f"headrace-{uuid.uuid4().hex[:12]}"
        self.lost = ModelUnavailable(f"the Ray job {self.name} wrote no reply")
        """Why shards are missing, once `arrivals` has ended."""
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has been under way."""
        return time.monotonic() - self._began

    async def arrivals(self) -> AsyncGenerator[Shard]:
        """Yield each shard when its reply is there, those of earlier jobs at once; closing it stops the job."""
        for shard in await self._arrived():
            yield shard
        if not self.missing:
            return
        jobs: Jobs | None = None
        ended = False
        try:
            jobs = await self._cluster.connect()
            await self._submit(jobs)
            while not ended:
                await asyncio.sleep(self._poll_s)
                ended = await self._ended(jobs)
                for shard in await self._arrived():
                    yield shard
        except ModelUnavailable as error:
            self.lost = error
        finally:
            if jobs is not None and not ended:  # also when its submission was not acknowledged
                with suppress(ModelUnavailable):
                    await jobs.stop(self.name)
            await asyncio.to_thread(self._shards.forget_spec, self.name)
        if not ended:
            await self._cluster.disconnect()

    async def _submit(self, jobs: Jobs) -> None:
        places = [
            {
                "requests": self._shards.uri("requests", shard),
                "replies": self._shards.uri("replies", shard),
                "rows": shard.rows,
            }
            for shard in self.missing
        ]
        spec = cast(JsonValue, {**self._asked, "batch_rows": BATCH_ROWS, "shards": places})
        uri = await asyncio.to_thread(self._shards.write_spec, self.name, spec)
        await jobs.submit(SCRIPT, uri, environment=ENVIRONMENT, name=self.name)
        _log.info("%s: submitted to %s, %d of %d shards", self.name, jobs.address, len(self.missing), self._all)

    async def _arrived(self) -> list[Shard]:
        arrived = await asyncio.to_thread(self._shards.arrived, self.missing)
        self.missing = [shard for shard in self.missing if shard not in arrived]
        done = self._all - len(self.missing)
        for number, shard in enumerate(arrived, start=done - len(arrived) + 1):
            _log.info("%s: shard %d of %d, %d rows, %.0f s", self.name, number, self._all, shard.rows, self.seconds)
        return arrived

    async def _ended(self, jobs: Jobs) -> bool:
        """Has the job ended? `lost` says how; raises ModelUnavailable when Ray cannot be asked for too long."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                state = await jobs.state(self.name)
                if state.ended and state.status != "SUCCEEDED":
                    log = await jobs.log(self.name)
                    kept = await asyncio.to_thread(self._shards.write_log, self.name, log)
                    message = f"the Ray job {self.name} ended as {state.status}{_reason(log)}"
                    self.lost = ModelUnavailable(message, hint=f"Read its log: {kept}")
            except ModelUnavailable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(self._poll_s)
            else:
                return state.ended


def _reason(log: str) -> str:
    """The last error a job's log names, without what surrounds it."""
    named = re.findall(r"^(?:\x1b\[[0-9;]*m|\S+ )*?([\w.]*(?:Error|Exception): [^\n]*)", log[-20_000:], re.MULTILINE)
    return f": {named[-1][:200]}" if named else ""
