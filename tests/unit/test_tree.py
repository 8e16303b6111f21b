"""The tree: where packages come from, how long things are, and that nothing of one machine is written down."""

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from infra.bootstrap import TORCH_INDEX

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [name for name in ("flows", "tasks", "infra", "domain", "dashboards") if (ROOT / name).is_dir()]
MIGRATIONS = ROOT / "infra" / "db" / "migrations" / "versions"
MADE_UP = {".git", ".venv", "__pycache__", ".ruff_cache", ".pytest_cache", ".hypothesis", ".headrace", "node_modules"}
LONGEST_MODULE, LONGEST_FUNCTION = 300, 40
LONGER: dict[str, str] = {
    "infra/figures.py:cost_quality_curve": "one drawing, top to bottom",
    "tasks/compiling.py:_compile": "one call of the optimiser with an argument a line",
}
"""Functions over the limit and why; one that has become shorter must leave this list."""
OPEN_HOSTS = {urlsplit(TORCH_INDEX).hostname, "localhost", "127.0.0.1"}


def modules() -> list[Path]:
    found = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    return [path for path in found if MIGRATIONS not in path.parents and "__pycache__" not in path.parts]


def files() -> Iterator[Path]:
    for folder, below, names in os.walk(ROOT):
        below[:] = sorted(set(below) - MADE_UP)
        yield from (Path(folder, name) for name in sorted(names))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines_matching(pattern: re.Pattern[str]) -> list[str]:
    found: list[str] = []
    for path in files():
        text = path.read_bytes().decode(errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{name_of(path)}:{number}: {line.strip()[:120]}")
    return found


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_comes_from_this_repository_and_from_no_other_place(name: str) -> None:
    places = [Path(place).resolve() for place in importlib.import_module(name).__path__]
    assert places == [ROOT / name]


def test_the_four_layers_are_there() -> None:
    assert {"flows", "tasks", "infra", "domain"} <= set(PACKAGES)
    assert len(modules()) > 60


def test_the_domain_imports_no_other_layer_and_no_library_but_its_three() -> None:
    allowed = {*sys.stdlib_module_names, "pydantic", "numpy", "scipy", "domain"}
    for path in sorted((ROOT / "domain").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= allowed, name_of(path)


def test_no_module_is_longer_than_it_may_be() -> None:
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {name: length for name, length in lengths.items() if length > LONGEST_MODULE} == {}


def test_no_function_is_longer_than_it_may_be_but_those_that_say_why() -> None:
    long: set[str] = set()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    long.add(f"{name_of(path)}:{node.name}")
    assert long == set(LONGER)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or (ast.get_docstring(tree) or "").strip()


def test_test_names_are_unique_within_their_file_and_nothing_is_patched_or_skipped() -> None:
    banned = re.compile(
        "|".join(("mock" + r"\.patch", r"monkeypatch\." + "setattr", r"mark\." + "skip", r"pytest\." + "skip"))
    )
    for path in sorted((ROOT / "tests" / "unit").glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE)
        assert len(names) == len(set(names)), name_of(path)
        assert not banned.search(text), f"{name_of(path)}: {banned.search(text)}"


def test_no_folder_has_a_name_that_says_nothing() -> None:
    empty = {"utils", "helpers", "common", "types", "base", "misc"}
    assert [name_of(path) for path in modules() if {path.stem, *path.relative_to(ROOT).parts} & empty] == []


@pytest.mark.parametrize("lock", sorted((ROOT / "infra" / "locks").glob("*.txt")), ids=lambda lock: lock.name)
def test_a_lock_pins_by_hash_and_carries_no_address(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash)", text, re.MULTILINE), "an option such as --index-url or -f"
    requirements = re.split(r"\n(?=\S)", re.sub(r"^#.*\n?|^\s+#.*\n?", "", text, flags=re.MULTILINE).strip())
    assert len(requirements) > 3
    for requirement in requirements:
        assert re.match(r"[\w.-]+(\[[\w,.-]+\])?==\S+", requirement), requirement[:80]
        assert "--hash=sha256:" in requirement, requirement[:80]


def test_no_file_holds_a_path_of_the_machine_it_was_written_on() -> None:
    places = [f"{place}/" for place in (ROOT, Path.home()) if len(place.parts) > 1]
    assert lines_matching(re.compile(r"(?<![\w.<>})-])(?:" + "|".join(map(re.escape, places)) + ")")) == []


def test_no_file_names_the_package_index_of_the_machine_it_was_written_on() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    given = listed.stdout + " ".join(value for name, value in os.environ.items() if re.search("INDEX|FIND_LINKS", name))
    hosts = {urlsplit(address).hostname for address in re.findall(r"https?://[^\s'\"]+", given)} - {None, *OPEN_HOSTS}
    places = {urlsplit(address).path for address in re.findall(r"file://[^\s'\"]+", given)}
    named = sorted(re.escape(str(word)) for word in hosts | places if word)
    assert lines_matching(re.compile("|".join(named))) == [] if named else True
