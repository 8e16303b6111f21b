"""Reading `workload.yaml` and the schema and metric beside it, with file, line and column in every complaint."""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import cast

from pydantic import BaseModel

from domain.canonical import digest
from domain.errors import Place, WorkloadError
from domain.schemas import OutputSchema
from domain.scores import METRICS, Metric
from domain.workloads import Workload
from infra.written import read_written

FILE = "workload.yaml"


@dataclass(frozen=True)
class LoadedWorkload:
    """A workload with the folder it lives in and the code it refers to."""

    workload: Workload
    folder: Path

    @cached_property
    def schema(self) -> OutputSchema:
        """The output schema; raises WorkloadError."""
        place = Place(str(self.folder / FILE), field="output")
        model = _reference(self.workload.output, self.folder, place)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise WorkloadError(place, f"{self.workload.output} is not a pydantic model")
        return OutputSchema.of(model, decisive=self.workload.decisive, place=place)

    @cached_property
    def metric(self) -> Metric:
        """The metric, built in or the user's; raises WorkloadError."""
        if built_in := METRICS.get(self.workload.metric):
            return built_in
        place = Place(str(self.folder / FILE), field="metric")
        if ":" not in self.workload.metric:
            known = ", ".join(METRICS)
            raise WorkloadError(place, f"no metric is called {self.workload.metric!r}; built in are {known}")
        found = _reference(self.workload.metric, self.folder, place)
        if not callable(found):
            raise WorkloadError(place, f"{self.workload.metric} is not a function")
        return cast(Metric, found)

    @cached_property
    def code(self) -> str:
        """The source of the modules that hold the schema and the user's own metric."""
        modules = [self.workload.output, *([self.workload.metric] if self.workload.metric not in METRICS else [])]
        files = {self.folder / f"{reference.partition(':')[0].replace('.', '/')}.py" for reference in modules}
        return "\n".join(file.read_text(encoding="utf-8") for file in sorted(files))

    @cached_property
    def hash(self) -> str:
        """The workload's identity: its canonical form, the schema and the metric's code."""
        return self.workload.identity(code=self.code)

    def with_revisions(self, known: Mapping[str, str]) -> "LoadedWorkload":
        """The same workload with the revisions of embedded weights filled in."""
        tiers = self.workload.tiers.with_revisions(known)
        return LoadedWorkload(self.workload.model_copy(update={"tiers": tiers}), self.folder)


def find_workload(name_or_path: str, workloads: Path) -> Path:
    """The folder of a workload: a path to it or to its file, or a name below the workloads folder."""
    given = Path(name_or_path)
    for folder in (given, given.parent, workloads / name_or_path, workloads / name_or_path.replace("-", "_")):
        if (folder / FILE).is_file() and (folder != given.parent or given.name == FILE):
            return folder.resolve()
    known = ", ".join(sorted(path.parent.name for path in workloads.glob(f"*/{FILE}"))) or "none"
    raise WorkloadError(
        Place(name_or_path), "there is no such workload", hint=f"Give a folder with a {FILE}; found here: {known}."
    )


def load_workload(folder: Path) -> LoadedWorkload:
    """Read and validate `workload.yaml` in a folder; raises WorkloadError naming line and column."""
    return LoadedWorkload(read_written(folder / FILE, Workload), folder)


def _reference(reference: str, folder: Path, place: Place) -> object:
    """The object that `module:Name` names, from a module beside the workload."""
    module_name, _, attribute = reference.partition(":")
    module = _module(module_name, folder, place)
    if not hasattr(module, attribute):
        raise WorkloadError(place, f"{folder / module_name}.py has no {attribute!r}")
    return getattr(module, attribute)


def _file(module: str, folder: Path) -> Path:
    return folder / f"{module.replace('.', '/')}.py"


def _module(name: str, folder: Path, place: Place) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise WorkloadError(place, f"{name!r} is not the name of a module beside {FILE}")
    file = _file(name, folder)
    # The name carries the folder, so that two workloads may each have a schema.py.
    unique = f"headrace_workload_{digest(str(folder))[:12]}_{name.replace('.', '_')}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, file) if file.is_file() else None
    if spec is None or spec.loader is None:
        raise WorkloadError(place, f"{file} does not exist")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[unique]
        raise WorkloadError(place, f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    return module
