"""The searches: each of DSPy's optimisers run on a workload, with what it may spend written beside it."""

import importlib
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn

from pydantic import JsonValue

from domain.errors import CompileError
from domain.prompts import PromptVersion
from domain.requests import Completion, Request
from domain.schemas import OutputSchema
from domain.workloads import Optimizer, OptimizerName, Tier

SIMBA_BATCH = 16
SIMBA_SAMPLES = 4
GEPA_BATCH = 3
COPRO_DEPTH = 2

Fields = Mapping[str, JsonValue]

_log = logging.getLogger("headrace.dspy")


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled row."""

    record_key: str
    inputs: dict[str, JsonValue]
    gold: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a search must ask for: an answer to a request, the worth of an output, and how to stop it all."""

    answer: Callable[[Request, str], Completion | None]
    score: Callable[[Fields, Fields | None], float]
    fail: Callable[[Exception], NoReturn]


@dataclass(frozen=True, slots=True)
class Search:
    """The job of one search."""

    baseline: PromptVersion
    tier: Tier
    options: Optimizer
    schema: OutputSchema
    train: list[Example]
    validation: list[Example]


@dataclass(frozen=True, slots=True)
class Found:
    """The prompts that a search tried, named, and a remark where something went amiss."""

    prompts: list[tuple[str, PromptVersion]]
    remark: str = ""


def idle(options: Optimizer, tier: Tier) -> str | None:
    """Why there is nothing to search, or None."""
    if options.name is OptimizerName.NONE:
        return "No optimiser was asked for."
    if options.name is OptimizerName.BOOTSTRAP and not tier.max_demos:
        return "Nothing to search: this optimiser chooses demos, and max_demos is 0."
    return None


def in_turn(rows: list[Example], schema: OutputSchema, *, seed: int) -> list[Example]:
    """The rows with their labels in turn, so that every beginning is balanced; rows without a label come last."""
    rng = random.Random(seed)  # noqa: S311 - a draw to repeat, not a secret
    shuffled = sorted(rows, key=lambda row: row.record_key)
    rng.shuffle(shuffled)
    labels = rng.sample(schema.labels, len(schema.labels))
    shelves = [[row for row in shuffled if row.gold.get(schema.decisive) == label] for label in labels]
    turns = [row for turn in zip_longest(*shelves) for row in turn if row is not None]
    return turns + [row for row in shuffled if row.gold.get(schema.decisive) not in labels]


def sizes(limit: int) -> list[int]:
    """How many demos are worth a try: 2, 4, 8 ... and the most there may be."""
    return [2**n for n in range(1, limit.bit_length()) if 2**n < limit] + ([limit] if limit else [])


