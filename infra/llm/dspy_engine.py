"""DSPy's side of a compile: its model calls become our requests, and our prompts are what it renders.

Importing this imports DSPy (seconds), so only a running search does (`infra.llm.searches`). DSPy ships no types: what
comes from it is cast here and never leaves.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NoReturn, cast, get_origin

import dspy
from dspy import lm15
from dspy.utils.exceptions import AdapterParseError
from pydantic import JsonValue

from domain.canonical import canonical
from domain.prompts import Demo, Message, PromptVersion
from domain.requests import Completion, Request, row_request
from domain.schemas import Invalid, OutputSchema, check
from domain.workloads import Tier

Answer = Callable[[Request, str], Completion | None]
Fields = Mapping[str, JsonValue]

PROPOSAL_TOKENS = 512
PROPOSAL_KEY = "proposal"
"""Stands where a record's key stands, for the calls that write instructions instead of answering a row."""


@dataclass(slots=True)
class _Call:
    """The call that DSPy makes in this context; `messages` are a row's own, None while it writes instructions."""

    record_key: str
    rollout: int = 0
    messages: list[Message] | None = None
    completion: Completion | None = None
    samples: Iterator[int] = field(default_factory=count)


_CALL: ContextVar[_Call | None] = ContextVar("headrace_dspy_call", default=None)


class Engine:
    """DSPy's engine contract: one request in, one response out; retries, cache and connection are not its business."""

    def __init__(self, tier: Tier, schema: OutputSchema, answer: Answer) -> None:
        self._tier = tier
        self._schema = schema
        self._answer = answer

    def complete(self, request: Any) -> Any:
        """Answer a `dspy.lm15.Request`; a refused row is an empty answer, which the adapter cannot parse."""
        call = _CALL.get() or _Call(PROPOSAL_KEY)
        # DSPy asks for n samples by repeating one request and tells rollouts apart outside of it: both are seeds to us.
        tier = _sampled(self._tier, request.config.temperature, call.rollout + next(call.samples))
        if call.messages is not None:
            ours = row_request(call.messages, tier=tier, schema=self._schema)
        else:
            ours = _proposal(request, tier)
        call.completion = self._answer(ours, call.record_key)
        # DSPy breaks off at an empty text; a blank lets it go on without this one proposal.
        return _response(call.completion, empty="" if call.messages is not None else " ")


def _sampled(tier: Tier, temperature: float | None, rollout: int) -> Tier:
    """The tier as asked; one asked at its own temperature is left alone, and its requests are the row path's."""
    if temperature is None or temperature == tier.temperature:
        return tier if not rollout or not tier.temperature else tier.model_copy(update={"seed": tier.seed + rollout})
    seed = tier.seed + rollout if temperature > 0 else tier.seed
    return tier.model_copy(update={"temperature": float(temperature), "seed": seed})


def _proposal(request: Any, tier: Tier) -> Request:
    system = request.system
    if system is not None and not isinstance(system, str):
        system = "".join(part.text for part in system)
    messages: list[JsonValue] = [{"role": "system", "content": system}] if system is not None else []
    messages += [{"role": m.role, "content": m.text or ""} for m in request.messages]
    body: dict[str, JsonValue] = {
        "model": tier.model,
        "messages": messages,
        "temperature": tier.temperature,
        "seed": tier.seed,
        "max_tokens": request.config.max_tokens or PROPOSAL_TOKENS,
    }
    return Request.of(body, tier.revision)


def _response(completion: Completion | None, *, empty: str) -> Any:
    text = (completion.text if completion else "") or empty
    usage = completion.usage if completion else None
    return lm15.Response(
        id=None,
        model="headrace",
        message=lm15.Message.assistant([lm15.TextPart(text)]),
        finish_reason="length" if completion and completion.finish_reason == "length" else "stop",
        usage=lm15.Usage(input_tokens=usage.prompt if usage else 0, output_tokens=usage.completion if usage else 0),
    )


