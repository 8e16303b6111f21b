"""What `make check` demands of prefect.yaml: Prefect's own model of it, no unknown key, and our rules.

Prefect ignores keys that it does not know, so that a mistyped one would be silent.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from prefect.cli.deploy._models import ConcurrencyLimitSpec, DeploymentConfig, PrefectYamlModel, WorkPoolConfig
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, ValidationError

from infra.deploying import FILE, TAG, flow_name, read_file
from infra.deployments import ROOT, WORKLOAD_TAG

Json = Mapping[str, Any]
OWN_KEYS = frozenset({"definitions"})
"""YAML anchors, which Prefect passes over."""


def problems(spec: Json) -> list[str]:
    """What is wrong with a prefect.yaml, a line each; nothing when it is as it should be."""
    try:
        PrefectYamlModel.model_validate(spec)
    except ValidationError as error:
        return [f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors(include_url=False)]
    found = _unknown("prefect.yaml", spec, PrefectYamlModel, but=OWN_KEYS)
    for entry in spec["deployments"]:
        found += [f"{flow_name(entry)}: {problem}" for problem in _of_entry(entry)]
    declared = {Path(str(entry["entrypoint"]).partition(":")[0]).name for entry in spec["deployments"]}
    written = {file.name for file in (ROOT / "flows").glob("*.py")} - {"__init__.py"}
    return found + [f"flows/{name} is not deployed" for name in sorted(written - declared)]


def _of_entry(entry: Json) -> Iterable[str]:
    yield from _unknown("deployment", entry, DeploymentConfig)
    yield from _unknown("work_pool", entry.get("work_pool", {}), WorkPoolConfig)
    limit = entry.get("concurrency_limit", {})
    yield from _unknown("concurrency_limit", limit, ConcurrencyLimitSpec)
    if limit.get("limit") != 1 or limit.get("collision_strategy") != "ENQUEUE":
        yield "one run at a time, others wait (limit 1, ENQUEUE)"
    tags = entry.get("tags", [])
    if TAG not in tags or not any(tag.startswith(WORKLOAD_TAG) for tag in tags):
        yield f"the tags {TAG} and {WORKLOAD_TAG}NAME"
    if not entry.get("description"):
        yield "a description"
    yield from _of_parameters(entry)
    slugs = [schedule.get("slug") for schedule in entry.get("schedules", [])]
    if len(set(slugs)) != len(slugs) or None in slugs:
        yield "every schedule has a slug of its own: by it the switch in Prefect's UI is found again"
    for schedule in entry.get("schedules", []):
        yield from (f"schedule {schedule.get('slug')}: {problem}" for problem in _of_schedule(schedule))


def _of_parameters(entry: Json) -> Iterable[str]:
    schema = parameter_schema(load_flow_from_entrypoint(str(ROOT / entry["entrypoint"])))
    given = entry.get("parameters", {})
    for name in sorted(given.keys() - schema.properties.keys()):
        yield f"{name!r} is not a parameter of the flow"
    for name, described in schema.properties.items():
        if not described.get("description"):
            yield f"the parameter {name!r} has no help text in the flow's docstring"
        if name in schema.required and name not in given:
            yield f"the parameter {name!r} has no default"


def _of_schedule(schedule: Json) -> Iterable[str]:
    if schedule.get("parameters"):
        yield "has no parameters of its own: Prefect forgets them when it is switched in the UI"
    if schedule.get("active") is not False:
        yield "is shipped switched off (active: false)"
    try:
        ZoneInfo(schedule["timezone"])
        if "cron" in schedule:
            CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
        else:
            IntervalSchedule(interval=schedule["interval"], timezone=schedule["timezone"])
    except (KeyError, ValueError) as error:  # pydantic's error is a ValueError, zoneinfo's a KeyError
        yield str(error).partition("\n")[0]


def _unknown(where: str, given: Json, model: type[BaseModel], *, but: Iterable[str] = ()) -> list[str]:
    known = {name for field, info in model.model_fields.items() for name in (field, info.alias)} | set(but)
    return [f"{where}: Prefect knows no {key!r}" for key in given if key not in known]


def main() -> None:
    """Say what is wrong and exit with 1, or say nothing."""
    found = problems(read_file(FILE))
    for problem in found:
        print(f"prefect.yaml: {problem}", file=sys.stderr)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
