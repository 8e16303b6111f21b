"""What a benchmark runs in: a Postgres of its own in a temporary home, and on demand the embedded cheap engine."""

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text

from infra import stack
from infra.db.session import database_url, engine_for, migrate
from infra.service import envs_folder, weights_folder
from infra.settings import Settings, load_settings

PORTS = range(26_000, 28_000, 8)
"""Below the ports that the kernel hands out for outgoing connections; two benchmarks at once start in two places."""

GIVEN = ("HEADRACE_", "DATABASE_URL", "PREFECT_", "MLFLOW_", "PHOENIX_", "VLLM_", "PG")


@contextmanager
def embedded_stack(*names: str) -> Generator[Settings]:
    """The named services in a temporary home, the ledger migrated; all of it is gone afterwards.

    The caller's own addresses are put aside meanwhile: a benchmark empties its ledger again and again.
    """
    given, port = load_settings(), PORTS[os.getpid() % len(PORTS)]
    kept = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(GIVEN)]:
        del os.environ[name]
    home = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    home.chmod(0o755)  # as root the server may run as the user nobody, who must get in
    settings = Settings().model_copy(
        update={
            "home": home,
            "envs": envs_folder(given),
            "weights": weights_folder(given),
            "port_postgres": port,
            "port_engine": port + 2,
        }
    )
    try:
        os.environ.update(stack.up(settings, only=names, report=lambda _state: None).environment)
        migrate()
        yield settings
    finally:
        if database := os.environ.get("HEADRACE_DATABASE_URL"):
            engine_for(database).dispose()
        stack.down(settings)
        os.environ.clear()
        os.environ.update(kept)
        shutil.rmtree(home, ignore_errors=True)


def empty_ledger() -> None:
    """Make the ledger as new; rows that may never be deleted go with their tables."""
    with engine_for(database_url()).begin() as db:
        db.execute(text("DROP SCHEMA public CASCADE"))
        db.execute(text("CREATE SCHEMA public"))
    migrate()
