"""Which licences the environments hold, against the list of those that may be used: part of `make check`.

Standard library and pip-licenses, a program of the dev tools, only. Run: python -m infra.licences
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from infra.service import envs_folder
from infra.settings import load_settings

LIST = Path(__file__).with_name("licences.toml")
ENVIRONMENTS = ("app", "servers", "engine")
"""Those that are looked at where they are built; the others are built from the same kinds of locks."""


def problems(installed: Iterable[Mapping[str, str]], known: Mapping[str, Mapping[str, str] | list[str]]) -> list[str]:
    """The packages (Name, Version, License) whose licence is neither allowed nor explained."""
    allowed = {_plain(name) for name in known["allowed"]}
    explained = {name.lower() for part in ("services", "packages") for name in known[part]}
    return [
        f"{package['Name']} {package['Version']}: {' '.join(package['License'].split())[:80]}"
        for package in installed
        if package["Name"].lower() not in explained and not _parts(package["License"]) <= allowed
    ]


def _parts(expression: str) -> set[str]:
    """Every licence of an expression: of alternatives all have to be allowed, or somebody has to choose one."""
    return {_plain(part) for part in re.split(r"; | AND | OR ", expression)}


def _plain(name: str) -> str:
    """A name without its abbreviation in brackets."""
    return re.sub(r"\s*\([A-Z][A-Za-z0-9 .]*\)$", "", name.strip()).strip("() ")


def installed_in(python: Path) -> list[dict[str, str]]:
    """The packages of an environment; raises CalledProcessError."""
    program = Path(sys.executable).with_name("pip-licenses")
    command = [str(program), "--python", str(python), "--from=mixed", "--format=json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    """Say what is wrong; 0 when nothing is."""
    known = tomllib.loads(LIST.read_text())
    found = 0
    for name in ENVIRONMENTS:
        python = envs_folder(load_settings()) / name / "bin" / "python"
        if not python.exists():
            print(f"licences of {name}: not looked at, this environment is not built")
            continue
        packages = installed_in(python)
        wrong = problems(packages, known)
        found += len(wrong)
        print(f"licences of {name}: {len(packages)} packages, {len(wrong)} neither allowed nor explained")
        for line in wrong:
            print(f"  {line}: see infra/licences.toml")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
