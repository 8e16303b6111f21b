"""The embedded stack for real: Postgres and the supervisor under a home folder of the test's own."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from infra import credentials, orphans, ports, postgres, services, stack
from infra.settings import Settings
from infra.stack import ServiceState, StackError

POSTGRES = {"postgres"}
OTHERS_NAMES = ("HEADRACE_", "PREFECT_", "MLFLOW_", "PHOENIX_", "VLLM_", "PG")


def _ignore(state: ServiceState) -> None:
    pass


@pytest.fixture
def settings(defaults: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A home of its own that may be broken, and no variable of the shared stack."""
    for name in [name for name in os.environ if name.startswith(OTHERS_NAMES)]:
        monkeypatch.delenv(name)
    settings = defaults.model_copy(
        update={
            "home": tmp_path / "home",
            "port_postgres": 27000,
            "port_prefect": 27100,
            "port_mlflow": 27200,
            "port_phoenix": 27300,
            "port_phoenix_grpc": 27400,
        }
    )
    yield settings
    stack.down(settings)


def _leader(settings: Settings, name: str) -> int:
    return next(record.pid for record in orphans.records(settings.home / "run") if record.name == name)


def _state(settings: Settings, name: str) -> ServiceState:
    return next(state for state in stack.status(settings) if state.name == name)


def _query(
    settings: Settings, query: str, *, role: str = "headrace", database: str = "headrace"
) -> list[tuple[object, ...]]:
    port = ports.remembered(settings)["postgres"]
    with psycopg.connect(
        f"postgresql://{role}@127.0.0.1:{port}/{database}", passfile=str(postgres.passfile(settings))
    ) as db:
        return db.execute(query.encode()).fetchall()


def test_postgres_comes_up_with_four_databases_and_is_left_alone_by_a_second_up(settings: Settings) -> None:
    seen: list[str] = []
    first = stack.up(settings, only=POSTGRES, report=lambda state: seen.append(state.phase))
    pid = first.services[0].pid
    assert seen == ["starting", "healthy"]
    assert {row[0] for row in _query(settings, "SELECT datname FROM pg_database")} >= {
        "headrace",
        "prefect",
        "mlflow",
        "phoenix",
    }
    assert _query(settings, "SELECT 1 FROM pg_extension WHERE extname = 'pg_trgm'", role="prefect", database="prefect")
    began = time.monotonic()
    second = stack.up(settings, only=POSTGRES, report=_ignore)
    assert time.monotonic() - began < 3
    assert second.services[0].pid == pid


