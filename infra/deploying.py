"""Applying prefect.yaml: as it is written, and the same entries for a workload of the user's own."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

from domain.errors import Place, WorkloadError
from infra import retuning
from infra.deployments import DEFAULT, POOL, ROOT, WORKLOAD_TAG, PrefectError, client_for
from infra.settings import load_settings
from infra.workloads import find_workload, load_workload

Entry = dict[str, Any]
FILE = ROOT / "prefect.yaml"
TAG = "headrace"
DEPLOYING_S = 300


def deploy(*, home: Path, workload: str | None = None) -> bool:
    """Create the work pool and apply prefect.yaml; with a workload, a name or a folder, also the same for it.

    False when just this was applied here before. A schedule that was switched in Prefect's UI stays as it was switched.
    Raises PrefectError with what Prefect said last, WorkloadError when there is no such workload.
    """
    mark = home / "run" / "deployed"
    before = _read(mark)
    spec = read_file()
    with client_for("say what is deployed") as client:
        known = _deployed(client)
        folders = _folders_of(client)
    if workload is not None:
        found = load_workload(find_workload(workload, load_settings().workloads))
        if found.workload.name == DEFAULT:
            raise WorkloadError(Place(str(found.folder), field="name"), "this name is taken: give it another one")
        folders[found.workload.name] = str(found.folder)
    wanted = entries(spec, folders)
    digest = _digest(folders)
    if before.get("digest") == digest and {_key(entry) for entry in wanted} <= known.keys():
        return False
    said = {f"{_key(entry)}#{s['slug']}": bool(s["active"]) for entry in wanted for s in entry.get("schedules", [])}
    _apply({**spec, "deployments": keep_switches(wanted, known, said_before=before.get("schedules", {}))}, home)
    with client_for("set up its automation") as client:
        retuning.ensure_automation(client)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps({"digest": digest, "schedules": said}))
    return True


def read_file(file: Path = FILE) -> dict[str, Any]:
    """prefect.yaml as it is written."""
    return cast(dict[str, Any], yaml.safe_load(file.read_text(encoding="utf-8")))


def entries(spec: dict[str, Any], folders: dict[str, str]) -> list[Entry]:
    """The entries of the file, and those of each workload (its name, and what leads to it) made from them."""
    written = cast(list[Entry], spec["deployments"])
    return [*written, *(entry_for(entry, name, asked) for name, asked in folders.items() for entry in written)]


def entry_for(entry: Entry, workload: str, asked: str) -> Entry:
    """An entry of the file for another workload: its name, its tag and its parameters change, and nothing else."""
    return {
        **entry,
        "name": workload,
        "tags": [TAG, f"{WORKLOAD_TAG}{workload}"],
        "parameters": {**entry.get("parameters", {}), "workload": asked},
    }


def keep_switches(
    wanted: list[Entry], known: dict[str, dict[str, bool]], *, said_before: dict[str, bool]
) -> list[Entry]:
    """The entries with each schedule as active as Prefect has it, unless the file's own word is a new one.

    `known` says by deployment and slug what is active in Prefect, `said_before` what the file said when it was applied.
    """

    def active(entry: Entry, schedule: Entry) -> bool:
        key, says = _key(entry), bool(schedule["active"])
        unchanged = said_before.get(f"{key}#{schedule['slug']}", says) == says
        return known.get(key, {}).get(schedule["slug"], says) if unchanged else says

    return [
        {**entry, "schedules": [{**s, "active": active(entry, s)} for s in entry.get("schedules", [])]}
        for entry in wanted
    ]


def flow_name(entry: Entry) -> str:
    """The flow's name in Prefect; the function's with dashes, which is how ours are called."""
    return str(entry["entrypoint"]).rpartition(":")[2].replace("_", "-")


def _key(entry: Entry) -> str:
    return f"{flow_name(entry)}/{entry['name']}"


def _deployed(client: SyncPrefectClient) -> dict[str, dict[str, bool]]:
    """What is deployed, as flow/deployment, and which of its schedules are active, by slug."""
    flows = {flow.id: flow.name for flow in client.read_flows()}
    return {
        f"{flows.get(found.flow_id)}/{found.name}": {s.slug: bool(s.active) for s in found.schedules if s.slug}
        for found in _ours(client)
    }


def _folders_of(client: SyncPrefectClient) -> dict[str, str]:
    """The workloads that were deployed by name, and what leads to each: theirs are applied again with the file's."""
    own = [found for found in _ours(client) if found.name != DEFAULT]
    asked = {found.name: str(found.parameters.get("workload", "")) for found in own}
    return {name: folder for name, folder in sorted(asked.items()) if _exists(folder)}


def _ours(client: SyncPrefectClient) -> list[Any]:
    tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    found: list[Any] = []
    while page := client.read_deployments(deployment_filter=tagged, limit=200, offset=len(found)):
        found += page
    return found


def _exists(asked: str) -> bool:
    try:
        return bool(find_workload(asked, load_settings().workloads))
    except WorkloadError:
        return False


def _digest(folders: dict[str, str]) -> str:
    """Of all that a deployment is made from: the flows too, whose parameters it holds the schema of."""
    sources = [FILE, *sorted((ROOT / "flows").glob("*.py"))]
    where = json.dumps([str(ROOT), os.environ.get("PREFECT_API_URL", ""), folders], sort_keys=True)
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources) + where.encode()).hexdigest()


def _read(mark: Path) -> dict[str, Any]:
    try:
        found = json.loads(mark.read_text())
    except (OSError, ValueError):
        return {}
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _apply(spec: dict[str, Any], home: Path) -> None:
    """Have Prefect's own command apply a file that says this."""
    _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    file = home / "run" / "prefect.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True), encoding="utf-8")
    _prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(file))


def _prefect(*arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", *arguments]
    environment = {**os.environ, "HEADRACE_ROOT": str(ROOT), "PREFECT_CLI_PROMPT": "false", "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEPLOYING_S, check=False
    )
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise PrefectError(f"`prefect {' '.join(arguments)}` failed: {said[-1] if said else done.returncode}")
