"""The batch engine: requests leave as files and come back hours later, with the same replies as over HTTP.

Hosted batches cost about half; a batch on this machine needs no server. Whoever runs the batches is a Runner.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from domain.requests import Request
from infra.llm.batch_files import Oddities, Verdict, read_requests, read_results, request_line
from infra.llm.batch_folders import Draft, Part, Shelf, State
from infra.llm.replies import Reply, Try

MAX_TRIES = 2
"""Batches a row may be part of before its error is final; a batch that we stopped ourselves does not count."""
STOP_S = 9.0
"""Time to stop everything, seconds."""
QUEUE = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finished:
    """How a batch ended."""

    results: Sequence[Path]
    missing: Verdict | None
    """What is to be said of rows without a result; None: we stopped the batch, ask them again."""
    seconds: float
    settled: bool = True
    """False while nobody knows how it ended: its folder is kept, so that the next process can find out."""


class Runner(Protocol):
    """Whoever turns an input file into result files."""

    @property
    def name(self) -> str:
        """Who answers, as attempts name it; batches of one name are resumed by runners of that name."""
        ...

    @property
    def max_requests(self) -> int:
        """Requests in one batch at most."""
        ...

    @property
    def max_bytes(self) -> int:
        """Bytes in one input file at most."""
        ...

    async def run(self, part: Part) -> Finished:
        """Submit a batch or go on with it, and wait for its end; no ModelError is raised."""
        ...

    async def stop(self, part: Part) -> None:
        """Stop a batch that `run` was cancelled on."""
        ...

    async def forget(self, part: Part) -> None:
        """Delete what others hold of a batch whose replies were all taken."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


@dataclass(slots=True)
class _Chain:
    """A batch and those that ask some of its rows again."""

    first: Part
    rows: set[str]
    """Rows this chain still owes a reply."""
    parts: list[Part] = field(default_factory=list[Part])
    running: Part | None = None
    tries: dict[str, tuple[Try, ...]] = field(default_factory=dict[str, tuple[Try, ...]])
    settled: bool = True


class BatchEngine:
    """Answers requests in batches; what it has submitted is remembered below `folder`."""

    def __init__(self, runner: Runner, *, folder: Path) -> None:
        self._runner = runner
        self._folder = folder

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.close()

    async def answer(self, requests: AsyncIterable[Request]) -> AsyncGenerator[Reply]:
        """Yield one Reply for each distinct request; `requests` is read to its end before the first one.

        Closed before the end, it stops its batches and keeps their folders; after the end nothing of them is left,
        except rows of theirs that nobody has asked for since a process died. Raises OSError when the disk is full.
        """
        work = _Work(self._runner, Shelf(self._folder, runner=self._runner.name))
        try:
            await work.read(requests)
            ending = asyncio.create_task(work.end())
            while (item := await work.queue.get()) is not None:
                chain, reply = item
                chain.first.give(reply.request.hash)  # what the caller could not store it asks for again
                yield reply
            await ending
            await work.clear()
        finally:
            await work.stop()