def test_passwords_are_needed_and_are_in_no_file_outside_secrets_and_on_no_command_line(settings: Settings) -> None:
    brought_up = stack.up(settings, only=POSTGRES, report=_ignore)
    assert ":" not in brought_up.environment["HEADRACE_DATABASE_URL"].split("//")[1].split("@")[0]
    url = brought_up.environment["HEADRACE_DATABASE_URL"].replace("+psycopg", "")
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(url, passfile=os.devnull)
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        _query(settings, "SELECT 1", role="mlflow", database="headrace")
    hidden = credentials.known(settings)
    assert hidden
    secrets_folder = settings.home / "secrets"
    for path in (*settings.home.rglob("run/*"), *settings.home.rglob("logs/*")):
        assert not path.is_file() or not any(value in path.read_text(errors="replace") for value in hidden), path
    for path in (secrets_folder, *secrets_folder.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    for process in psutil.process_iter():
        words = " ".join(process.cmdline()) if process.status() != psutil.STATUS_ZOMBIE else ""
        assert not any(value in words for value in hidden)


def test_a_killed_service_is_back_after_the_next_up(settings: Settings) -> None:
    stack.up(settings, only=POSTGRES, report=_ignore)
    postgres = psutil.Process(_leader(settings, "postgres"))
    family = [postgres, *postgres.children(recursive=True)]
    postgres.kill()
    psutil.wait_procs(family, timeout=10)  # a new one does not start beside the backends of the former
    after = stack.up(settings, only=POSTGRES, report=_ignore)
    assert after.services[0].pid != postgres.pid
    assert _state(settings, "postgres").phase == "healthy"


def test_up_recovers_from_a_killed_supervisor_and_its_orphans(settings: Settings) -> None:
    stack.up(settings, only=POSTGRES, report=_ignore)
    _query(settings, "SELECT 1")
    orphan = _leader(settings, "postgres")
    os.kill(int((settings.home / "run" / "supervisord.pid").read_text()), signal.SIGKILL)
    assert _state(settings, "postgres").phase == "failed"
    after = stack.up(settings, only=POSTGRES, report=_ignore)
    assert after.services[0].pid != orphan
    assert not psutil.pid_exists(orphan)


def test_down_leaves_nothing_behind_even_when_everything_was_killed_the_hard_way(settings: Settings) -> None:
    stack.up(settings, only=POSTGRES, report=_ignore)
    run = settings.home / "run"
    family = orphans.find(run)
    supervisor = int((run / "supervisord.pid").read_text())
    assert len(family) > 1
    os.kill(supervisor, signal.SIGKILL)
    os.kill(_leader(settings, "postgres"), signal.SIGKILL)
    stack.down(settings)
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not orphans.find(run)
    stack.up(settings, only=POSTGRES, report=_ignore)
    assert _query(settings, "SELECT 1") == [(1,)]


def test_a_process_with_a_recorded_number_but_another_start_is_not_touched(settings: Settings) -> None:
    stack.up(settings, only=POSTGRES, report=_ignore)
    record = settings.home / "run" / "pids" / "impostor.json"
    me = os.getpid()
    record.write_text(f'{{"pid": {me}, "ticks": 1, "session": {os.getsid(0)}, "stop_signal": "KILL"}}')
    assert me not in {process.pid for process in orphans.find(settings.home / "run")}
    stack.down(settings)
    assert psutil.pid_exists(me)


def test_the_address_stays_over_a_restart_and_moves_only_when_somebody_took_the_port(settings: Settings) -> None:
    stack.up(settings, only=POSTGRES, report=_ignore)
    port = ports.remembered(settings)["postgres"]
    stack.down(settings)
    assert stack.up(settings, only=POSTGRES, report=_ignore).services[0].url.endswith(f":{port}")
    stack.down(settings)
    with socket.create_server(("127.0.0.1", port)):
        assert not stack.up(settings, only=POSTGRES, report=_ignore).services[0].url.endswith(f":{port}")
    assert _query(settings, "SELECT 1") == [(1,)]


def test_a_service_that_dies_names_its_cause_its_log_and_one_command(settings: Settings) -> None:
    stack.up(settings, only=POSTGRES, report=_ignore)
    stack.down(settings)
    (postgres.data_folder(settings) / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(StackError) as caught:
        stack.up(settings, only=POSTGRES, report=_ignore)
    error = caught.value
    assert (error.service, error.log) == ("postgres", stack.log_path(settings, "postgres"))
    assert "9.6" in error.log.read_text()
    assert "incompatible" in error.cause or "FATAL" in error.cause
    assert "headrace up" in error.fix


def test_what_the_user_gives_is_not_started_and_our_own_addresses_do_not_count_as_given(settings: Settings) -> None:
    own = settings.model_copy(update={"prefect_api_url": "http://elsewhere:4200/api", "engines": {"m": "http://e/v1"}})
    assert stack.embedded(own) == {"postgres", "mlflow", "phoenix", "worker", "webhooks", "dashboard"}
    given = {"mlflow_tracking_uri": "http://elsewhere:5000", "phoenix_endpoint": "http://elsewhere:6006"}
    theirs = own.model_copy(update={**given, "database_url": "postgresql+psycopg://me@db/ledger"})
    assert stack.embedded(theirs) == {"worker", "webhooks"}, "nobody has told us how to read their ledger and no more"
    reading = theirs.model_copy(update={"reader_url": "postgresql+psycopg://reader@db/ledger"})
    assert stack.embedded(reading) == {"worker", "webhooks", "dashboard"}
    stack.up(settings, only=POSTGRES, report=_ignore)
    ours = stack.environment(settings)["HEADRACE_DATABASE_URL"]
    assert stack.embedded(settings.model_copy(update={"database_url": ours})) == frozenset(services.NAMES)


def test_a_long_home_path_still_has_a_control_socket(settings: Settings) -> None:
    deep = settings.model_copy(update={"home": settings.home / ("long" * 20) / ("path" * 10)})
    try:
        stack.up(deep, only=POSTGRES, report=_ignore)
        assert _state(deep, "postgres").phase == "healthy"
    finally:
        stack.down(deep)
