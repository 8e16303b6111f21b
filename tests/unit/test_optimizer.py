"""Compiling: what is asked, what is kept, what it may cost, and that no failure passes for a score of 0."""

import hashlib
import importlib
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import pytest
from pydantic import BaseModel, JsonValue

from domain.errors import CompileError, ModelUnavailable, Place, RequestRefused
from domain.prompts import PromptVersion, baseline
from domain.requests import Completion, Request, Usage, row_request
from domain.schemas import OutputSchema
from domain.scores import exact_match
from domain.workloads import Optimizer, OptimizerName, Prices, Tier
from infra.llm.optimizer import Candidate, Compiled, Example, budget, compile_prompt

LABELS = ("cards", "loans", "transfers")
WRITTEN = "[[ ## proposed_instruction ## ]]\nMind the words. {n}\n\n[[ ## new_instruction ## ]]\nMind the words. {n}"
SEARCHES = [name for name in OptimizerName if name is not OptimizerName.NONE]


class Ticket(BaseModel):
    """The answer under test."""

    topic: Literal["cards", "loans", "transfers"]
    urgent: bool = False


SCHEMA = OutputSchema.of(Ticket, decisive="topic", place=Place("schema.py"))
INSTRUCTIONS = "  Say what the ticket is about.\n    Think of the customer.\n"
PLAIN = baseline(INSTRUCTIONS, input_fields=("text",), schema=SCHEMA)
TIER = Tier(model="small", revision="r1", max_demos=4, usd_per_million=Prices(input=0, output=0))


def rows(count: int, part: str) -> list[Example]:
    """Labelled rows, each label in turn."""
    return [
        Example(f"{part}-{n}", {"text": f"{part} {n}: about {LABELS[n % 3]}"}, {"topic": LABELS[n % 3]})
        for n in range(count)
    ]