class Task:
    """The workload in DSPy's words; fields are prefixed, so that no column meets one of DSPy's own names."""

    def __init__(self, baseline: PromptVersion, schema: OutputSchema, keys: Iterable[tuple[Fields, str]]) -> None:
        self.schema = schema
        self._baseline = baseline
        self._inputs = _names("input", baseline.input_fields)
        self._outputs = _names("output", baseline.output_fields)
        self._keys = {canonical(dict(inputs)): key for inputs, key in keys}
        fields = {name: (str, dspy.InputField(desc=column)) for column, name in self._inputs.items()}
        fields |= {name: (self._annotation(f), dspy.OutputField(desc=f)) for f, name in self._outputs.items()}
        self._signature: Any = cast(Any, dspy.Signature)(fields, baseline.instructions)
        self._written: str = self._signature.instructions
        self._unwritten: str = cast(Any, dspy.Signature)(fields).instructions

    def student(self) -> Any:
        """A program of one predictor, in a module of its own because some optimisers show the module's source."""
        return _Program(self._signature)

    def example(self, inputs: Fields, gold: Fields) -> Any:
        """A DSPy example."""
        values = {name: inputs[column] for column, name in self._inputs.items()}
        values |= {name: gold[f] for f, name in self._outputs.items() if f in gold}
        return dspy.Example(**values).with_inputs(*self._inputs.values())

    def gold(self, example: Any) -> dict[str, JsonValue]:
        """The right answer an example carries."""
        return {f: example[name] for f, name in self._outputs.items() if name in example}

    def output(self, prediction: Any) -> dict[str, JsonValue] | None:
        """The answer a prediction carries; None when the program failed on the row."""
        if prediction is None or not all(name in prediction for name in self._outputs.values()):
            return None
        return {f: prediction[name] for f, name in self._outputs.items()}

    def metric(self, score: Callable[[Fields, Fields | None], float]) -> Any:
        """A metric that every optimiser takes; GEPA names a predictor and wants words as well."""

        def metric(example: Any, prediction: Any, _trace: Any = None, name: Any = None, _trace_of: Any = None) -> Any:
            gold = self.gold(example)
            worth = score(gold, self.output(prediction))
            if name is None:
                return worth
            words = "Right." if worth >= 1 else f"The right answer is {canonical(gold).decode()}."
            return dspy.Prediction(score=worth, feedback=words)

        return metric

    def owns(self, signature: Any) -> bool:
        """Whether a signature asks for an answer to a row, and not for instructions."""
        mine = (set(self._inputs.values()), set(self._outputs.values()))
        return (set(signature.input_fields), set(signature.output_fields)) == mine

    def row(self, inputs: Mapping[str, Any]) -> dict[str, JsonValue]:
        """A row's inputs under their own names."""
        return {column: inputs[name] for column, name in self._inputs.items()}

    def record_key(self, inputs: Mapping[str, Any]) -> str:
        """The record whose inputs these are."""
        return self._keys[canonical(self.row(inputs))]

    def prompt_of(self, program: Any) -> PromptVersion:
        """The prompt of a program."""
        return self.prompt(program.answer.signature.instructions, program.answer.demos)

    def prompt(self, instructions: str, demos: Sequence[Any]) -> PromptVersion:
        """The prompt of these instructions and demos.

        DSPy dedents instructions and puts words of its own for empty ones; both are undone.
        """
        kept = [Demo(inputs=self.row(demo), output=self.gold(demo)) for demo in demos]
        text = {self._written: self._baseline.instructions, self._unwritten: ""}.get(instructions, instructions)
        return self._baseline.model_copy(update={"instructions": text, "demos": tuple(kept)})

    def parsed(self, output: Fields) -> dict[str, JsonValue]:
        """An answer under DSPy's names."""
        return {name: output.get(f) for f, name in self._outputs.items()}

    def _annotation(self, output: str) -> Any:
        declared = self.schema.model.model_fields.get(output)
        annotation: Any = declared.annotation if declared else str
        return annotation if isinstance(annotation, type) or get_origin(annotation) is not None else str


