"""What every measure works with: sizes, a folder for its files, and one run of each client."""

import uuid
from dataclasses import dataclass
from pathlib import Path

from benchmarks import material, processes
from benchmarks.processes import Json, Mock, Ran

ROW_BYTES = 300


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured: rows of each measure, rounds, and requests under way at once."""

    route: int
    rival: int
    rerun: int
    large: int
    served: int
    rounds: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Bench:
    """Files of one benchmark run and how its clients are started."""

    folder: Path
    sizes: Sizes

    def rows(self, count: int) -> Path:
        """A file of so many rows."""
        return material.write_rows(self.folder / f"rows-{count}.jsonl", count, ROW_BYTES)

    def workload(self, count: int, base_url: str, *, model: str = "mock", revision: str = "bench") -> Path:
        """A workload about so many rows at one server."""
        folder = self.folder / f"workload-{model}-{count}"
        return material.write_workload(folder, self.rows(count), base_url=base_url, model=model, revision=revision)

    def bodies(self, workload: Path) -> Path:
        """The bodies that Headrace sends for a workload's rows."""
        to = workload / "bodies.jsonl"
        if not to.exists():
            command = ["-m", "benchmarks.headrace_route", "bodies", "--workload", str(workload), "--to", str(to)]
            processes.run(command)
        return to

    def bare(self, bodies: Path, base_url: str, *, uvloop: bool = False) -> Json:
        """One run of the bare client, on asyncio's own event loop or on Headrace's."""
        command = ["-m", "benchmarks.bare_client", "--base-url", base_url, "--bodies", str(bodies)]
        command += ["--in-flight", str(self.sizes.in_flight), *(["--uvloop"] if uvloop else [])]
        return processes.run(command).figures

    def headrace(
        self, workload: Path, *, run_id: str | None = None, mock: Mock | None = None, kill_at: int | None = None
    ) -> Ran:
        """One run of Headrace's row path; watched from outside when `mock` is given."""
        command = ["-m", "benchmarks.headrace_route", "route", "--workload", str(workload)]
        return processes.run(
            [*command, "--run-id", run_id or str(uuid.uuid4())],
            environment={"HEADRACE_IN_FLIGHT": str(self.sizes.in_flight)},
            done=mock.calls if mock else None,
            kill_at=kill_at,
        )


def rate(figures: Json) -> float:
    """Rows a second of one run."""
    return float(figures["rows"]) / float(figures["seconds"])


def all_valid(figures: Json, rows: int) -> None:
    """Raise BenchmarkError unless every row came back with a valid answer: speed without answers is none."""
    if int(figures["valid"]) != rows:
        raise processes.BenchmarkError(f"{figures['valid']} valid answers to {rows} rows")
