"""Which code decides: one digest over the sources and the libraries that a decision can depend on."""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "domain/*.py",
    "infra/deciding.py",
    "infra/fitting.py",
    "infra/routings.py",
    "infra/scoring.py",
    "infra/llm/judge.py",
    "infra/llm/reask.py",
    "infra/llm/transport.py",
)
LIBRARIES = (
    "arize-phoenix-evals",
    "instructor",
    "numpy",
    "openai",
    "pydantic",
    "pydantic-core",
    "scikit-learn",
    "scipy",
)


@cache
def code_version() -> str:
    """sha256 over what turns answers into decisions; a run keeps it, so that replay tells new code from new facts."""
    found = hashlib.sha256()
    for pattern in SOURCES:
        for file in sorted(ROOT.glob(pattern)):
            found.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    for library in LIBRARIES:
        found.update(f"{library}=={_version(library)}\0".encode())
    return found.hexdigest()


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