def calls(options: Optimizer, tier: Tier, *, train: int) -> int:
    """At most so many calls for a search on `train` rows, beside the baseline's answers to the validation rows."""
    tries, rows = options.candidates, options.validation_rows
    match options.name:
        case OptimizerName.NONE:
            return 0
        case OptimizerName.BOOTSTRAP:
            return (tries + 1) * train + (tries + 2) * rows if tier.max_demos else 0
        case OptimizerName.MIPRO:  # bootstrapped sets, summary of the rows, instructions, trials
            return tries * train + (2 + train // 10) + tries + tries * rows
        case OptimizerName.GEPA:  # it looks at its budget between steps, so the last one may pass it
            budget, batch = (tries + 1) * rows, max(1, min(GEPA_BATCH, train))
            return budget + rows + 2 * batch + budget // batch + 1
        case OptimizerName.SIMBA:
            samples, batch = min(tries, SIMBA_SAMPLES), min(train, SIMBA_BATCH)
            step = samples * batch + (samples + 1) * (batch + 1)
            return tries * step + (samples + 1) * (train + rows)
        case OptimizerName.COPRO:
            return (COPRO_DEPTH * _breadth(tries) - 1) * (rows + 1)


def search(job: Search, rules: Rules) -> Found:
    """Run the optimiser; instructions that the model left empty are no candidates, and a remark says so."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    engine: Any = importlib.import_module("infra.llm.dspy_engine")  # imports DSPy, which takes seconds
    _quiet()
    rows = [(row.inputs, row.record_key) for row in (*job.train, *job.validation)]
    task = engine.Task(job.baseline, job.schema, rows)

    def fail(error: Exception) -> NoReturn:
        rules.fail(_wrapped(error))

    door = engine.Engine(job.tier, job.schema, rules.answer)
    with engine.session(task, door, tier=job.tier, threads=job.options.threads, fail=fail) as lm:
        try:
            programs = _OPTIMISERS[job.options.name](_Run(job, task, lm, task.metric(rules.score)))
        except Exception as error:
            raise _wrapped(error) from error
    prompts = [(f"{job.options.name}-{n}", task.prompt_of(program)) for n, program in enumerate(programs, 1)]
    written = [(name, prompt) for name, prompt in prompts if prompt.instructions.strip()]
    return Found(written, "" if written == prompts else "The model was asked for instructions and left some empty.")


def _wrapped(error: Exception) -> CompileError:
    about = f"The optimiser broke off with {type(error).__name__}: {str(error)[:200]}"
    wrapped = CompileError(about, hint="Try another optimizer.name.")
    wrapped.__cause__ = error
    return wrapped


@dataclass(frozen=True, slots=True)
class _Run:
    """A search under way: its job in DSPy's words."""

    job: Search
    task: Any
    lm: Any
    metric: Any

    def rows(self, rows: Iterable[Example]) -> list[Any]:
        return [self.task.example(row.inputs, row.gold) for row in rows]

    @property
    def bootstrapped(self) -> int:
        return min(self.job.options.max_bootstrapped_demos, self.job.tier.max_demos)


def _programs(best: Any) -> list[Any]:
    return [candidate["program"] for candidate in best.candidate_programs]


def _teleprompter(name: str) -> Any:
    return getattr(importlib.import_module("dspy.teleprompt"), name)


def _bootstrap(run: _Run) -> list[Any]:
    options = run.job.options
    optimiser = _teleprompter("BootstrapFewShotWithRandomSearch")(
        metric=run.metric,
        metric_threshold=1.0,
        max_bootstrapped_demos=run.bootstrapped,
        max_labeled_demos=run.job.tier.max_demos,
        num_candidate_programs=options.candidates,
        num_threads=options.threads,
    )
    best = optimiser.compile(
        run.task.student(),
        trainset=run.rows(run.job.train),
        valset=run.rows(run.job.validation),
        # Its numbered tries draw how many demos to bootstrap, at least one; these three need none.
        restrict=None if run.bootstrapped else [-3, -2, -1],
    )
    return [candidate["program"] for candidate in sorted(best.candidate_programs, key=lambda c: c["seed"])]


def _mipro(run: _Run) -> list[Any]:
    options, demos = run.job.options, run.job.tier.max_demos
    optuna: Any = importlib.import_module("optuna")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optimiser = _teleprompter("MIPROv2")(
        metric=run.metric,
        metric_threshold=1.0,
        prompt_model=run.lm,
        task_model=run.lm,
        auto=None,
        num_candidates=options.candidates,
        max_bootstrapped_demos=max(1, run.bootstrapped) if demos else 0,
        max_labeled_demos=demos,
        num_threads=options.threads,
        seed=options.seed,
    )
    best = optimiser.compile(
        run.task.student(),
        trainset=run.rows(run.job.train),
        valset=run.rows(run.job.validation),
        num_trials=options.candidates,
        minibatch=False,
        program_aware_proposer=False,  # our program's source says nothing and fills a small context
    )
    return _programs(best)


def _gepa(run: _Run) -> list[Any]:
    options, dspy = run.job.options, importlib.import_module("dspy")
    proposer = importlib.import_module("dspy.teleprompt.gepa").InstructionProposer
    optimiser = _teleprompter("GEPA")(
        metric=run.metric,
        max_metric_calls=(options.candidates + 1) * len(run.job.validation),
        reflection_minibatch_size=min(GEPA_BATCH, len(run.job.train)),
        reflection_lm=run.lm.copy(temperature=1.0),
        instruction_proposer=proposer(adapter=dspy.settings.adapter),
        use_merge=False,
        num_threads=options.threads,
        track_stats=True,
        seed=options.seed,
    )
    best = optimiser.compile(run.task.student(), trainset=run.rows(run.job.train), valset=run.rows(run.job.validation))
    return list(best.detailed_results.candidates)


def _simba(run: _Run) -> list[Any]:
    options = run.job.options
    optimiser = _teleprompter("SIMBA")(
        metric=run.metric,
        bsize=min(SIMBA_BATCH, len(run.job.train)),
        num_candidates=min(options.candidates, SIMBA_SAMPLES),
        max_steps=options.candidates,
        max_demos=run.job.tier.max_demos,
        num_threads=options.threads,
    )
    return _programs(optimiser.compile(run.task.student(), trainset=run.rows(run.job.train), seed=options.seed))


def _copro(run: _Run) -> list[Any]:
    options = run.job.options
    # No prompt_model: given one, it prints that model's history; without, it asks the same model.
    optimiser = _teleprompter("COPRO")(metric=run.metric, breadth=_breadth(options.candidates), depth=COPRO_DEPTH)
    settings = {"num_threads": options.threads, "display_progress": False}
    best = optimiser.compile(run.task.student(), trainset=run.rows(run.job.validation), eval_kwargs=settings)
    return _programs(best)


def _breadth(candidates: int) -> int:
    """Instructions a round of COPRO; two rounds of them, less the baseline, are about the candidates asked for."""
    return max(2, candidates // 2 + 1)


_OPTIMISERS: dict[OptimizerName, Callable[[_Run], list[Any]]] = {
    OptimizerName.BOOTSTRAP: _bootstrap,
    OptimizerName.MIPRO: _mipro,
    OptimizerName.GEPA: _gepa,
    OptimizerName.SIMBA: _simba,
    OptimizerName.COPRO: _copro,
}


class _Dark(list[Any]):
    """A progress bar that shows nothing."""

    _instances: ClassVar[set[Any]] = set()

    def __init__(self, rows: Iterable[Any] = (), **_options: Any) -> None:
        super().__init__(rows)

    def update(self, *_: object) -> None: ...

    set_description = close = update


def _quiet() -> None:
    """Send DSPy's prints to our log and darken its progress bars: it has no switch for them, and they show rows.

    Its modules get the names they look up; the process's own streams stay untouched, since other threads use them.
    """
    logger = logging.getLogger("dspy")
    logger.handlers.clear()
    logger.setLevel(logging.CRITICAL)
    for name in ("teleprompt.random_search", "teleprompt.bootstrap", "teleprompt.utils", "propose.grounded_proposer"):
        vars(importlib.import_module(f"dspy.{name}"))["print"] = _print
    for name in ("teleprompt.bootstrap", "utils.parallelizer", "evaluate.evaluate"):
        vars(importlib.import_module(f"dspy.{name}"))["tqdm"] = SimpleNamespace(tqdm=_Dark)
    vars(importlib.import_module("gepa.core.engine"))["tqdm"] = _Dark


def _print(*values: object, **_options: Any) -> None:
    _log.debug(" ".join(map(str, values)))
