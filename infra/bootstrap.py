"""Builds the environments from their locks: `python3 infra/bootstrap.py app servers engine ray [--dev]`.

Runs before any environment exists, so: standard library only, Python 3.11 or newer, and no import of our own.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

LOCKS = Path(__file__).resolve().parent / "locks"
NAMES = ("app", "servers", "engine")
LAYERS = {"app": ("app",), "servers": ("servers",), "engine": ("engine", "models"), "ray": ("ray",)}
"""The locks of an environment, the base first; `--dev` adds one to app. What is not in NAMES is built by name only."""
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where PyTorch's CPU wheel comes from when pip's own configuration does not have it; the only address in the code."""
TORCH_PYTHON = (3, 11)
"""The locks with PyTorch carry the hash of its wheel for this Python alone."""
MARKER = ".complete"
UNWANTED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV")


class BootstrapError(Exception):
    """An environment that cannot be built."""

    def __init__(self, name: str, cause: str, fix: str, log: Path | None = None) -> None:
        where = f"\n  log  {log}" if log else ""
        super().__init__(f"{name}: {cause}{where}\n  fix  {fix}")


@dataclass
class Progress:
    """What is shown of one environment; written by its thread, read by the board."""

    name: str
    site: Path
    phase: str = "waiting"
    total: int = 0
    collected: int = 0
    before: int = 0
    """Packages that were there before this lock."""
    began: float = field(default_factory=time.monotonic)
    took: float | None = None

    def read(self, line: str) -> None:
        """Take one line of pip's output."""
        if line.startswith(("Collecting ", "Requirement already satisfied")):
            self.collected += 1
        elif line.startswith("Ignoring "):  # for another platform
            self.total -= 1
        elif line.startswith("Installing collected packages"):
            self.phase = "installing"

    def line(self) -> str:
        """One line: packages, seconds, and about how many are left."""
        seconds = self.took if self.took is not None else time.monotonic() - self.began
        if self.took is not None or not self.total:
            return f"  {self.name:8} {self.phase}" + (f" ({seconds:.0f} s)" if seconds >= 1 else "")
        installing = self.phase == "installing"
        done = min(max(_dists(self.site) - self.before, 0) if installing else self.collected, self.total)
        # Fetching a package and installing it count half each.
        share = (done + (self.total if installing else 0)) / (2 * self.total)
        left = f", about {seconds * (1 - share) / share:.0f} s left" if 0.1 < share < 1 else ""
        return f"  {self.name:8} {self.phase} {done}/{self.total} packages, {seconds:.0f} s{left}"


