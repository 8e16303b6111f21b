"""S5: what is installed is what was locked, nothing of it was taken back, and nothing runs at the start of Python."""

import re
import site
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from infra.licences import LIST, main, problems

LOCKS = sorted((Path(__file__).parents[2] / "infra" / "locks").glob("*.txt"))
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
BANNED = {
    "litellm": "==1.82.7",  # these two stole credentials
    "LiteLLM": "==1.82.8",
    "mlflow": "<3.16.1",  # a password for administrators that everybody knows
    "mlflow-skinny": "<3.16.1",
    "ray": "<2.54",  # DELETE endpoints open to any page in a browser
}
KNOWN_PTH = {"distutils-precedence.pth": 151}
"""Files that Python runs at its start, with their size in bytes: setuptools' own and nothing else."""


def _requirements(lock: Path) -> list[tuple[Requirement, list[str]]]:
    """Each requirement of a lock with its hashes."""
    joined = re.sub(r"\\\n\s*", " ", lock.read_text())
    found: list[tuple[Requirement, list[str]]] = []
    for line in joined.splitlines():
        if line and not line.startswith("#"):
            named, _, hashes = line.partition(" --hash")
            found.append((Requirement(named.strip()), HASH.findall(f"--hash{hashes}")))
    return found


def test_there_is_a_lock_for_every_environment() -> None:
    assert {lock.stem for lock in LOCKS} >= {"app", "dev", "servers", "engine", "models", "ray"}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_requirement_is_pinned_and_hashed(lock: Path) -> None:
    requirements = _requirements(lock)

    assert requirements
    for requirement, hashes in requirements:
        assert [part.operator for part in requirement.specifier] == ["=="], requirement
        assert hashes, requirement
        assert requirement.url is None


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_no_lock_says_where_to_get_anything(lock: Path) -> None:
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|--trusted-host|file:", lock.read_text())


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_no_version_is_one_that_was_taken_back(lock: Path) -> None:
    for requirement, _ in _requirements(lock):
        (pin,) = requirement.specifier
        for name, versions in BANNED.items():
            if requirement.name.lower() == name.lower():
                banned = Requirement(f"{name}{versions}").specifier
                assert not banned.contains(Version(pin.version), prereleases=True), requirement


def test_nothing_unknown_runs_when_python_starts() -> None:
    found = {file.name: file.stat().st_size for folder in site.getsitepackages() for file in Path(folder).glob("*.pth")}

    assert found == KNOWN_PTH


@pytest.mark.parametrize(
    ("licence", "fine"),
    [
        ("MIT", True),
        ("Apache-2.0 AND (MIT OR BSD-3-Clause)", True),
        ("Apache Software License; MIT License", True),
        ("Mozilla Public License 2.0 (MPL 2.0)", True),
        ("UNKNOWN", False),
        ("", False),
        ("GPL-3.0", False),
        ("MIT OR GPL-2.0-only", False),
        ("Elastic-2.0", False),
        ("MIT License with a field of use", False),
    ],
)
def test_a_licence_is_on_the_list_or_explained(licence: str, fine: bool) -> None:
    known = tomllib.loads(LIST.read_text())
    package = {"Name": "new-one", "Version": "1", "License": licence}

    assert (problems([package], known) == []) is fine
    assert problems([{**package, "Name": "Psycopg"}], known) == []


def test_phoenixs_server_is_named_as_a_service() -> None:
    assert "Elastic-2.0" in tomllib.loads(LIST.read_text())["services"]["arize-phoenix"]


def test_an_environment_that_is_not_built_is_said_to_be_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_ENVS", str(tmp_path))

    assert main() == 0
    said = capsys.readouterr().out
    assert [name for name in ("app", "servers", "engine") if f"licences of {name}: not looked at" in said] == [
        "app",
        "servers",
        "engine",
    ]
