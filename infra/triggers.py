"""Which senders may start what: `triggers.yaml`, and the workloads that it names."""

from functools import lru_cache
from pathlib import Path

from domain.errors import Place, WorkloadError
from domain.triggers import Triggers
from infra.settings import Settings
from infra.workloads import find_workload
from infra.written import read_written

FILE = "triggers.yaml"


def load_triggers(settings: Settings) -> Triggers:
    """What the file says now; without a file nobody may start anything. Raises WorkloadError with line and column."""
    file = settings.triggers or settings.workloads / FILE
    if not file.is_file():
        if settings.triggers is not None:
            raise WorkloadError(Place(str(file)), "there is no such file", hint="Check HEADRACE_TRIGGERS.")
        return Triggers()
    found = file.stat()
    return _read(file, found.st_mtime_ns, found.st_size, settings.workloads)


@lru_cache(maxsize=8)
def _read(file: Path, _mtime: int, _size: int, workloads: Path) -> Triggers:
    triggers = read_written(file, Triggers)
    for name, dataset in triggers.datasets.items():
        try:
            find_workload(dataset.workload, workloads)
        except WorkloadError as error:
            place = Place(str(file), field=f"datasets.{name}.workload")
            raise WorkloadError(place, f"there is no workload {dataset.workload!r}", hint=error.hint) from error
    return triggers
