"""Answers: what a completion is worth once schema, calibration and confidence have spoken."""

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import JsonValue, ValidationError

from domain.confidences import LabelPrior, decide
from domain.requests import Completion
from domain.schemas import Invalid, OutputSchema, check


@dataclass(frozen=True, slots=True)
class Answer:
    """One tier's answer to one row; `output` is None when it stayed invalid, and then `reason` says why."""

    output: dict[str, JsonValue] | None
    confidence: float | None
    reason: str | None = None

    @property
    def valid(self) -> bool:
        """Whether the answer satisfies the schema."""
        return self.output is not None


def settle(completion: Completion, schema: OutputSchema, prior: LabelPrior) -> Answer:
    """Validate a completion and let the calibrated label decide the decisive field.

    A label whose value would break the user's own validators is not forced: the decoded answer stays,
    and its confidence is that of a row nobody is sure of (None, always escalated).
    """
    checked = check(completion.text, completion.finish_reason, schema)
    if isinstance(checked, Invalid):
        return Answer(output=None, confidence=None, reason=f"{checked.kind}: {checked.reason}")
    logprobs = completion.label_logprobs.get(schema.decisive)
    if logprobs is None:
        return Answer(output=checked.output, confidence=None, reason="no log-probabilities for the decisive field")
    decision = decide(logprobs, prior)
    if decision.label == checked.output.get(schema.decisive):
        return Answer(output=checked.output, confidence=decision.confidence)
    corrected = {**checked.output, schema.decisive: decision.label}
    try:
        schema.model.model_validate(corrected)
    except ValidationError:
        return Answer(output=checked.output, confidence=None, reason="the calibrated label breaks a validator")
    return Answer(output=corrected, confidence=decision.confidence)


def fit_prior(completions: Iterable[Completion], schema: OutputSchema) -> LabelPrior:
    """The label prior from a tier's answers to unlabelled rows; answers without log-probabilities do not count."""
    read = [c.label_logprobs[schema.decisive] for c in completions if schema.decisive in c.label_logprobs]
    return LabelPrior.of(read, schema.labels)
