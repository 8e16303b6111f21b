"""The main job as a newcomer runs it, on a slice of the example: real Postgres, Prefect, MLflow, Phoenix and vLLM."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import OTHERS_NAMES

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "support_triage"
SLICE = 60
"""Rows of each split at most: with the example's 12 broken ones fewer than a fifth of the batch ends in quarantine."""

# The first test waits for the weights to be converted, the stack to come up and the whole job to be done: up to half an
# hour on a processor without AVX-512 that other tests share.
pytestmark = pytest.mark.timeout(3600)


class Machine:
    """A home folder of its own, and the command line on it."""

    def __init__(self, home: Path, workload: Path) -> None:
        self.home = home
        self.workload = workload
        shared = Path(os.environ.get("HEADRACE_HOME", "~/.local/share/headrace")).expanduser()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(OTHERS_NAMES)},
            "HEADRACE_HOME": str(home),
            "HEADRACE_ENVS": os.environ.get("HEADRACE_ENVS", str(shared / "envs")),
            "HEADRACE_WEIGHTS": os.environ.get("HEADRACE_WEIGHTS", str(shared / "weights")),
            "PYTHONPATH": str(ROOT),
            "CI": "true",
            # Other tests share the processor: a row waits longer than it would with a user, and threads that wait for
            # one another at every layer wait for all else that runs.
            "HEADRACE_REQUEST_DEADLINE_S": "600",
            "OMP_NUM_THREADS": "1",
        }

    def headrace(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command and wait for it."""
        command = [sys.executable, "-m", "infra.cli", *words]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)

    def ask(self, *words: str) -> Any:
        """Run a read verb with --json."""
        done = self.headrace(*words, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def processes(self) -> list[psutil.Process]:
        """Everything alive that was started for this home."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HEADRACE_HOME") == str(self.home):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Generator[Machine]:
    """The example with a small optimiser budget, run once from nothing with `headrace run --up`."""
    folder = tmp_path_factory.mktemp("main-job")
    workload = shutil.copytree(EXAMPLE, folder / "triage")
    file = workload / "workload.yaml"
    text = re.sub(r"candidates: \d+", "candidates: 1", file.read_text())
    text = re.sub(r"validation_rows: \d+", "validation_rows: 4", text)
    file.write_text(re.sub(r"max_demos: \d+", "max_demos: 2", text))
    machine = Machine(folder / "home", workload)
    try:
        done = machine.headrace("run", str(workload), "--up", "--max-rows", str(SLICE))
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        yield machine
    finally:
        stopped = machine.headrace("down")
    assert stopped.returncode == 0, stopped.stderr
    left = [f"{p.pid} {p.name()}" for p in machine.processes()]
    assert not left, f"`headrace down` left processes behind: {left}"


def test_both_flows_complete_and_every_row_is_accounted_for(machine: Machine) -> None:
    finding = machine.ask("doctor")
    assert finding["healthy"], finding
    runs = machine.ask("runs")
    assert [(run["kind"], run["state"]) for run in runs] == [("route", "completed"), ("optimize", "completed")]
    assert all("pending" in run["rows"] and " 0 pending" in run["rows"] for run in finding["runs"])


def test_the_tokens_of_the_ledger_are_those_that_vllm_counted(machine: Machine) -> None:
    for run in machine.ask("doctor")["runs"]:
        assert run["tokens"], run
        assert [tokens["reconciles"] for tokens in run["tokens"]] == [True] * len(run["tokens"]), run["tokens"]


def test_the_summary_has_a_verdict_and_links_to_all_three_stores(machine: Machine) -> None:
    optimize = machine.ask("runs")[1]
    verdict = optimize["summary"]["verdict"]
    assert verdict["n"] > 0
    assert verdict["certified"] or verdict["reason"]
    assert {"prefect", "mlflow", "phoenix", "phoenix-cheap", "phoenix-strong"} <= optimize["links"].keys()
    assert optimize["summary"]["test"]["valid_rate"] > 0.9


def test_the_broken_rows_are_in_quarantine_with_file_line_and_reason(machine: Machine) -> None:
    route = machine.ask("runs")[0]
    listed = machine.ask("show", route["id"], "--quarantined")
    assert len(listed) == 12
    assert all(re.match(r"data/incoming/.+\.jsonl:\d+", row["place"]) for row in listed)
    assert all(row["reason"] for row in listed)


def test_running_the_same_workload_again_makes_no_model_call(machine: Machine) -> None:
    done = machine.headrace("run", str(machine.workload), "--max-rows", str(SLICE))
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"calls +0 to the models", done.stdout)) == 2, done.stdout
    assert "unchanged work: nothing was sent" in done.stdout


def test_only_phoenix_grpc_listens_beyond_loopback(machine: Machine) -> None:
    open_doors = {
        (process.name(), connection.laddr.port)
        for process in machine.processes()
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip not in {"127.0.0.1", "::1"}
    }
    ports = json.loads((machine.home / "run" / "stack.json").read_text())["ports"]
    assert {port for _, port in open_doors} <= {ports["phoenix-grpc"]}, open_doors


def test_no_secret_is_in_a_command_line_or_a_log(machine: Machine) -> None:
    secrets = {
        text
        for file in (machine.home / "secrets").iterdir()
        if file.is_file()
        for text in re.findall(r"[^\s:]{16,}", file.read_text())
    }
    assert secrets
    command_lines = "\n".join(" ".join(process.cmdline()) for process in machine.processes())
    logs = {file: file.read_text(errors="replace") for file in (machine.home / "logs").rglob("*.log")}
    assert not [secret[:4] for secret in secrets if secret in command_lines]
    assert not [file.name for file, text in logs.items() for secret in secrets if secret in text]
