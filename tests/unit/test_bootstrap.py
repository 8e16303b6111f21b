"""The environments, built for real out of a folder of tiny packages."""

import base64
import hashlib
import os
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

BOOTSTRAP = Path(__file__).resolve().parents[2] / "infra" / "bootstrap.py"


@dataclass(frozen=True, slots=True)
class Place:
    """A copy of bootstrap.py beside locks of our own, a home folder, and the packages pip may use."""

    root: Path

    def lock(self, name: str, *pins: str) -> None:
        """Write a lock."""
        (self.root / "infra" / "locks" / f"{name}.txt").write_text("\n".join(pins) + "\n")

    def package(self, name: str, version: str = "1.0") -> str:
        """Make a package of one module and return its line in a lock."""
        wheel = self.root / "packages" / f"{name}-{version}-py3-none-any.whl"
        info = f"{name}-{version}.dist-info"
        files = {
            f"{name}.py": f"VERSION = '{version}'\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = [f"{path},sha256={_record_hash(text)},{len(text)}" for path, text in files.items()]
        files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
        return f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start the program."""
        command = [sys.executable, str(self.root / "infra" / "bootstrap.py"), *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "HEADRACE_"))}
        environment |= {
            "HEADRACE_HOME": str(self.root / "home"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.root / "packages"),
            "CI": "true",
        }
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=self.root
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run it to its end: exit code, output, errors."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=300)
        return process.returncode, output, errors

    def version(self, name: str) -> str:
        """What the app environment imports under this name."""
        python = self.root / "home" / "envs" / "app" / "bin" / "python"
        command = [str(python), "-c", f"import {name}; print({name}.VERSION)"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _record_hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("bootstrap")
    (root / "infra" / "locks").mkdir(parents=True)
    (root / "packages").mkdir()
    (root / "infra" / "bootstrap.py").write_bytes(BOOTSTRAP.read_bytes())
    return Place(root)


def test_two_clones_at_once_build_one_environment_and_both_succeed(place: Place) -> None:
    place.lock("app", place.package("stone"))
    both = [place.start("app"), place.start("app")]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert place.version("stone") == "1.0"
    assert len(list((place.root / "home" / "envs").glob("app-*"))) == 1


def test_a_second_run_does_nothing_and_takes_less_than_a_second(place: Place) -> None:
    began = time.monotonic()
    code, output, _ = place.run("app")
    assert (code, output.split()) == (0, ["app", "ready"])
    assert time.monotonic() - began < 3  # under a second on an idle machine; tests share theirs


def test_the_developers_layer_lands_in_the_same_environment(place: Place) -> None:
    place.lock("dev", place.package("hammer"))
    code, _, errors = place.run("app", "--dev")
    assert code == 0, errors
    assert (place.version("stone"), place.version("hammer")) == ("1.0", "1.0")
    assert len(list((place.root / "home" / "envs").glob("app-*"))) == 1


def test_a_package_with_another_hash_is_refused_with_the_cause_the_log_and_the_command(place: Place) -> None:
    pin = place.package("hammer", "2.0")
    place.lock("dev", pin[:-4] + ("0000" if pin[-4:] != "0000" else "1111"))
    code, _, errors = place.run("app", "--dev")
    assert code == 1
    assert "app: a downloaded package is not the one the lock was made with" in errors
    assert str(place.root / "home" / "logs" / "env-app.log") in errors
    assert "python3 infra/bootstrap.py app" in errors
    assert place.version("hammer") == "1.0"


def test_a_changed_lock_builds_beside_the_old_environment_and_moves_the_link(place: Place) -> None:
    before = (place.root / "home" / "envs" / "app").resolve()
    place.lock("app", place.package("stone", "2.0"))
    code, _, errors = place.run("app")
    assert code == 0, errors
    assert place.version("stone") == "2.0"
    assert before.is_dir()
    assert (place.root / "home" / "envs" / "app").resolve() != before


def test_an_unfinished_environment_is_built_anew(place: Place) -> None:
    current = (place.root / "home" / "envs" / "app").resolve()
    (current / ".complete-app").unlink()
    (current / "leftover").touch()
    code, _, errors = place.run("app")
    assert code == 0, errors
    assert not (current / "leftover").exists()


def test_a_missing_package_is_named(place: Place) -> None:
    place.lock("servers", "absent==1.0 --hash=sha256:" + "0" * 64)
    code, _, errors = place.run("servers")
    assert code == 1
    assert "No matching distribution found for absent==1.0" in errors


def test_an_unknown_environment_is_a_usage_error(place: Place) -> None:
    code, _, errors = place.run("kitchen")
    assert code == 2
    assert "no environment is called kitchen" in errors
