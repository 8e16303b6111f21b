"""S3: nothing that is read is run, and nothing that is read says where rows and keys are sent."""

import ast
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import diskcache
import pytest
from sqlalchemy import delete

from domain.bundles import Bundle
from domain.errors import InputError
from domain.exports import files_of, read_files
from domain.workloads import TierName
from infra.bundle_folders import import_bundle
from infra.db.bundle_tables import BundleRow
from infra.db.session import transaction
from infra.exchange import import_runs
from infra.llm.engines import base_urls
from infra.settings import load_settings
from infra.workloads import load_workload
from tasks.chunking import deployment_of
from tasks.references import BundleRef, RunRef
from tests.integration.recorded_runs import EXAMPLE, FILE, ROOT, lines

OURS = ("flows", "tasks", "infra", "domain", "dashboards")
RUNS_WHAT_IT_READS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "diskcache", "jsonpickle"}
LOADERS = {"load_model", "load_program", "unpickle", "load_pickle", "read_pickle", "to_pickle"}
OWN, THEIRS = "http://127.0.0.1:9/own/v1", "http://127.0.0.1:9/theirs/v1"
COMPILE = """
import dspy
from tests.unit.test_optimizer import Model, compiled
assert compiled(Model()).prompt
print("compiled")
"""


class Bait:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.mkdir, (str(self.mark),)  # type: ignore[return-value]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What is there once a bait was taken."""
    return tmp_path / "taken"


@pytest.fixture
def bait(mark: Path) -> bytes:
    """A pickle that is one; it is shown to bite first."""
    made = pickle.dumps(Bait(mark))
    pickle.loads(made)  # noqa: S301 - our own
    mark.rmdir()
    return made


def _recorded() -> Bundle:
    return Bundle.model_validate(lines(FILE, "bundles")[0]["body"])


def _written(folder: Path, bundle: Bundle) -> Path:
    folder.mkdir()
    for name, text in files_of(bundle).items():
        (folder / name).write_text(text)
    return folder


def test_no_module_of_ours_can_run_what_it_reads() -> None:
    found: list[str] = []
    files = [file for part in OURS for file in (ROOT / part).rglob("*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Import(names=names):
                    found += [f"{file}: {name.name}" for name in names if name.name.split(".")[0] in RUNS_WHAT_IT_READS]
                case ast.ImportFrom(module=str(module)) if module.split(".")[0] in RUNS_WHAT_IT_READS:
                    found.append(f"{file}: {module}")
                case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
                    found.append(f"{file}: {name}")
                case ast.Call(func=ast.Attribute(attr=name)) if name in LOADERS:
                    found.append(f"{file}: {name}")
                case ast.keyword(arg="allow_pickle" | "allow_unsafe_lm_state" | "dangerously_use_pickle" as name):
                    found.append(f"{file}: {name}")
                case _:
                    pass
    assert len(files) > 200
    assert found == []


def test_a_compile_takes_nothing_from_a_planted_cache(mark: Path, bait: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with diskcache.FanoutCache(str(folder), shards=16) as cache:
        for key in ("a", "b", "c"):
            cache[key] = Bait(mark)
    with diskcache.FanoutCache(str(folder), shards=16) as cache:
        assert cache["a"] is None  # the bait bites whoever reads it
    mark.rmdir()
    surroundings = {"PYTHONPATH": str(ROOT), "DSPY_CACHEDIR": str(folder), "HOME": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env={**os.environ, **surroundings}, capture_output=True, text=True, check=False
    )

    assert "compiled" in done.stdout, done.stderr[-2000:]
    assert not mark.exists()


def test_dspys_cache_is_off_and_would_refuse_pickles(tmp_path: Path) -> None:
    asks = """
import dspy
from tests.unit.test_optimizer import Model, compiled
compiled(Model())
print(dspy.cache.enable_disk_cache, dspy.cache.enable_memory_cache)
"""
    surroundings = {"PYTHONPATH": str(ROOT), "DSPY_CACHEDIR": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", asks], env={**os.environ, **surroundings}, capture_output=True, text=True, check=False
    )

    assert done.stdout.split()[-2:] == ["False", "False"], done.stderr[-2000:]


def test_a_bundle_whose_files_are_pickles_is_refused_unread(
    ledger: str, mark: Path, bait: bytes, tmp_path: Path
) -> None:
    for name in files_of(_recorded()):
        folder = _written(tmp_path / f"with-{name}", _recorded())
        (folder / name).write_bytes(bait)
        with pytest.raises(InputError):
            import_bundle(folder)
    beside = {name: text.encode() for name, text in files_of(_recorded()).items()}
    assert read_files({**beside, "program.pkl": bait, "python_model.pkl": bait}, "folder") == _recorded()

    assert not mark.exists()


def test_a_run_whose_tables_are_pickles_is_refused_unread(ledger: str, mark: Path, bait: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(FILE) as real:
        names = real.namelist()
        for bad in names:
            copy = tmp_path / f"{bad}.zip"
            with zipfile.ZipFile(copy, "w") as archive:
                for name in names:
                    archive.writestr(name, bait if name == bad else real.read(name))
            with pytest.raises(InputError):
                import_runs(copy)

    assert not mark.exists()


def test_a_dspy_program_that_names_another_endpoint_leads_nowhere(tmp_path: Path) -> None:
    """DSPy drops it when it loads a state; we load none, and this says when that changes."""
    script = """
import json, sys
import dspy
program = dspy.Predict("question -> answer")
state = program.dump_state()
state["lm"] = {"model": "openai/x", "api_base": "http://127.0.0.1:9/theirs/v1", "api_key": "k", "cache": False}
program.load_state(state)
print(json.dumps(getattr(program.lm, "kwargs", {})))
"""
    surroundings = {"HOME": str(tmp_path), "DSPY_CACHEDIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **surroundings}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert "theirs" not in done.stdout


def test_a_bundle_from_elsewhere_does_not_say_where_its_rows_are_sent(ledger: str, tmp_path: Path) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    spec = next(row["spec"] for row in lines(FILE, "runs") if row["kind"] == "optimize")
    for tier in spec["tiers"].values():
        tier["base_urls"] = [OWN]
    (folder / "workload.yaml").write_text(json.dumps(spec))  # JSON is YAML too
    (folder / "schema.py").write_text((EXAMPLE / "schema.py").read_text())
    real = _recorded()
    parts = {
        name: real[TierName(name)].model_copy(
            update={"tier": real[TierName(name)].tier.model_copy(update={"base_urls": (THEIRS,)})}
        )
        for name in ("cheap", "strong")
    }
    theirs, new = import_bundle(_written(tmp_path / "theirs", real.model_copy(update=parts)))
    loaded = load_workload(folder)
    known = {"workload": theirs.workload, "folder": str(folder), "workload_hash": loaded.hash}
    run = RunRef.model_validate({"run_id": "r", "tracking_id": "t", "chunk_rows": 1, **known})
    try:
        sent_to = {
            base_urls(deployment_of(run, BundleRef(bundle_hash=theirs.hash, void=void), tier).tier, load_settings())
            for tier in TierName
            for void in ((), ("changed",))
        }
    finally:
        with transaction() as db:
            db.execute(delete(BundleRow).where(BundleRow.hash == theirs.hash))

    assert new
    assert theirs.cheap.tier.base_urls == (THEIRS,)
    assert sent_to == {(OWN,)}
