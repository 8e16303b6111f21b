"""bespokelabs-curator over a file of rows; runs in its own environment and prints one line of JSON.

Set up in its favour: as many requests at once as Headrace's window, rate limits far away, cache off, the viewer and
telemetry off, guided by the same schema, and no log-probabilities, which it would not read.
"""

import argparse
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.schema import Subject

NEVER = 10**12
QUIET = {
    "TELEMETRY_ENABLED": "false",
    "CURATOR_DISABLE_CACHE": "true",
    "CURATOR_VIEWER": "false",
    "CURATOR_DISABLE_RICH_DISPLAY": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "DO_NOT_TRACK": "1",
    "OPENAI_API_KEY": "none",  # pragma: allowlist secret
}


def ask_all(rows: Sequence[dict[str, str]], base_url: str, model: str, system: str, in_flight: int) -> list[str]:
    """The label of every row, in whatever order curator returns them."""
    curator: Any = importlib.import_module("bespokelabs.curator")  # its environment is not the checker's

    class Labeller(curator.LLM):  # pyright: ignore[reportUntypedBaseClass]
        """The benchmark's one question."""

        def prompt(self, input: dict[str, str]) -> list[dict[str, str]]:  # noqa: A002 - curator's name
            """The same two messages that Headrace sends."""
            question = {"role": "user", "content": f"Text: {input['text']}"}
            return [{"role": "system", "content": system}, question]

        def parse(self, input: dict[str, str], response: Any) -> dict[str, str]:  # noqa: A002 - curator's name
            """One row of its dataset."""
            return {"id": input["id"], "label": response.label}

    labeller = Labeller(
        model_name=model,
        response_format=Subject,
        backend="openai",
        generation_params={"temperature": 0.0, "max_tokens": 24},
        backend_params={
            "base_url": base_url,
            "max_concurrent_requests": in_flight,
            "max_requests_per_minute": NEVER,
            "max_tokens_per_minute": NEVER,
            "max_retries": 2,
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        answered = labeller(list(rows), working_dir=folder)
        return [row["label"] for row in answered.dataset]


def tokenizer_folder() -> str:
    """Where litellm, which curator brings, ships the tokenizer that curator would otherwise download."""
    spec = importlib.util.find_spec("litellm")
    return str(Path((spec and spec.origin) or ".").parent / "litellm_core_utils" / "tokenizers")


def main(argv: Sequence[str] | None = None) -> None:
    """Label every row of a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--system", required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    options = parser.parse_args(argv)
    os.environ.update(QUIET, TIKTOKEN_CACHE_DIR=tokenizer_folder())
    rows = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    labels = ask_all(rows, options.base_url, options.model, options.system, options.in_flight)
    ended = time.monotonic()
    sys.stdout.flush()
    print(json.dumps({"rows": len(labels), "valid": sum(map(bool, labels)), "ended_at": ended}))


if __name__ == "__main__":
    main()
