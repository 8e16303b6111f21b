"""Compiling a prompt: candidates from DSPy and from balanced demos, judged by the way they would be deployed."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition
from typing import NoReturn

import numpy as np
from pydantic import JsonValue

from domain.answers import settle
from domain.canonical import canonical
from domain.comparisons import Difference, paired_difference
from domain.confidences import FloatArray, LabelPrior
from domain.errors import CompileError, RequestRefused
from domain.prompts import Demo, PromptVersion
from domain.requests import Completion, Request, row_request
from domain.schemas import OutputSchema, Valid, check
from domain.scores import Metric, mcnemar
from domain.workloads import Optimizer, Tier
from infra.llm import searches
from infra.llm.searches import Example, Rules, Search

Ask = Callable[[Request, str], Completion]
"""(request, record key) -> completion, from the ledger where it is known; blocking, called from many threads."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt that was tried: its mean metric as DSPy sees it (`score`) and as it would be deployed."""

    name: str
    prompt: PromptVersion
    score: float
    deployed_score: float
    n: int


@dataclass(frozen=True, slots=True)
class CompileReport:
    """What was tried and what came of it; both scores are the deployed ones on the held-out rows.

    `best_score` is that of the candidate that led on the validation rows, kept or not; `gain`, row by row, its worth.
    """

    optimizer: str
    budget_calls: int
    candidates: list[Candidate]
    baseline_score: float
    best_score: float
    gain: Difference
    improved: bool
    p_value: float
    note: str


@dataclass(frozen=True, slots=True)
class Compiled:
    """The prompt to use, and why."""

    prompt: PromptVersion
    report: CompileReport


def budget(options: Optimizer, tier: Tier, *, train: int, held_out: int) -> int:
    """At most so many model calls for a compile; what the ledger knows is free."""
    if searches.idle(options, tier):
        return options.validation_rows + held_out
    shown = min(train, options.validation_rows)
    balanced = len(searches.sizes(tier.max_demos)) * options.validation_rows
    return options.validation_rows + 2 * held_out + balanced + searches.calls(options, tier, train=shown)


def compile_prompt(  # noqa: PLR0913 - everything a compile depends on, by name
    baseline: PromptVersion,
    *,
    tier: Tier,
    options: Optimizer,
    schema: OutputSchema,
    metric: Metric,
    train: list[Example],
    validation: list[Example],
    held_out: list[Example],
    ask: Ask,
    on_call: Callable[[int], None],
    on_candidate: Callable[[Candidate], None],
) -> Compiled:
    """Search a better prompt; the baseline stays unless a candidate beats it on rows that nobody chose by."""
    if not validation or not held_out:
        raise CompileError("There are no rows to judge prompts by.", hint="Label more rows or enlarge splits.train.")
    gate = _Gate(ask, on_call)
    bench = _Bench(tier, options, schema, metric, gate)
    rows = validation[: options.validation_rows]
    judged = {row.record_key for row in (*rows, *held_out)}
    spare = [row for row in train if row.record_key not in judged]
    try:
        tried, note = _candidates(bench, baseline, train=spare, validation=rows, on_candidate=on_candidate)
        limit = budget(options, tier, train=len(train), held_out=len(held_out))
        return _verdict(bench, tried, held_out=held_out, budget_calls=limit, note=note)
    except _Stopped:
        failure = gate.failure or CompileError("The compile was stopped.")
    finally:
        gate.close()
    raise failure


class _Stopped(BaseException):
    """Ends a compile; no Exception, since DSPy scores each of those 0 and carries on."""


