"""Turns into the program it is given, with the secrets that this program takes from its environment.

Secrets are files, one value each, in the folder that SECRETS names (default /run/secrets). Two variables ask for them:

- `SECRET_NAME=file` sets NAME to the file's text. It is for programs that read a secret from nowhere else.
- `DATABASE_ROLE=role` writes a password file with the text of `postgres-<role>` and sets PGPASSFILE. libpq and asyncpg
  believe a password file only when nobody else may read it, which a mounted file cannot promise.

The values are in no image, no compose file and no `inspect`. One that could be guessed is refused, as by
domain/doors.py. Standard library only: this also runs in images that have no shell.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

PREFIX = "SECRET_"
SHORTEST, FEWEST_DIFFERENT = 16, 6
"""Characters of a secret; every default that people know is shorter."""


def surroundings(given: Mapping[str, str]) -> dict[str, str]:
    """The environment of the program; raises OSError and ValueError for a secret that is not there, or is none."""
    folder = Path(given.get("SECRETS", "/run/secrets"))
    result = {name: value for name, value in given.items() if not name.startswith(PREFIX)}
    for name, file in given.items():
        if name.startswith(PREFIX):
            result[name.removeprefix(PREFIX)] = secret = read(folder / file)
            refuse_weak(folder / file, *secret.rpartition(":")[::2])
    if role := result.pop("DATABASE_ROLE", None):
        file = folder / f"postgres-{role}"
        refuse_weak(file, role, password := read(file))
        result["PGPASSFILE"] = str(write_passfile(role, password, Path(given["TMPDIR"])))
    return result


def read(file: Path) -> str:
    """The text of a secret without the line's end; an empty one is a mistake."""
    if not (text := file.read_text(encoding="utf-8").strip()):
        raise ValueError(f"{file} is empty")
    return text


def refuse_weak(file: Path, user: str, password: str) -> None:
    """Raises ValueError for a password that could be guessed; it names the file alone."""
    if len(password) < SHORTEST or len(set(password)) < FEWEST_DIFFERENT or user == password:
        raise ValueError(f"{file} can be guessed: give it {SHORTEST} characters or more, made at random")


def write_passfile(role: str, password: str, folder: Path) -> Path:
    """A password file for one role on every server; it replaces that of an earlier start."""
    file, part = folder / "pgpass", folder / f".pgpass.{os.getpid()}"
    part.unlink(missing_ok=True)
    escaped = password.replace("\\", r"\\").replace(":", r"\:")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as handle:
        handle.write(f"*:*:*:{role}:{escaped}\n")
    part.replace(file)  # in one step: `docker exec` comes by here while the program is connecting
    return file


def main(command: list[str]) -> None:
    """Become the command."""
    try:
        environment = surroundings(os.environ)
    except (OSError, ValueError) as error:
        sys.exit(f"entry: a secret is missing or weak: {error}")
    os.execvpe(command[0], command, environment)  # noqa: S606 - it becomes the program, no shell wanted


if __name__ == "__main__":
    main(sys.argv[1:])
