"""Generated secrets: made once, kept under the home folder for its owner alone, never printed."""

import json
import os
import secrets
from pathlib import Path

from infra.settings import Settings


def folder(settings: Settings) -> Path:
    """The one folder that holds secrets, closed to everybody else."""
    path = settings.home / "secrets"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def write(path: Path, text: str) -> None:
    """Write a file only its owner reads, complete or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text)
    part.replace(path)


def secret(settings: Settings, name: str) -> str:
    """The secret of this name, generated at the first call (letters and digits; long enough for every server)."""
    path = folder(settings) / name
    if not path.exists():
        # Phoenix wants a digit and a lower-case letter; hexadecimal without both is as good as impossible, not quite.
        write(path, "a1" + secrets.token_hex(24))
    return path.read_text().strip()


def known(settings: Settings) -> list[str]:
    """Every generated value, so that a log excerpt shown to somebody can be cleaned of them."""
    path = settings.home / "secrets"
    files = (file for file in path.iterdir() if file.is_file() and file.suffix == "") if path.is_dir() else ()
    # A source of webhooks may have several, one to a line.
    values = [
        line.strip() for file in files if not file.name.startswith("pgpass") for line in file.read_text().splitlines()
    ]
    pgpass = path / "pgpass"
    if pgpass.exists():
        values += [line.rpartition(":")[2] for line in pgpass.read_text().splitlines()]
    return [value for value in values if value]


def dump(path: Path, value: object) -> None:
    """Write JSON only its owner reads, the same text for the same value."""
    write(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def prefect_auth(settings: Settings) -> str:
    """User and password of the embedded Prefect server."""
    return f"headrace:{secret(settings, 'prefect-password')}"


def phoenix_key(settings: Settings) -> str:
    """The embedded Phoenix's administrator secret, which it takes as an API key."""
    return secret(settings, "phoenix-api-key")


def model_key(settings: Settings) -> str:
    """Bearer key of the embedded engines: the user's, or a generated one."""
    given = settings.model_api_key
    return given.get_secret_value() if given else secret(settings, "model-api-key")