class _Gate:
    """Every model call of one compile passes here: counted, made once, and none after the first failure."""

    def __init__(self, ask: Ask, on_call: Callable[[int], None]) -> None:
        self.failure: Exception | None = None
        self._ask = ask
        self._on_call = on_call
        self._known: dict[str, Completion | None] = {}
        self._refusal: RequestRefused | None = None
        self._closed = False
        self._asking: set[str] = set()
        self._lock = Condition()

    def __call__(self, request: Request, record_key: str) -> Completion | None:
        """The completion, or None when the server refused the request."""
        with self._lock:
            self._lock.wait_for(lambda: self._closed or request.hash not in self._asking)
            if self._closed:
                raise _Stopped
            if request.hash in self._known:
                return self._known[request.hash]
            self._asking.add(request.hash)
        completion = None
        try:
            try:
                completion = self._ask(request, record_key)
            except RequestRefused as refusal:
                self._refusal = refusal
            with self._lock:
                self._known[request.hash] = completion
                self._on_call(len(self._known))
        except Exception as error:  # noqa: BLE001 - whatever it is, DSPy must not score it 0; or the caller cancels
            self.fail(error)
        finally:
            with self._lock:
                self._asking.remove(request.hash)
                self._lock.notify_all()
        return completion

    def probe(self, request: Request, record_key: str) -> None:
        """Make a call whose refusal is an error: a wrong model name would refuse every row."""
        if self(request, record_key) is None and self._refusal:
            raise self._refusal

    def fail(self, error: Exception) -> NoReturn:
        """Keep the first failure and stop all calls."""
        with self._lock:
            self.failure = self.failure or error
            self._closed = True
        raise _Stopped from error

    def close(self) -> None:
        """Let nothing call any more, and wait for what does: DSPy leaves threads behind, `ask` may not outlive us."""
        with self._lock:
            self._closed = True
            self._lock.wait_for(lambda: not self._asking)


@dataclass(frozen=True, slots=True)
class _Deployed:
    """A prompt on rows, as it would be deployed."""

    prior: LabelPrior
    scores: FloatArray
    raw_score: float


@dataclass(frozen=True, slots=True)
class _Bench:
    """Where prompts are tried: the model, the metric and the calls."""

    tier: Tier
    options: Optimizer
    schema: OutputSchema
    metric: Metric
    gate: _Gate

    def request(self, prompt: PromptVersion, row: Example) -> Request:
        return row_request(prompt.render(row.inputs), tier=self.tier, schema=self.schema)

    def score(self, gold: Mapping[str, JsonValue], output: Mapping[str, JsonValue] | None) -> float:
        """What an output is worth; the user's metric may fail, and then the compile does."""
        try:
            return float(self.metric(gold, output)) if output is not None else 0.0
        except Exception as error:  # noqa: BLE001 - the metric is the user's code
            failure = CompileError(f"The metric failed: {error!r}", hint="Correct the workload's metric.")
            failure.__cause__ = error
            self.gate.fail(failure)

    def deploy(self, prompt: PromptVersion, rows: list[Example], *, prior: LabelPrior | None = None) -> _Deployed:
        """Answer rows and let the calibrated label decide; without a prior these rows give it."""
        requests = [self.request(prompt, row) for row in rows]
        with ThreadPoolExecutor(max_workers=self.options.threads) as pool:
            answers = list(pool.map(self.gate, requests, [row.record_key for row in rows]))
        read = [
            a.label_logprobs[key] for a in answers for key in [self.schema.decisive] if a and key in a.label_logprobs
        ]
        prior = prior or LabelPrior.of(read, self.schema.labels)
        settled = [settle(a, self.schema, prior).output if a else None for a in answers]
        decoded = [check(a.text, a.finish_reason, self.schema) if a else None for a in answers]
        raw = [d.output if isinstance(d, Valid) else None for d in decoded]
        return _Deployed(prior, self._scores(rows, settled), float(self._scores(rows, raw).mean()))

    def _scores(self, rows: Sequence[Example], outputs: Sequence[dict[str, JsonValue] | None]) -> FloatArray:
        return np.array([self.score(row.gold, output) for row, output in zip(rows, outputs, strict=True)])


@dataclass(frozen=True, slots=True)
class _Tried:
    """A candidate and the prior that the validation rows gave it."""

    candidate: Candidate
    prior: LabelPrior


