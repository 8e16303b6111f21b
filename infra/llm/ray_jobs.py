"""Ray's Jobs REST API over httpx: submit, ask, stop, read the log. Ray itself is not needed for it."""

import asyncio
import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import httpx

from domain.errors import ModelUnavailable
from infra.llm.addresses import is_loopback

ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
HINT = "Check the address and the token of the Ray cluster (HEADRACE_RAY_ADDRESS, HEADRACE_RAY_TOKEN_FILE)."


@dataclass(frozen=True, slots=True)
class JobState:
    """How a job is, in Ray's words."""

    status: str
    message: str

    @property
    def ended(self) -> bool:
        """Will nothing more come of it?"""
        return self.status in ENDED


class Jobs:
    """The Jobs API at one address; `async with` opens and closes the connection. Every call raises ModelUnavailable."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address.rstrip("/")
        # Behind KubeRay's proxies Authorization may be taken; Ray reads its own header as well.
        headers = {"Authorization": f"Bearer {token}", "X-Ray-Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(
            base_url=self.address, headers=headers, timeout=30, trust_env=not is_loopback(self.address)
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def version(self) -> str:
        """Ray's version; the quickest answer there is."""
        return str((await self._json("GET", "/api/version"))["ray_version"])

    async def submit(self, script: Path, argument: str, *, environment: Mapping[str, str], name: str) -> str:
        """Start `python SCRIPT ARGUMENT` with the script as its working directory; the job's id."""
        package = await self._upload(script.name, await asyncio.to_thread(script.read_bytes))
        body = {
            "entrypoint": f"python {script.name} {argument}",
            "submission_id": name,
            "runtime_env": {"working_dir": package, "env_vars": dict(environment)},
            "metadata": {"headrace": name},
        }
        return str((await self._json("POST", "/api/jobs/", json=body))["submission_id"])

    async def state(self, job: str) -> JobState:
        """How the job is now."""
        said = await self._json("GET", f"/api/jobs/{job}")
        return JobState(str(said["status"]), str(said.get("message") or ""))

    async def running(self) -> list[str]:
        """The jobs that are under way."""
        listed = cast(list[dict[str, Any]], (await self._send("GET", "/api/jobs/")).json())
        return [str(job["submission_id"]) for job in listed if job["status"] == "RUNNING"]

    async def stop(self, job: str) -> None:
        """Ask the job to end."""
        await self._json("POST", f"/api/jobs/{job}/stop")

    async def log(self, job: str) -> str:
        """What the job printed so far."""
        return str((await self._json("GET", f"/api/jobs/{job}/logs")).get("logs") or "")

    async def _upload(self, file: str, content: bytes) -> str:
        """A file as a package in the cluster's own store, named by its content: the uri of a working_dir."""
        name = f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:32]}.zip"
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(file, content)
        await self._send("PUT", f"/api/packages/gcs/{name}", content=packed.getvalue())
        return f"gcs://{name}"

    async def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            return cast(dict[str, Any], (await self._send(method, path, **options)).json())
        except ValueError as error:
            raise ModelUnavailable(
                f"{self.address} answered something that is not Ray's Jobs API", hint=HINT
            ) from error

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, **options)
            answer.raise_for_status()
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            raise ModelUnavailable(
                f"Ray at {self.address} refused {method} {path}: HTTP {status}", hint=HINT
            ) from error
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: closed meanwhile
            cause = type(error).__name__
            raise ModelUnavailable(f"Ray at {self.address} could not be reached ({cause})", hint=HINT) from error
        return answer
