"""An engine that is a Ray job: requests to Parquet shards, Ray Data's vLLM stage over them, replies from reply shards.

The ledger, validation and all else stay as they are with model servers. What a shard was answered once is not generated
again: a job that was killed, or whose run was, goes on at the shards without a reply.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from pydantic import JsonValue

from domain.errors import AnswerGarbled, ModelError, ModelUnavailable, RequestRefused
from domain.ledgers import OutcomeClass
from domain.requests import Request
from infra import services
from infra.llm import vllm_cpu
from infra.llm.addresses import is_loopback
from infra.llm.ray_local import LocalRay
from infra.llm.ray_runs import Cluster, RayRun
from infra.llm.ray_shards import Row, Shard, Shards, Writer
from infra.llm.replies import Reply, Try
from infra.llm.rounds import Rounds
from infra.llm.wire import Garbled, read_completion
from infra.service import QUIET, python, weights_folder
from infra.settings import Settings

SHARD_ROWS = 256
"""Rows of a shard on average: what is generated again after a kill, and what the ledger gets at once."""
MAX_JOBS = 2
EMBEDDED_ARGS: Mapping[str, JsonValue] = {
    "max_model_len": 2048,
    "enforce_eager": True,
    "logprobs_mode": "processed_logprobs",
    "max_logprobs": 20,
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    "generation_config": "vllm",
}
"""What the embedded servers get on their command lines (`infra/services.py`), where the reasons are."""
POLL_S = 2.0
LINGER_S = 20.0
"""When no further request comes for so long, those at hand are a job."""


@dataclass(frozen=True, slots=True)
class RayModel:
    """What the cluster loads and how."""

    name: str
    """The served name; it is in every request and in the ledger's attempts."""
    source: str
    """The weights as the cluster's nodes see them: a folder, a hub's name, or a uri of object storage."""
    engine_args: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """vLLM's arguments, passed on verbatim."""
    chat_template: str | None = None
    """The template's text; None is the model's own."""
    replicas: int = 1
    """Engines at once, at most."""
    bundle: Mapping[str, float] | None = None
    """Resources of one engine process, {"CPU": 1}; None leaves it to Ray, which takes a GPU."""

    def asked(self) -> dict[str, JsonValue]:
        """What decides about the answers: answers to other values are other answers."""
        arguments = dict(self.engine_args)
        return {"model_source": self.source, "engine_args": arguments, "chat_template": self.chat_template}

    def placed(self) -> dict[str, JsonValue]:
        """What does not: where the engines run."""
        bundle = cast(JsonValue, dict(self.bundle)) if self.bundle else None
        return {"replicas": self.replicas, "bundle": bundle}


