"""A bundle's folder is enough: who has nothing but its files and a model server decides as Headrace does."""

import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.answers import settle
from domain.bundles import Bundle
from domain.confidences import LabelPrior
from domain.exports import files_of
from domain.requests import Request
from infra.llm.scripted import Rule, Script, ScriptedServer
from infra.llm.wire import read_completion
from tests.unit.test_bundles import SCHEMA
from tests.unit.test_exports import bundle

ROWS = ("my card is lost", "a loan for a house", "card or loan?", "neither", "the card of my loan")
PRIOR = {"card": 0.7, "loan": 0.3}
RULES = (Rule(pattern="card", label="card"), Rule(pattern="loan", label="loan"))
SCRIPT = Script(model="m", rules=RULES, noise=0.2, sharpness=2, seed=1)


def made() -> Bundle:
    one = bundle()
    return one.model_copy(update={"cheap": one.cheap.model_copy(update={"prior": PRIOR})})


def by_hand(folder: Path, text: str, url: str) -> tuple[str, float]:
    """Label and confidence of a row as the folder's README says, with nothing of ours."""
    parts = json.loads((folder / "bundle.json").read_text())
    body = (folder / "request-cheap.json").read_text().replace("{{text}}", text)
    choice: Any = httpx.post(f"{url}/chat/completions", json=json.loads(body)).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    labels = json.loads((folder / "schema.json").read_text())["properties"][parts["decisive"]]["enum"]
    before, start = "", f'"{parts["decisive"]}":"'
    for token in choice["logprobs"]["content"]:
        if before.replace(" ", "").endswith(start):
            chances = dict.fromkeys(labels, 0.0)
            for listed in token["top_logprobs"]:
                heirs = [label for label in labels if f'{label}"'.startswith(listed["token"])]
                for label in heirs:
                    chances[label] += math.exp(listed["logprob"]) / len(heirs)
            break
        before += token["token"]
    else:
        raise AssertionError(f"no value of {parts['decisive']} in {before}")
    total = sum(chances.values())
    weights = {label: chance / total / parts["cheap"]["prior"][label] for label, chance in chances.items()}
    ranked = sorted(((weight / sum(weights.values()), label) for label, weight in weights.items()), reverse=True)
    return ranked[0][1], ranked[0][0] - ranked[1][0]


def test_the_files_alone_lead_to_the_same_label_and_the_same_confidence(tmp_path: Path) -> None:
    for name, text in files_of(made()).items():
        (tmp_path / name).write_bytes(text.encode())
    seen: set[tuple[str, bool]] = set()
    with ScriptedServer(SCRIPT) as server:
        for row in ROWS:
            label, confidence = by_hand(tmp_path, row, server.base_url)
            body = json.loads((tmp_path / "request-cheap.json").read_text().replace("{{text}}", row))
            reply = httpx.post(f"{server.base_url}/chat/completions", json=body)
            ours = settle(read_completion(Request.of(body, None), reply.content), SCHEMA, LabelPrior(PRIOR))
            assert ours.output == {"topic": label}
            assert ours.confidence == pytest.approx(confidence, abs=1e-9)
            seen.add((label, confidence >= (made().threshold or 0)))
    assert len(seen) > 1, "rows that are decided differently"