class _Work:
    """One call of `answer`: which rows are wanted, which batches they are in, and what came back."""

    def __init__(self, runner: Runner, shelf: Shelf) -> None:
        self.queue: asyncio.Queue[tuple[_Chain, Reply] | None] = asyncio.Queue(QUEUE)
        self._runner, self._shelf = runner, shelf
        self._wanted: set[str] = set()
        self._drafts: dict[tuple[str, str | None], Draft] = {}
        self._chains: dict[str, _Chain] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._all_read = asyncio.Event()
        self._left = shelf.find()
        self._where = {
            custom_id: name for name, (state, ids) in self._left.items() if state.after is None for custom_id in ids
        }

    async def read(self, requests: AsyncIterable[Request]) -> None:
        """Take every request: into the batch that has it already, or into a new one, which starts when it is full."""
        async for request in requests:
            if request.hash not in self._wanted:
                self._wanted.add(request.hash)
                if not self._resumed(request.hash):
                    self._write(request)
        for key in list(self._drafts):
            self._start(self._drafts.pop(key).close())
        self._all_read.set()

    async def end(self) -> None:
        """Wait until every row has its reply; the queue ends with None."""
        try:
            await asyncio.gather(*self._tasks)
        finally:
            await self.queue.put(None)

    async def clear(self) -> None:
        """Everything was taken: delete the batches, but for rows that somebody else may still ask for."""
        for chain in self._chains.values():
            done = chain.settled and chain.first.ids <= self._wanted | chain.first.given()
            for part in chain.parts:
                if done:
                    await self._runner.forget(part)
                    part.remove()
                else:
                    part.release()
        self._chains.clear()

    async def stop(self) -> None:
        """Stop whatever runs; nothing is left to do after `clear`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for draft in self._drafts.values():
            draft.discard()
        running = [chain.running for chain in self._chains.values() if chain.running]
        stops = asyncio.gather(*(self._runner.stop(part) for part in running), return_exceptions=True)
        try:
            await asyncio.wait_for(stops, STOP_S)
        except TimeoutError:
            _log.warning("%s did not say within %g s whether it stopped", self._runner.name, STOP_S)
        for chain in self._chains.values():
            for part in {id(part): part for part in (chain.first, *chain.parts)}.values():
                if part.state == State(runner=part.state.runner, revision=part.state.revision, after=part.state.after):
                    part.remove()  # it was never submitted
                else:
                    part.release()

    def _resumed(self, custom_id: str) -> bool:
        name = self._where.get(custom_id)
        if name is None:
            return False
        if name not in self._chains:
            part = self._shelf.take(name)
            if part is None:  # another live process has it
                self._where = {row: place for row, place in self._where.items() if place != name}
                return False
            self._start(part, resumed=True)
        self._chains[name].rows.add(custom_id)
        return True

    def _write(self, request: Request) -> None:
        key, line = (request.model, request.revision), request_line(request)
        draft = self._drafts.get(key)
        if draft and (draft.requests == self._runner.max_requests or draft.bytes + len(line) > self._runner.max_bytes):
            self._start(self._drafts.pop(key).close())
            draft = None
        if draft is None:
            draft = self._drafts[key] = self._shelf.draft(revision=request.revision)
        draft.add(request, line)

    def _start(self, part: Part, *, resumed: bool = False) -> None:
        chain = _Chain(part, set() if resumed else set(part.ids))
        self._chains[part.folder.name] = chain
        self._tasks.append(asyncio.create_task(self._follow(chain)))

    async def _follow(self, chain: _Chain) -> None:
        todo = deque([chain.first])
        while todo:
            part = todo.popleft()
            chain.parts.append(part)
            chain.running = part
            finished = await self._runner.run(part)
            chain.running = None
            chain.settled &= finished.settled
            await self._all_read.wait()
            again = await self._deliver(chain, part, finished)
            todo.extend(self._after(part, again))

    async def _deliver(self, chain: _Chain, part: Part, finished: Finished) -> list[Request]:
        """Hand on what a batch brought; returns the rows to ask again."""
        oddities, again = Oddities(), list[Request]()
        requests = await asyncio.to_thread(read_requests, part.input, revision=part.state.revision)
        for request, verdict in _judged(requests, finished, oddities):
            custom_id = request.hash
            if custom_id not in chain.rows:
                continue
            if verdict is None:
                again.append(request)
                continue
            tries = (*chain.tries.pop(custom_id, ()), verdict.tried(self._runner.name, finished.seconds))
            if verdict.again and len(tries) < MAX_TRIES:
                chain.tries[custom_id] = tries
                again.append(request)
            else:
                chain.rows.discard(custom_id)
                await self.queue.put((chain, Reply(request, tries, verdict.completion, verdict.error)))
        if oddities:
            _log.warning("the results of %s hold %s", part.state.batch_id or part.folder.name, oddities)
        return again

    def _after(self, part: Part, again: Sequence[Request]) -> list[Part]:
        """The batches that ask these rows again: one that an earlier process submitted, and one for the others."""
        parts: list[Part] = []
        rest = {request.hash: request for request in again}
        for name, (state, ids) in self._left.items():
            if state.after == part.folder.name and ids & rest.keys() and (taken := self._shelf.take(name)):
                parts.append(taken)
                rest = {custom_id: request for custom_id, request in rest.items() if custom_id not in ids}
        if rest:
            draft = self._shelf.draft(revision=part.state.revision, after=part.folder.name)
            for request in rest.values():
                draft.add(request)
            parts.append(draft.close())
        return parts


def _judged(
    requests: dict[str, Request], finished: Finished, oddities: Oddities
) -> Iterator[tuple[Request, Verdict | None]]:
    """Every request of a batch once, with what became of it."""
    rest = dict.fromkeys(requests)
    for request, verdict in read_results(finished.results, requests, oddities):
        del rest[request.hash]
        yield request, verdict
    for custom_id in rest:
        yield requests[custom_id], finished.missing