class RayEngine:
    """Answers requests by Ray jobs; `async with` keeps the connection, and the local Ray if there is one.

    `storage` is an fsspec uri that this process and every node of the cluster reach. `ray` is the address of a
    cluster's dashboard, or a LocalRay to start with the first request. The requests of a stream are distinct.
    """

    def __init__(
        self,
        model: RayModel,
        *,
        storage: str,
        ray: str | LocalRay,
        token: str | None = None,
        shard_rows: int = SHARD_ROWS,
        linger_s: float = LINGER_S,
        poll_s: float = POLL_S,
    ) -> None:
        self._model = model
        self._cluster = Cluster(ray, token)
        self._storage, self._shard_rows = storage, shard_rows
        self._linger_s, self._poll_s = linger_s, poll_s
        self._written: set[Shard] = set()

    async def __aenter__(self) -> Self:
        asked = {"model": self._model.name, **self._model.asked()}
        self._shards = await asyncio.to_thread(Shards, self._storage, asked, rows=self._shard_rows)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._cluster.disconnect()
        if error is None:
            # Whoever closes the engine in peace has stored the replies: from here on the ledger answers.
            for shard in self._written:
                await asyncio.to_thread(self._shards.forget, shard)

    async def answer(self, requests: AsyncIterable[Request]) -> AsyncGenerator[Reply]:
        """Yield one Reply for each request as its shard is answered; a ModelError is in the reply, never raised.

        A job takes what has come until the stream ends or pauses. Closing the generator stops the job.
        """
        rounds = Rounds(requests, linger_s=self._linger_s)
        try:
            while not rounds.ended:
                if shards := await self._collect(rounds):
                    async with aclosing(self._settle(shards)) as replies:
                        async for reply in replies:
                            yield reply
        finally:
            await rounds.close()

    async def _collect(self, rounds: Rounds) -> list[Shard]:
        """Write requests to shards until the stream ends or nothing comes for a while."""
        writer = self._shards.writer()
        async for request in rounds:
            await asyncio.to_thread(writer.add, request)
        return await self._close(writer)

    async def _close(self, writer: Writer) -> list[Shard]:
        shards = await asyncio.to_thread(writer.close)
        self._written.update(shards)
        return shards

    async def _settle(self, shards: Sequence[Shard]) -> AsyncGenerator[Reply]:
        """Run a job, a second one for what the first left open, and give up on the rest."""
        tries: dict[str, list[Try]] = {}
        open_: Sequence[Shard] = shards
        for number in range(1, MAX_JOBS + 1):
            asked = self._model.asked() | self._model.placed()
            job = RayRun(self._cluster, self._shards, open_, asked=asked, poll_s=self._poll_s)
            last = number == MAX_JOBS
            failed = self._shards.writer()
            async with aclosing(job.arrivals()) as arrivals:
                async for shard in arrivals:
                    rows = await asyncio.to_thread(self._shards.read, shard)
                    for request, row in rows:
                        reply = self._reply(request, row, tries.get(request.hash, []))
                        if isinstance(reply.error, ModelUnavailable) and not last:
                            tries[request.hash] = list(reply.tries)
                            await asyncio.to_thread(failed.add, request)
                        else:
                            yield reply
                    if not all(row is not None and (row.refused or not row.error) for _, row in rows):
                        # Rows to ask again would be found answered.
                        await asyncio.to_thread(self._shards.forget, shard, requests=False)
            open_ = [*job.missing, *await self._close(failed)]
            lost = Try(self._worker, job.seconds, OutcomeClass.UNAVAILABLE, detail=job.lost.message)
            for shard in job.missing:
                # Its requests have one more try behind them, and after the last job an error.
                for request in await asyncio.to_thread(self._shards.requests, shard):
                    tries.setdefault(request.hash, []).append(lost)
                    if last:
                        yield Reply(request, tries.pop(request.hash), None, job.lost)
            if not open_:
                return

    def _reply(self, request: Request, row: Row | None, before: Sequence[Try]) -> Reply:
        if row is None:
            row = Row(b"", 0.0, "the job wrote nothing for this request", refused=False)
        error: ModelError | None = None
        if row.error:
            message = row.error.replace("\0", "\N{REPLACEMENT CHARACTER}")
            error = RequestRefused(message) if row.refused else ModelUnavailable(message)
            outcome = OutcomeClass.REFUSED if row.refused else OutcomeClass.UNAVAILABLE
        else:
            try:
                completion = read_completion(request, row.body)
            except Garbled as garbled:
                error, outcome = AnswerGarbled(f"the answer is not a chat completion: {garbled}"), OutcomeClass.GARBLED
            else:
                ended = completion.finish_reason == "stop"
                outcome = OutcomeClass.ANSWERED if ended else OutcomeClass.TRUNCATED
                once = Try(self._worker, row.seconds, outcome, completion.usage)
                return Reply(request, [*before, once], completion)
        return Reply(request, [*before, Try(self._worker, row.seconds, outcome, detail=error.message)], None, error)

    @property
    def _worker(self) -> str:
        return f"ray:{self._model.name}"


def ray_engine(settings: Settings, model: RayModel) -> RayEngine:
    """The engine that the settings describe: their cluster, or a Ray of this machine when they name none.

    Raises ModelError when a cluster elsewhere is to read and write the home folder of this machine.
    """
    address, storage = settings.ray_address, settings.ray_storage
    if address is not None and storage is None and not is_loopback(address):
        raise ModelError(
            f"the Ray cluster at {address} cannot reach the home folder of this machine",
            hint="Set HEADRACE_RAY_STORAGE to a folder that both reach, s3://bucket/headrace.",
        )
    storage = storage or (settings.home / "ray").as_uri()
    if address is None:
        placed = replace(model, bundle=model.bundle or {"CPU": 1})
        return RayEngine(placed, storage=storage, ray=local_ray(settings))
    token = settings.ray_token_file.expanduser().read_text().strip() if settings.ray_token_file else None
    return RayEngine(model, storage=storage, ray=address, token=token)


def local_ray(settings: Settings) -> LocalRay:
    """A Ray of this machine, not started yet, with vLLM on the CPU."""
    return LocalRay(
        Path(python(settings, "ray")),
        environment={**QUIET, **vllm_cpu.environment(settings.home / "cache")},
        log=settings.home / "logs" / "ray.log",
    )


def embedded_model(settings: Settings, name: str) -> RayModel | None:
    """A model of the example as its embedded server serves it; None for any other name."""
    if name not in services.MODELS.values():
        return None
    arguments = EMBEDDED_ARGS if (precision := vllm_cpu.precision()) is None else {**EMBEDDED_ARGS, "dtype": precision}
    return RayModel(name, str(weights_folder(settings) / name), arguments)
