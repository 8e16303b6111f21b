"""Signals: what an answer's confidence can be read from, each in [0, 1], and how well each tells right from wrong."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from domain.answers import Answer
from domain.confidences import Decision, FloatArray, LabelPrior, aurc, auroc
from domain.prompts import Message
from domain.requests import Completion, Frame, Request
from domain.schemas import OutputSchema, Valid, check
from domain.workloads import Router, SignalName, TierName

FREE = (
    SignalName.MARGIN,
    SignalName.PROBABILITY,
    SignalName.ENTROPY,
    SignalName.MINIMUM,
    SignalName.ALLOWED_MASS,
    SignalName.JOINT,
    SignalName.WORST_FIELD,
)
"""Read from the answer itself."""
PAID = (SignalName.SELF_CONSISTENCY, SignalName.P_TRUE)
"""Read from further answers, which cost calls of their own."""

TRUE, FALSE = "true", "false"
VERDICT = "right"
TRUTH_TOKENS = 24
"""Tokens that the answer to the question below may take."""
QUESTION = f"Is this answer right? Answer in JSON with {VERDICT}; {VERDICT} is one of {TRUE}, {FALSE}."


def asked_signals(router: Router, tier: TierName) -> tuple[SignalName, ...]:
    """What is to be known of a tier's answers while a router is tuned: of the cheap tier all that is free, which the
    learned signals are fitted on, and what the router declares of the rest; of the strong tier nothing."""
    if tier is not TierName.CHEAP:
        return ()
    return (*FREE, *(name for name in PAID if name in router.signals))


def free_signals(
    completion: Completion, schema: OutputSchema, prior: LabelPrior, decision: Decision
) -> dict[SignalName, float]:
    """The signals that a completion settled with this decision holds; what cannot be computed is left out.

    The decoded value's tokens say nothing of a label that calibration put in its place: then there is no `min-token`.
    """
    found: dict[SignalName, float] = {SignalName.MARGIN: decision.confidence}
    logprobs = completion.label_logprobs.get(schema.decisive)
    if logprobs is not None and len(logprobs) > 1:
        calibrated = prior.apply(logprobs)
        found[SignalName.PROBABILITY] = calibrated[decision.label]
        found[SignalName.ENTROPY] = 1 - _entropy(calibrated.values()) / math.log(len(calibrated))
    written = _written(completion)
    reading = (completion.readings or {}).get(schema.decisive)
    if reading is not None:
        if written.get(schema.decisive) == decision.label:
            found[SignalName.MINIMUM] = math.exp(reading.least)
        if reading.allowed is not None:
            found[SignalName.ALLOWED_MASS] = reading.allowed
    fields = _field_logprobs(completion, {**written, schema.decisive: decision.label})
    if fields:
        found[SignalName.JOINT] = math.exp(math.fsum(fields))
        found[SignalName.WORST_FIELD] = math.exp(min(fields))
    return {name: min(max(value, 0.0), 1.0) for name, value in found.items()}


def _entropy(chances: Iterable[float]) -> float:
    """Nats."""
    return -math.fsum(p * math.log(p) for p in chances if p > 0)


def _written(completion: Completion) -> dict[str, JsonValue]:
    """The answer as the model wrote it."""
    try:
        said = json.loads(completion.text)
    except ValueError:
        return {}
    return cast(dict[str, JsonValue], said) if isinstance(said, dict) else {}


def _field_logprobs(completion: Completion, answer: Mapping[str, JsonValue]) -> list[float] | None:
    """The log-probability of each field: of a closed one the label's among the labels, of an open one its tokens' sum.

    Objects and lists are passed over. None when one of the other fields has no log-probability.
    """
    readings, found = completion.readings or {}, list[float]()
    for field, value in answer.items():
        if isinstance(value, dict | list):
            continue
        labels = completion.label_logprobs.get(field)
        if labels is not None and isinstance(value, str) and value in labels:
            found.append(labels[value])
        elif field in readings:
            found.append(readings[field].logprob)
        else:
            return None
    return found


def sample_frames(frame: Frame, router: Router) -> tuple[Frame, ...]:
    """What the requests of the further answers have in common: the row's own, at the router's temperature, each with
    a seed of its own; nobody looks at their log-probabilities."""
    body = {name: value for name, value in frame.body.items() if name not in ("logprobs", "top_logprobs")}
    seed = body.get("seed")
    first = seed if isinstance(seed, int) else 0
    return tuple(
        Frame({**body, "temperature": router.temperature, "seed": first + number}, frame.revision)
        for number in range(1, router.samples + 1)
    )


def truth_request(request: Request, answer: str) -> Request:
    """The question whether an answer, given as text, is right: asked of the tier that gave it, behind the row's own
    messages."""
    frame = request.frame
    said = Message(role="assistant", content=answer)
    messages = [*cast(list[JsonValue], frame.body["messages"]), cast(JsonValue, request.last), cast(JsonValue, said)]
    schema: dict[str, JsonValue] = {
        "type": "object",
        "properties": {VERDICT: {"type": "string", "enum": [TRUE, FALSE]}},
        "required": [VERDICT],
        "additionalProperties": False,
    }
    asked: dict[str, JsonValue] = {
        "messages": messages,
        "temperature": 0.0,
        "max_tokens": TRUTH_TOKENS,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "Verdict", "schema": schema, "strict": True},
        },
    }
    return Request(Frame(frame.body | asked, frame.revision), Message(role="user", content=QUESTION))


def asks_further(completion: Completion, answer: Answer, schema: OutputSchema) -> bool:
    """Whether further answers can say anything of this one: not of one that failed, nor of one whose label calibration
    would have changed into what the schema forbids, which always escalates."""
    return answer.valid and (answer.confidence is not None or schema.decisive not in completion.label_logprobs)


def consistency(samples: Sequence[Completion], label: JsonValue, schema: OutputSchema) -> float | None:
    """The share of further answers with this decisive label as they were written; an invalid one disagrees."""
    checked = [check(sample.text, sample.finish_reason, schema) for sample in samples]
    agreeing = [isinstance(c, Valid) and c.output.get(schema.decisive) == label for c in checked]
    return sum(agreeing) / len(agreeing) if agreeing else None


def truth(verdict: Completion) -> float | None:
    """P(true) of the two words; None where the server gave no log-probabilities."""
    chances = verdict.label_logprobs.get(VERDICT)
    return None if chances is None else min(math.exp(chances[TRUE]), 1.0)


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a signal tells right from wrong, and what it costs by itself in USD a row."""

    auroc: float | None
    aurc: float | None
    usd_per_row: float


def qualities(
    signals: Mapping[SignalName, FloatArray],
    quality: FloatArray,
    *,
    usd: Mapping[SignalName, FloatArray],
) -> dict[SignalName, Quality]:
    """Each signal's figures; a row without it has -inf or NaN there. A row is right when its quality is 1 (AUROC), and
    its loss is 1 - quality (AURC). `usd` are what each row paid for a signal's own calls."""
    right: npt.NDArray[np.bool_] = quality >= 1.0
    found: dict[SignalName, Quality] = {}
    for name, values in signals.items():
        known = np.where(np.isnan(values), -np.inf, values)
        paid = usd.get(name)
        price = float(paid.mean()) if paid is not None and len(paid) else 0.0
        found[name] = Quality(auroc(known, right), aurc(known, 1.0 - quality), price)
    return found
