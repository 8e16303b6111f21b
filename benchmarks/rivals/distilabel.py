"""distilabel over a file of rows; runs in its own environment and prints one line of JSON.

Set up in its favour: 256 requests at once where Headrace has 32, since a batch is sent and awaited as a whole and
smaller ones cost it; cache off, guided by the same schema in the request itself (not by a second library), no
log-probabilities, and its answers checked by pydantic as its users would.
"""

import argparse
import importlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.schema import Subject

BATCH = 256
"""Larger ones were no faster, ones of 32 much slower."""

QUIET = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "DISTILABEL_LOG_LEVEL": "ERROR"}


def ask_all(
    rows: Sequence[dict[str, str]], base_url: str, model: str, system: str, in_flight: int, cache: str
) -> list[str]:
    """The label of every row."""
    # Its environment is not the checker's.
    models: Any = importlib.import_module("distilabel.models.llms")
    pipelines: Any = importlib.import_module("distilabel.pipeline")
    steps: Any = importlib.import_module("distilabel.steps")
    tasks: Any = importlib.import_module("distilabel.steps.tasks")
    schema = {"name": "Subject", "schema": Subject.model_json_schema(), "strict": True}
    guided = {"response_format": {"type": "json_schema", "json_schema": schema}}
    llm = models.OpenAILLM(
        model=model,
        base_url=base_url,
        api_key="none",  # pragma: allowlist secret
        generation_kwargs={"temperature": 0.0, "max_new_tokens": 24, "extra_body": guided},
    )
    batch = max(in_flight, BATCH)
    data = [{"id": row["id"], "instruction": f"Text: {row['text']}", "system_prompt": system} for row in rows]
    with pipelines.Pipeline(name="bench", cache_dir=cache) as pipeline:
        load = steps.LoadDataFromDicts(data=data, batch_size=batch)
        ask = tasks.TextGeneration(llm=llm, input_batch_size=batch, add_raw_output=False, add_raw_input=False)
        load.connect(ask)
    answered = pipeline.run(use_cache=False)
    return [Subject.model_validate_json(row["generation"]).label for row in answered["default"]["train"]]


def main(argv: Sequence[str] | None = None) -> None:
    """Label every row of a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--system", required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    options = parser.parse_args(argv)
    os.environ.update(QUIET)
    logging.disable(logging.WARNING)
    rows = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as cache:
        labels = ask_all(rows, options.base_url, options.model, options.system, options.in_flight, cache)
        ended = time.monotonic()
    sys.stdout.flush()
    print(json.dumps({"rows": len(labels), "valid": len(labels), "ended_at": ended}))


if __name__ == "__main__":
    main()