def _names(prefix: str, fields: Sequence[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for position, column in enumerate(fields):
        name = f"{prefix}_{re.sub(r'[^0-9A-Za-z_]', '_', column)}"
        names[column] = f"{name}_{position}" if name in names.values() else name
    return names


class _Program(dspy.Module):
    """Answer one row."""

    def __init__(self, signature: Any) -> None:
        super().__init__()
        self.answer = dspy.Predict(signature)

    def forward(self, **inputs: Any) -> Any:
        return self.answer(**inputs)


class RowAdapter(dspy.Adapter):
    """Renders rows by `PromptVersion` and reads them by the schema; other signatures go to DSPy's chat format."""

    def __init__(self, task: Task, fail: Callable[[Exception], NoReturn]) -> None:
        super().__init__()
        self._task = task
        self._fail = fail
        # The fallback would pay a second call for each unreadable answer.
        self._proposals = _ProposalAdapter(use_json_adapter_fallback=False)

    def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        rollout = lm_kwargs.get("rollout_id", lm.kwargs.get("rollout_id")) or 0
        try:
            mine = self._task.owns(signature)
            token = _CALL.set(_Call(self._task.record_key(inputs) if mine else PROPOSAL_KEY, rollout))
            try:
                speak: Any = super().__call__ if mine else self._proposals
                return speak(lm, lm_kwargs, signature, demos, inputs)
            finally:
                _CALL.reset(token)
        except AdapterParseError:
            raise
        except Exception as error:  # noqa: BLE001 - DSPy would score it 0 and go on; it is a fault of ours
            self._fail(error)

    def format(self, signature: Any, demos: Any, inputs: Any) -> Any:
        messages = self._task.prompt(signature.instructions, demos).render(self._task.row(inputs))
        if (call := _CALL.get()) is not None:
            call.messages = messages
        return messages

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        call = _CALL.get()
        ended = call.completion.finish_reason if call and call.completion else "stop"
        checked = check(completion, ended, self._task.schema)
        if isinstance(checked, Invalid):
            raise AdapterParseError("RowAdapter", signature, completion, checked.reason)
        return self._task.parsed(checked.output)


class _ProposalAdapter(dspy.ChatAdapter):
    """DSPy's chat format, forgiving: where a small model drops the field markers, its text is the first field."""

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        try:
            return super().parse(signature, completion)
        except AdapterParseError as error:
            if any(f.annotation is not str for f in signature.output_fields.values()):
                raise
            found: dict[str, Any] = dict(cast(Any, error.parsed_result) or {})
            first = next(iter(signature.output_fields))
            found.setdefault(first, re.sub(r"\[\[ ## \w+ ## \]\]", "", completion).strip())
            return {name: found.get(name, "") for name in signature.output_fields}


@contextmanager
def session(task: Task, engine: Engine, *, tier: Tier, threads: int, fail: Callable[[Exception], NoReturn]) -> Any:
    """DSPy set up for one search in this context only; yields its language model."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False, restrict_pickle=True)
    # The name is ours on purpose: DSPy treats names like gpt-5 or o3 specially.
    lm: Any = dspy.LM(
        "headrace", engine=engine, cache=False, num_retries=0, temperature=tier.temperature, max_tokens=PROPOSAL_TOKENS
    )
    # No ceiling on errors: the only one left is a row that cannot be answered, worth 0; all others `fail` at once.
    with dspy.context(
        lm=lm,
        adapter=RowAdapter(task, fail),
        trace=[],
        num_threads=threads,
        max_errors=sys.maxsize,
        disable_history=True,
        track_usage=False,
        warn_on_type_mismatch=False,
    ):
        yield lm