def _candidates(
    bench: _Bench,
    baseline: PromptVersion,
    *,
    train: list[Example],
    validation: list[Example],
    on_candidate: Callable[[Candidate], None],
) -> tuple[list[_Tried], str]:
    """Every prompt that is worth a look, baseline first, tried on the validation rows."""
    tried: dict[str, _Tried] = {}

    def attempt(name: str, prompt: PromptVersion) -> None:
        if prompt.hash not in tried:
            seen = bench.deploy(prompt, validation)
            candidate = Candidate(name, prompt, seen.raw_score, float(seen.scores.mean()), len(validation))
            tried[prompt.hash] = _Tried(candidate, seen.prior)
            on_candidate(candidate)

    shortest = min(validation, key=lambda row: len(canonical(row.inputs)))
    bench.gate.probe(bench.request(baseline, shortest), shortest.record_key)
    attempt("baseline", baseline)
    if reason := searches.idle(bench.options, bench.tier):
        return list(tried.values()), reason
    if not train:
        raise CompileError("The optimiser has no rows to learn from.", hint="Label more rows or enlarge splits.train.")
    ordered = searches.in_turn(train, bench.schema, seed=bench.options.seed)
    for size in searches.sizes(bench.tier.max_demos):
        attempt(f"balanced-{size}", _with_demos(baseline, ordered[:size]))
    # Balanced rows, and no more than validation has: the most that a search can spend is then known beforehand.
    shown = ordered[: bench.options.validation_rows]
    job = Search(baseline, bench.tier, bench.options, bench.schema, train=shown, validation=validation)
    found = searches.search(job, Rules(bench.gate, bench.score, bench.gate.fail))
    for name, prompt in found.prompts:
        attempt(name, prompt)
    return list(tried.values()), found.remark or ("" if len(tried) > 1 else "The search found no other prompt.")


def _with_demos(baseline: PromptVersion, rows: list[Example]) -> PromptVersion:
    fields = baseline.output_fields
    demos = [Demo(inputs=row.inputs, output={f: row.gold[f] for f in fields if f in row.gold}) for row in rows]
    return baseline.model_copy(update={"demos": tuple(demos)})


def _verdict(bench: _Bench, tried: list[_Tried], *, held_out: list[Example], budget_calls: int, note: str) -> Compiled:
    """Keep the leader on the validation rows if it also beats the baseline on the held-out ones."""
    first = tried[0]
    # Among equals the shorter prompt is the cheaper one, and `max` takes the first: the baseline.
    best = max(tried, key=lambda t: (t.candidate.deployed_score, -len(t.candidate.prompt.demos)))
    before = bench.deploy(first.candidate.prompt, held_out, prior=first.prior).scores
    after = before if best is first else bench.deploy(best.candidate.prompt, held_out, prior=best.prior).scores
    improved, p_value = bool(after.mean() > before.mean()), mcnemar(before, after)
    if len(tried) > 1:
        note = f"{_said(best.candidate.name, before, after, p_value)} {note}".strip()
    report = CompileReport(
        optimizer=bench.options.name.value,
        budget_calls=budget_calls,
        candidates=[t.candidate for t in tried],
        baseline_score=float(before.mean()),
        best_score=float(after.mean()),
        gain=paired_difference(before, after),
        improved=improved,
        p_value=p_value,
        note=note,
    )
    return Compiled((best if improved else first).candidate.prompt, report)


def _said(name: str, before: FloatArray, after: FloatArray, p_value: float) -> str:
    if name == "baseline":
        return "No candidate beat the baseline on the validation rows; the baseline stays."
    figures = f"{after.mean():.3f} against {before.mean():.3f} on {len(after)} held-out rows, p = {p_value:.3g}"
    if after.mean() > before.mean():
        return f"{name} beats the baseline: {figures}."
    return f"{name} led on the validation rows but not after: {figures}; the baseline stays."
