"""The rivals' environments: built on demand from their locks, as all others are, and never beside our own packages."""

import sys
from pathlib import Path

from benchmarks.processes import BenchmarkError
from infra import bootstrap

RIVALS = ("curator", "distilabel")


def python_of(rival: str) -> str:
    """The interpreter of a rival's environment, which is built when it is not there; raises BenchmarkError."""
    name = f"rivals-{rival}"
    bootstrap.LAYERS.setdefault(name, (name,))  # not in the table itself: `make envs` has no use for it
    folder = bootstrap.folder(name)
    site = Path("lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
    progress = bootstrap.Progress(name, folder / site)
    try:
        if bootstrap.missing(name, (name,)):
            with bootstrap.Board([progress]).shown():
                bootstrap.ensure(name, (name,), progress)
    except (bootstrap.BootstrapError, OSError) as error:
        raise BenchmarkError(f"its environment cannot be built: {error}") from error
    return str(folder / "bin" / "python")
