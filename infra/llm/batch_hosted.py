"""Batches at a hosted API: OpenAI's Files and Batches, which others serve too."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from domain.errors import ModelUnavailable, RequestRefused
from domain.ledgers import OutcomeClass
from infra.llm.addresses import is_loopback
from infra.llm.batch_engine import Finished
from infra.llm.batch_files import MAX_BYTES, MAX_REQUESTS, RETRY_STATUSES, URL, Verdict, garbled
from infra.llm.batch_folders import Part
from infra.redaction import redacted

if TYPE_CHECKING:  # the SDK takes a second to import
    from openai import AsyncOpenAI
    from openai.types import Batch

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
MAX_SILENT_POLLS = 60
"""Polls in a row without an answer before a batch is left for the next process: an hour."""
SUBMIT_PAUSES_S = (2.0, 10.0, 30.0)
LOOK_BACK = 500
"""Batches looked through for one whose creation was never acknowledged."""
_BUSY = ("limit", "server", "timeout", "unavailable")
_log = logging.getLogger(__name__)


class HostedRunner:
    """Runs batches at one API: upload, create, poll, download."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        max_requests: int = MAX_REQUESTS,
        max_bytes: int = MAX_BYTES,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = base_url.rstrip("/")
        self.max_requests, self.max_bytes = max_requests, max_bytes
        self._api_key = api_key
        self._sleep = sleep
        self._opened: AsyncOpenAI | None = None

    async def run(self, part: Part) -> Finished:
        """Submit a batch unless that is done, wait until it ends, fetch its files; no ModelError is raised."""
        from openai import APIConnectionError, APIStatusError, NotFoundError

        started = time.time()
        try:
            try:
                return await self._run(part)
            except NotFoundError:
                if part.state.batch_id is None:
                    raise
                # Deleted there, with its results: nothing is left to wait for.
                _log.warning("%s has forgotten the batch %s; it is submitted again", self.name, part.state.batch_id)
                part.save(file_id=None, batch_id=None, stopped=False)
                return await self._run(part)
        except APIStatusError as error:
            message = f"HTTP {error.status_code} from the batch API: {redacted(error.message, self._api_key)[:300]}"
            known = part.state.batch_id is not None  # then it says nothing about the rows: their batch may well run
            refused = not known and error.status_code not in RETRY_STATUSES and error.status_code < 500
            missing = _refused(message) if refused else _unavailable(message)
            settled = refused or part.state.file_id is None
        except APIConnectionError as error:
            missing = _unavailable(f"{self.name} could not be reached ({type(error).__name__})")
            settled = part.state.file_id is None
        return Finished((), missing, time.time() - started, settled)

    async def stop(self, part: Part) -> None:
        """Cancel the batch at the server; what it has finished stays there for the next process."""
        from openai import OpenAIError

        if part.state.file_id is None:
            return
        part.save(stopped=True)
        client = self._client.with_options(max_retries=0, timeout=4)
        with suppress(OpenAIError):
            if part.state.batch_id is None and (found := await self._find(client, part.state.file_id)):
                part.save(batch_id=found.id)
            if part.state.batch_id is not None:
                await client.batches.cancel(part.state.batch_id)

    async def forget(self, part: Part) -> None:
        """Delete the batch's files at the server, as far as it lets us."""
        from openai import OpenAIError

        client = self._client.with_options(max_retries=1, timeout=10)
        with suppress(OpenAIError):
            batch = await client.batches.retrieve(part.state.batch_id) if part.state.batch_id else None
            ids = (batch.output_file_id, batch.error_file_id) if batch else ()
            for file_id in (part.state.file_id, *ids):
                if file_id:
                    with suppress(OpenAIError):
                        await client.files.delete(file_id)

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    @property
    def _client(self) -> "AsyncOpenAI":
        if self._opened is None:
            from openai import AsyncOpenAI, DefaultAsyncHttpxClient

            # A redirect is a refusal: rows go to the server that was named and to no other.
            http = DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not is_loopback(self.name))
            self._opened = AsyncOpenAI(
                base_url=self.name, api_key=self._api_key or "none", max_retries=2, timeout=60, http_client=http
            )
        return self._opened

    async def _run(self, part: Part) -> Finished:
        batch = await self._ended(await self._submitted(part))
        results = [
            await self._fetch(part, file_id, name)
            for file_id, name in ((batch.output_file_id, "output.jsonl"), (batch.error_file_id, "errors.jsonl"))
            if file_id
        ]
        ended = batch.completed_at or batch.expired_at or batch.cancelled_at or batch.failed_at or time.time()
        missing = None if batch.status == "cancelled" and part.state.stopped else _missing(batch)
        return Finished([path for path in results if path], missing, max(0.0, float(ended - batch.created_at)))

    async def _submitted(self, part: Part) -> "Batch":
        """The batch at the server, made at most once: its input file tells it from every other one."""
        from openai import APIConnectionError, APIStatusError

        client = self._client
        if part.state.batch_id is not None:
            return await client.batches.retrieve(part.state.batch_id)
        looks = part.state.file_id is not None
        if part.state.file_id is None:
            with part.input.open("rb") as handle:
                uploaded = await client.files.create(file=("input.jsonl", handle), purpose="batch")
            part.save(file_id=uploaded.id)
        once = client.with_options(max_retries=0)  # a creation that was heard but not acknowledged must not be repeated
        for pause in (*SUBMIT_PAUSES_S, None):
            file_id = part.state.file_id
            assert file_id is not None  # noqa: S101 - saved above
            batch = await self._find(client, file_id) if looks else None
            try:
                batch = batch or await once.batches.create(
                    input_file_id=file_id, endpoint=URL, completion_window="24h", metadata={"made_by": "headrace"}
                )
            except (APIConnectionError, APIStatusError) as error:
                if pause is None or (isinstance(error, APIStatusError) and error.status_code not in RETRY_STATUSES):
                    raise
                looks = True
                await self._sleep(pause)
            else:
                part.save(batch_id=batch.id)
                return batch
        raise AssertionError("the last try returns or raises")

    async def _find(self, client: "AsyncOpenAI", file_id: str) -> "Batch | None":
        """The batch of an input file; None where there is none, or where the server does not list batches."""
        from openai import APIStatusError

        seen = 0
        try:
            async for batch in client.batches.list(limit=100):
                seen += 1
                if batch.input_file_id == file_id:
                    return batch
                if seen == LOOK_BACK:
                    break
        except APIStatusError as error:
            if error.status_code not in {404, 405, 501}:
                raise
        return None

    async def _ended(self, batch: "Batch") -> "Batch":
        """Poll, ever more slowly, through outages of up to an hour."""
        from openai import APIConnectionError, APIStatusError

        pause, silent = FIRST_PAUSE_S, 0
        while batch.status not in ENDED:
            await self._sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE_S)
            try:
                batch = await self._client.batches.retrieve(batch.id)
                silent = 0
            except (APIConnectionError, APIStatusError) as error:
                silent += 1
                passing = not isinstance(error, APIStatusError) or error.status_code in RETRY_STATUSES
                if not passing or silent == MAX_SILENT_POLLS:
                    raise
        return batch

    async def _fetch(self, part: Part, file_id: str, name: str) -> Path | None:
        """Download a file, piece by piece; None when the server no longer has it."""
        from httpx import HTTPError
        from openai import APIConnectionError, NotFoundError

        path = part.folder / name
        for pause in (*SUBMIT_PAUSES_S, None):
            try:
                async with _fresh(path) as write, self._client.files.with_streaming_response.content(file_id) as body:
                    async for piece in body.iter_bytes(1 << 20):
                        write(piece)
            except NotFoundError:
                _log.warning("%s no longer has the results %s", self.name, file_id)
                return None
            except HTTPError as error:  # the connection broke in the middle, where the SDK does not try again
                if pause is None:
                    raise APIConnectionError(message=str(error), request=error.request) from error
                await self._sleep(pause)
            else:
                return path
        raise AssertionError("the last try returns or raises")


@asynccontextmanager
async def _fresh(path: Path) -> AsyncGenerator[Callable[[bytes], int]]:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as handle:
        yield handle.write


def _missing(batch: "Batch") -> Verdict:
    """What the end of a batch says of rows that it has no result for."""
    if batch.status == "completed":
        return garbled("the batch was completed without a line for this row")
    if batch.status == "expired":
        message = f"the batch {batch.id} expired before this row was run"
        return Verdict(OutcomeClass.TIMEOUT, error=ModelUnavailable(message))
    if batch.status == "cancelled":
        return _unavailable(f"the batch {batch.id} was cancelled at the server before this row was run")
    first = batch.errors.data[0] if batch.errors and batch.errors.data else None
    code, said = (first.code or "", first.message or "") if first else ("", "it does not say why")
    message = f"the batch {batch.id} failed: {code}: {said}"[:300]
    return _unavailable(message) if any(word in code for word in _BUSY) else _refused(message)


def _unavailable(message: str) -> Verdict:
    return Verdict(OutcomeClass.UNAVAILABLE, error=ModelUnavailable(message))


def _refused(message: str) -> Verdict:
    return Verdict(OutcomeClass.REFUSED, error=RequestRefused(message))