class Board:
    """A line an environment: redrawn on a terminal, one every ten seconds elsewhere."""

    def __init__(self, progresses: list[Progress]) -> None:
        self._progresses = progresses
        self._live = sys.stdout.isatty() and os.environ.get("CI", "").lower() not in {"1", "true"}
        self._drawn = 0
        self._ended = threading.Event()

    @contextlib.contextmanager
    def shown(self) -> Generator[None]:
        """Keep drawing while the block runs, and once more at its end."""
        thread = threading.Thread(target=self._loop, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self._draw([progress for progress in self._progresses if progress.phase != "waiting"])

    def _loop(self) -> None:
        while not self._ended.wait(0.3 if self._live else 10.0):
            self._draw(self._progresses if self._live else [p for p in self._progresses if p.took is None])

    def _draw(self, progresses: list[Progress]) -> None:
        up = f"\x1b[{self._drawn}A" if self._live and self._drawn else ""
        clear = "\x1b[K" if self._live else ""
        sys.stdout.write(up + "".join(f"{progress.line()}{clear}\n" for progress in progresses))
        sys.stdout.flush()
        self._drawn = len(progresses) if self._live else 0


def home() -> Path:
    """The home folder of all state."""
    return Path(os.environ.get("HEADRACE_HOME") or "~/.local/share/headrace").expanduser().resolve()


def envs() -> Path:
    """The folder of environments, which several homes may share."""
    given = os.environ.get("HEADRACE_ENVS")
    return Path(given).expanduser().resolve() if given else home() / "envs"


def folder(name: str) -> Path:
    """The folder of this environment: its name tells the lock and the Python, so a change builds a new one."""
    text = (LOCKS / f"{name}.txt").read_bytes() + platform.python_version().encode()
    return envs() / f"{name}-{hashlib.sha256(text).hexdigest()[:12]}"


def missing(name: str, layers: tuple[str, ...]) -> list[str]:
    """The layers that are not installed; empty when there is nothing to do."""
    target = folder(name)
    return [layer for layer in layers if _read(target / f"{MARKER}-{layer}") != _digest(layer)]


def ensure(name: str, layers: tuple[str, ...], progress: Progress) -> None:
    """Build the environment, or what is missing of it; two callers at once do the work once."""
    link = envs() / name
    if link.exists() and not link.is_symlink():
        raise BootstrapError(name, f"{link} is a folder, a link is expected there", f"mv {link} {link}.old")
    envs().mkdir(parents=True, exist_ok=True)
    (home() / "logs").mkdir(parents=True, exist_ok=True)
    with (envs() / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        progress.began = time.monotonic()
        todo = missing(name, layers)
        if todo:
            _build(name, todo, progress)
        _point(link, folder(name))
    progress.took = time.monotonic() - progress.began
    progress.phase = "ready"


def _build(name: str, layers: list[str], progress: Progress) -> None:
    target = folder(name)
    log = home() / "logs" / f"env-{name}.log"
    if name in {"engine", "ray"}:
        _check_torch(name)
    if LAYERS[name][0] in layers:
        # Half a build, or none: its scripts name this very path, so it cannot be built elsewhere and moved in.
        shutil.rmtree(target, ignore_errors=True)
        progress.phase = "creating"
        command = [getattr(sys, "_base_executable", sys.executable), "-m", "venv", str(target)]
        _run(command, log, "w", progress)
    for layer in layers:
        lock = LOCKS / f"{layer}.txt"
        pins = re.findall(r"^[A-Za-z0-9][^\s=]*==", lock.read_text(), re.MULTILINE)
        progress.phase, progress.total, progress.collected = "fetching", len(pins), 0
        progress.before = _dists(progress.site)
        pip = [str(target / "bin" / "python"), "-m", "pip", "--no-input", "--disable-pip-version-check"]
        command = [*pip, "install", "--require-hashes", "--no-deps", "-r", str(lock), *_torch_options(pip, lock, log)]
        _run(command, log, "a", progress)
        (target / f"{MARKER}-{layer}").write_text(_digest(layer))


def _check_torch(name: str) -> None:
    if (*sys.version_info[:2], sys.platform, platform.machine()) == (*TORCH_PYTHON, "linux", "x86_64"):
        return
    wanted = ".".join(map(str, TORCH_PYTHON))
    here = f"Python {platform.python_version()} on {sys.platform} {platform.machine()}"
    raise BootstrapError(
        name,
        f"its lock holds PyTorch's CPU build for Python {wanted} on Linux x86-64 only, and this is {here}",
        f"python{wanted} infra/bootstrap.py {name}   (or use model servers of yours: set HEADRACE_ENGINES)",
    )


def _run(command: list[str], log: Path, mode: str, progress: Progress) -> None:
    """Run one command, everything it prints in the log; a failure names the cause in one sentence."""
    environment = {key: value for key, value in os.environ.items() if key not in UNWANTED}
    lines: list[str] = []
    with log.open(mode) as out:
        out.write(f"$ {' '.join(command)}\n")
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        ) as process:
            try:
                for line in process.stdout or ():
                    out.write(line)
                    lines = [*lines[-200:], line.strip()]
                    progress.read(line)
            except BaseException:
                process.terminate()
                raise
    if process.returncode != 0:
        name = progress.name
        raise BootstrapError(name, _cause(lines, process.returncode), f"python3 infra/bootstrap.py {name}", log)


def _cause(lines: list[str], code: int) -> str:
    text = "\n".join(lines)
    if "ensurepip" in text:
        return "this Python cannot create environments; on Debian and Ubuntu: apt-get install python3-venv"
    if "THESE PACKAGES DO NOT MATCH THE HASHES" in text:
        return "a downloaded package is not the one the lock was made with"
    if "No space left on device" in text:
        return "the disk is full"
    telling = [line for line in lines if re.match(r"(ERROR|OSError|Error)\b", line)]
    return (telling or [line for line in lines if line] or [f"ended with {code}"])[-1].removeprefix("ERROR: ")


def _torch_options(pip: list[str], lock: Path, log: Path) -> list[str]:
    """Name PyTorch's own index only when pip, as configured here, does not find the build."""
    pin = re.search(r"^torch==\S+", lock.read_text(), re.MULTILINE)
    if not pin:
        return []
    probe = [*pip, "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", pin.group()]
    with log.open("a") as out:
        found = subprocess.run(probe, stdout=out, stderr=out, check=False).returncode == 0
    return [] if found else ["--extra-index-url", TORCH_INDEX]


def _dists(site: Path) -> int:
    return sum(1 for _ in site.glob("*.dist-info")) if site.is_dir() else 0


def _digest(layer: str) -> str:
    return hashlib.sha256((LOCKS / f"{layer}.txt").read_bytes()).hexdigest()


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _point(link: Path, target: Path) -> None:
    """Move the stable name to the new environment in one step."""
    if link.is_symlink() and link.readlink() == Path(target.name):
        return
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target.name)
    fresh.replace(link)


def main(argv: list[str]) -> int:
    """Build what is asked for, the three of a single machine without a name; 0 ready, 1 failed."""
    parser = argparse.ArgumentParser(prog="bootstrap.py", description="Build Headrace's environments from their locks.")
    parser.add_argument("names", nargs="*", metavar="|".join(LAYERS), help=f"default: {' '.join(NAMES)}")
    parser.add_argument("--dev", action="store_true", help="add the tools for tests and checks to app")
    parser.add_argument("--rebuild", action="store_true", help="build anew what is there already")
    options = parser.parse_args(argv)
    if sys.version_info < (3, 11):  # noqa: UP036 - whatever Python the machine has gets here
        print("Headrace needs Python 3.11 or newer: run this with python3.11", file=sys.stderr)
        return 1
    if unknown := set(options.names) - set(LAYERS):
        parser.error(f"no environment is called {', '.join(sorted(unknown))}")
    wanted: dict[str, tuple[str, ...]] = {name: LAYERS[name] for name in LAYERS if name in (options.names or NAMES)}
    if options.dev:
        wanted["app"] = (*LAYERS["app"], "dev")
    try:
        return _ensure_all(wanted, rebuild=options.rebuild)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the packages already fetched", file=sys.stderr)
        return 130


def _ensure_all(wanted: dict[str, tuple[str, ...]], *, rebuild: bool) -> int:
    library = Path("lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
    board = {name: Progress(name, folder(name) / library) for name in wanted}
    errors: list[BaseException] = []

    def one(name: str) -> None:
        try:
            if rebuild:
                shutil.rmtree(folder(name), ignore_errors=True)
            ensure(name, wanted[name], board[name])
        except (BootstrapError, OSError) as error:
            board[name].phase, board[name].took = "failed", time.monotonic() - board[name].began
            errors.append(error)

    with Board(list(board.values())).shown(), ThreadPoolExecutor(min(len(wanted), os.cpu_count() or 1)) as pool:
        list(pool.map(one, wanted))
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