def noise(*parts: str) -> float:
    """A number in [0, 1) that is always the same for the same words."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:4]) / 2**32


@dataclass
class Model:
    """A small model behind a ledger: leans to one label, hears the truth faintly, better with demos of all labels."""

    helps: Callable[[str], float] = lambda _text: 0.8
    proposal: str = WRITTEN
    fails: Callable[[int, Request], Exception | None] = lambda _n, _request: None
    ledger: dict[str, Completion] = field(default_factory=dict[str, Completion])
    requests: list[Request] = field(default_factory=list[Request])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, request: Request, record_key: str) -> Completion:
        assert record_key
        with self.lock:
            if request.hash in self.ledger:
                return self.ledger[request.hash]
            self.requests.append(request)
            error = self.fails(len(self.requests), request)
        if error:
            raise error
        completion = self._row(request) if "response_format" in request.body else self._written(request)
        with self.lock:
            return self.ledger.setdefault(request.hash, completion)

    def _written(self, request: Request) -> Completion:
        text = self.proposal.replace("{n}", str(request.body["seed"]))
        return Completion(request.hash, text, "stop", Usage(10, 5), {})

    def _row(self, request: Request) -> Completion:
        messages = messages_of(request)
        shown = {json.loads(message["content"])["topic"] for message in messages if message["role"] == "assistant"}
        ear = 0.4 + self.helps(messages[-1]["content"]) * len(shown)
        text, seed, warmth = (
            messages[-1]["content"],
            str(request.body["seed"]),
            cast(float, request.body["temperature"]),
        )
        ear += 2.0 * ("Mind" in messages[0]["content"])
        weights = {
            label: math.exp(ear * (label in text) + (1.2 + 4.0 * warmth) * noise(label, text, seed)) for label in LABELS
        }
        weights["cards"] *= 6.0
        total = sum(weights.values())
        logprobs = {label: math.log(weight / total) for label, weight in weights.items()}
        said = json.dumps({"topic": max(weights, key=lambda label: weights[label]), "urgent": False})
        return Completion(request.hash, said, "stop", Usage(10, 5), {"topic": logprobs})


def messages_of(request: Request) -> list[dict[str, str]]:
    """The chat of a request."""
    return cast(list[dict[str, str]], request.body["messages"])


def compiled(model: Model, name: OptimizerName = OptimizerName.BOOTSTRAP, **changes: Any) -> Compiled:
    """A small compile; `changes` go to `compile_prompt`, those named `options` to the optimiser."""
    small = {"candidates": 2, "validation_rows": 12, "threads": 4}
    options = Optimizer(name=name, **(small | changes.pop("options", {})))
    given: dict[str, Any] = {
        "tier": TIER,
        "options": options,
        "schema": SCHEMA,
        "metric": exact_match,
        "train": rows(18, "train"),
        "validation": rows(12, "validation"),
        "held_out": rows(60, "held"),
        "ask": model,
        "on_call": list[int]().append,
        "on_candidate": list[Candidate]().append,
    }
    return compile_prompt(changes.pop("prompt", PLAIN), **(given | changes))


@pytest.mark.parametrize("name", list(OptimizerName))
@pytest.mark.parametrize("demos", [0, 3])
def test_every_optimiser_runs_within_its_budget_and_its_demo_limit(name: OptimizerName, demos: int) -> None:
    tier = TIER.model_copy(update={"max_demos": demos})
    counts: list[int] = []
    seen: list[Candidate] = []
    result = compiled(Model(), name, tier=tier, on_call=counts.append, on_candidate=seen.append)
    options = Optimizer(name=name, candidates=2, validation_rows=12)
    assert counts == list(range(1, len(counts) + 1))
    assert counts[-1] <= result.report.budget_calls == budget(options, tier, train=18, held_out=60)
    assert result.report.candidates == seen
    assert seen[0].name == "baseline"
    assert len({candidate.prompt.hash for candidate in seen}) == len(seen)
    assert all(len(candidate.prompt.demos) <= demos for candidate in seen)
    assert result.report.improved == (result.prompt != PLAIN)


@pytest.mark.parametrize("name", [OptimizerName.MIPRO, OptimizerName.GEPA, OptimizerName.COPRO])
def test_optimisers_of_instructions_bring_candidates_with_other_instructions(name: OptimizerName) -> None:
    candidates = compiled(Model(), name).report.candidates
    assert any("Mind" in candidate.prompt.instructions for candidate in candidates)


def test_every_row_request_is_the_one_the_row_path_sends() -> None:
    model = Model()
    result = compiled(model)
    for request in model.requests:
        messages = cast(Any, messages_of(request))
        assert request == row_request(messages, tier=TIER, schema=SCHEMA)
    sent = {request.hash for request in model.requests}
    for candidate in result.report.candidates:
        for row in rows(12, "validation"):
            rendered = candidate.prompt.render(row.inputs)
            assert row_request(rendered, tier=TIER, schema=SCHEMA).hash in sent


def test_a_repeated_compile_asks_nothing_new_and_gives_the_same_prompt() -> None:
    model = Model()
    first = compiled(model, OptimizerName.MIPRO)
    paid = len(model.requests)
    again = compiled(model, OptimizerName.MIPRO)
    assert (len(model.requests), again) == (paid, first)


@pytest.mark.parametrize("name", SEARCHES)
def test_the_same_seed_gives_the_same_prompts_whatever_the_threads(name: OptimizerName) -> None:
    alone = compiled(Model(), name, options={"seed": 3, "threads": 1})
    together = compiled(Model(), name, options={"seed": 3, "threads": 8}, train=rows(18, "train")[::-1])
    assert together == alone


def test_balanced_demos_help_a_model_that_leans_to_one_label() -> None:
    result = compiled(Model())
    assert result.report.improved
    assert result.report.best_score > result.report.baseline_score
    assert result.report.p_value < 0.05
    gain = result.report.gain
    assert gain.mean == pytest.approx(result.report.best_score - result.report.baseline_score)
    assert (gain.n, gain.low > 0, gain.low < gain.mean < gain.high) == (60, True, True)
    scores = {candidate.name: candidate for candidate in result.report.candidates}
    assert len({demo.output["topic"] for demo in scores["balanced-2"].prompt.demos}) == 2
    assert {demo.output["topic"] for demo in scores["balanced-4"].prompt.demos} == set(LABELS)
    assert scores["balanced-4"].deployed_score > scores["baseline"].deployed_score
    assert "beats the baseline" in result.report.note


def test_the_deployed_score_is_the_calibrated_one() -> None:
    plain = compiled(Model(), OptimizerName.NONE).report.candidates[0]
    assert plain.deployed_score > plain.score
    assert plain.n == 12


def test_a_candidate_that_fails_on_held_out_rows_is_not_kept() -> None:
    result = compiled(Model(helps=lambda text: 0.8 if "validation" in text else -0.4))
    assert result.prompt == PLAIN
    assert not result.report.improved
    assert result.report.best_score <= result.report.baseline_score
    assert "the baseline stays" in result.report.note


@pytest.mark.parametrize("name", [OptimizerName.NONE, OptimizerName.BOOTSTRAP])
def test_with_nothing_to_search_the_baseline_is_still_scored(name: OptimizerName) -> None:
    model = Model()
    result = compiled(model, name, tier=TIER.model_copy(update={"max_demos": 0}), train=[])
    assert len(model.requests) == 12 + 60
    assert result.prompt == PLAIN
    assert 0 < result.report.baseline_score == result.report.best_score
    assert result.report.note


def test_a_dead_server_is_an_error_after_one_call() -> None:
    down = ModelUnavailable("nobody there")
    model = Model(fails=lambda _n, _request: down)
    with pytest.raises(ModelUnavailable) as raised:
        compiled(model)
    assert raised.value is down
    assert len(model.requests) == 1


@pytest.mark.parametrize("name", SEARCHES)
def test_a_server_that_dies_during_the_search_stops_it(name: OptimizerName) -> None:
    down = ModelUnavailable("gone")
    model = Model(fails=lambda n, _request: down if n > 50 else None)
    with pytest.raises(ModelUnavailable) as raised:
        compiled(model, name)
    assert raised.value is down
    assert len(model.requests) <= 50 + 4


@pytest.mark.parametrize("name", [OptimizerName.MIPRO, OptimizerName.GEPA, OptimizerName.COPRO])
def test_a_server_that_dies_while_writing_instructions_stops_the_search(name: OptimizerName) -> None:
    down = ModelUnavailable("gone")
    model = Model(fails=lambda _n, request: None if "response_format" in request.body else down)
    with pytest.raises(ModelUnavailable):
        compiled(model, name)


@pytest.mark.parametrize("name", SEARCHES)
def test_prompts_that_the_server_refuses_are_worth_nothing_and_stop_nothing(name: OptimizerName) -> None:
    def too_long(_n: int, request: Request) -> Exception | None:
        return RequestRefused("too long") if len(messages_of(request)) > 2 else None

    result = compiled(Model(fails=too_long), name)
    demonstrated = [c for c in result.report.candidates if c.prompt.demos]
    assert demonstrated
    assert all(c.score == c.deployed_score == 0 for c in demonstrated)
    assert not result.prompt.demos


def test_a_refused_plain_prompt_is_an_error() -> None:
    model = Model(fails=lambda _n, _request: RequestRefused("no such model"))
    with pytest.raises(RequestRefused, match="no such model"):
        compiled(model)


@pytest.mark.parametrize("name", [OptimizerName.MIPRO, OptimizerName.GEPA, OptimizerName.COPRO])
@pytest.mark.parametrize("refused", [False, True])
def test_a_model_that_writes_no_instructions_brings_no_candidate_without_any(
    name: OptimizerName, refused: bool
) -> None:
    def too_long(_n: int, request: Request) -> Exception | None:
        return RequestRefused("too long") if refused and "response_format" not in request.body else None

    report = compiled(Model(proposal="", fails=too_long), name).report
    assert {candidate.prompt.instructions for candidate in report.candidates} == {INSTRUCTIONS}
    if name is OptimizerName.COPRO:
        assert "left some empty" in report.note


def test_prose_without_field_markers_is_taken_as_the_instruction() -> None:
    result = compiled(Model(proposal="Look for the product's name."), OptimizerName.COPRO)
    assert any(c.prompt.instructions == "Look for the product's name." for c in result.report.candidates)


def test_proposals_are_free_text_and_samples_of_one_prompt_differ_in_seed() -> None:
    model = Model()
    compiled(model, OptimizerName.COPRO)
    written = [request.body for request in model.requests if "response_format" not in request.body]
    assert len(written) == 3
    assert all(set(body) == {"model", "messages", "temperature", "seed", "max_tokens"} for body in written)
    assert {(body["temperature"], body["max_tokens"]) for body in written} == {(1.4, 512)}
    assert {body["seed"] for body in written if body["messages"] == written[-1]["messages"]} == {0, 1}


def test_threads_that_ask_the_same_at_once_wait_for_one_answer() -> None:
    model = Model(fails=lambda _n, _request: time.sleep(0.01))
    counts: list[int] = []
    compiled(model, OptimizerName.SIMBA, options={"threads": 8}, on_call=counts.append)
    asked = [request.hash for request in model.requests]
    assert len(asked) == len(set(asked)) == len(counts)


def test_rollouts_are_warm_and_differ_in_seed() -> None:
    model = Model()
    compiled(model, OptimizerName.SIMBA)
    warm = [request.body for request in model.requests if request.body["temperature"] == 1.0]
    answers = [body for body in warm if "response_format" in body]
    assert {body["seed"] for body in answers} == {0, 1}


def test_simba_writes_rules_into_the_instructions() -> None:
    advice = '[[ ## discussion ## ]]\nIt guessed.\n\n[[ ## module_advice ## ]]\n{"answer": "Mind the words."}'
    result = compiled(Model(proposal=advice), OptimizerName.SIMBA, tier=TIER.model_copy(update={"max_demos": 0}))
    assert any(candidate.prompt.instructions.endswith("Mind the words.") for candidate in result.report.candidates)


def test_untouched_instructions_keep_their_own_white_space() -> None:
    result = compiled(Model())
    assert {candidate.prompt.instructions for candidate in result.report.candidates} == {INSTRUCTIONS}


@pytest.mark.parametrize("name", [OptimizerName.BOOTSTRAP, OptimizerName.SIMBA])
def test_columns_may_be_named_like_anything(name: OptimizerName) -> None:
    def renamed(row: Example) -> Example:
        inputs: dict[str, JsonValue] = {"config": row.inputs["text"], "topic": 1, "a b": None, "a-b": [1], "_lm": "x"}
        return Example(row.record_key, inputs, row.gold)

    prompt = baseline("Sort.", input_fields=("topic", "a b", "a-b", "_lm", "config"), schema=SCHEMA)
    result = compiled(
        Model(),
        name,
        prompt=prompt,
        train=[renamed(row) for row in rows(18, "train")],
        validation=[renamed(row) for row in rows(12, "validation")],
        held_out=[renamed(row) for row in rows(60, "held")],
    )
    assert result.report.improved


def test_rows_that_judge_are_never_shown_as_demos() -> None:
    judged = rows(12, "validation")
    result = compiled(Model(), train=judged + rows(6, "train"), validation=judged)
    shown = {str(demo.inputs["text"]) for c in result.report.candidates for demo in c.prompt.demos}
    assert shown
    assert not shown & {str(row.inputs["text"]) for row in judged}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_metric_that_raises_is_an_error(name: OptimizerName) -> None:
    def metric(gold: Mapping[str, JsonValue], output: Mapping[str, JsonValue]) -> float:
        raise KeyError("area")

    with pytest.raises(CompileError, match="metric failed"):
        compiled(Model(), name, metric=metric)


def test_the_caller_can_stop_a_compile_between_two_calls() -> None:
    class CancelledError(Exception): ...

    def on_call(calls: int) -> None:
        if calls == 30:
            raise CancelledError

    model = Model()
    with pytest.raises(CancelledError):
        compiled(model, on_call=on_call)
    assert len(model.requests) <= 30 + 4


def test_no_call_is_under_way_when_a_compile_has_failed() -> None:
    under_way: set[int] = set()
    down = ModelUnavailable("gone")
    model = Model(fails=lambda n, _request: down if n > 50 else None)

    def ask(request: Request, record_key: str) -> Completion:
        under_way.add(threading.get_ident())
        time.sleep(0.002 + 0.02 * noise(request.hash))
        try:
            return model(request, record_key)
        finally:
            under_way.discard(threading.get_ident())

    with pytest.raises(ModelUnavailable):
        compiled(model, ask=ask)
    assert not under_way


@pytest.mark.parametrize("missing", ["train", "validation", "held_out"])
def test_a_split_without_rows_is_an_error(missing: str) -> None:
    with pytest.raises(CompileError):
        compiled(Model(), **{missing: []})


def test_compiles_in_threads_of_their_own_do_not_meet() -> None:
    def compiled_by(name: OptimizerName) -> Compiled:
        return compiled(Model(), name)

    names = [OptimizerName.BOOTSTRAP, OptimizerName.GEPA, OptimizerName.BOOTSTRAP]
    alone = [compiled_by(name) for name in names]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(compiled_by, names))
    assert together == alone


def test_nothing_of_a_compile_stays_in_dspy() -> None:
    compiled(Model())
    settings: Any = importlib.import_module("dspy").settings
    assert settings.lm is None
    assert settings.adapter is None


@pytest.mark.parametrize("name", SEARCHES)
def test_a_compile_prints_nothing(name: OptimizerName, capfd: pytest.CaptureFixture[str]) -> None:
    compiled(Model(), name)
    assert capfd.readouterr() == ("", "")


def test_a_prompt_version_round_trips_through_json() -> None:
    prompt = compiled(Model()).prompt
    assert PromptVersion.model_validate_json(prompt.model_dump_json()) == prompt
