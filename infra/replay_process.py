"""A replay in a process of its own: the seal is for good, and a flow's process still has to talk to Prefect."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

from domain.errors import HeadraceError
from infra.deployments import ROOT
from infra.replaying import NotReplayable

Json = dict[str, Any]
DIVERGENT = 1
"""The exit code of `headrace replay` when a decision came out differently."""


class ReplayDiverged(HeadraceError):
    """A decision of a past run comes out differently today."""

    retryable = False
    hint = "The run's artifacts hold both values; `headrace replay RUN` says it in a terminal."


def replay_apart(run_id: str, folder: Path) -> Json:
    """What `headrace replay --json` says of a run; raises NotReplayable with its words when it cannot be replayed."""
    command = [sys.executable, "-m", "infra.cli", "replay", run_id, "--workload", str(folder), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, DIVERGENT) or not done.stdout.strip():
        said = " ".join(done.stderr.split())
        raise NotReplayable(f"the run {run_id[:8]} cannot be replayed: {said or f'exit code {done.returncode}'}")
    return cast(Json, json.loads(done.stdout))


def line(found: Json) -> str:
    """What came of a replay, in one sentence."""
    about = f"{found['kind']} {found['workload']}, run {found['run'][:8]}, {found['rows']:,} rows"
    first = found["first"]
    if first is None:
        return f"identical: {about}"
    return f"divergent: {about}; first {first['kind']}: {first['what']} (cause: {first['cause']})"
