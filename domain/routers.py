"""Routers: how a row's confidence is read, and which rows the cheap tier is not asked about."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from domain.learned_scores import Features, IsotonicScore, LearnedScore
from domain.workloads import Router, SignalName


def _absent(value: object) -> bool:
    return value is None


class Routing(BaseModel):
    """Part of a bundle: the signal that is the confidence, and the length from which the cheap tier is not asked."""

    model_config = ConfigDict(frozen=True)

    signal: SignalName = SignalName.MARGIN
    score: LearnedScore | None = Field(default=None, exclude_if=_absent, description="What a learned signal is.")
    straight_from: int | None = Field(
        default=None,
        exclude_if=_absent,
        description="Characters of a row's message; longer ones skip the cheap tier.",
    )
    samples: int | None = Field(default=None, exclude_if=_absent, description="Further answers of self-consistency.")
    temperature: float | None = Field(default=None, exclude_if=_absent, description="Their sampling temperature.")

    @property
    def looked_at(self) -> tuple[SignalName, ...]:
        """The signals that have to be read from an answer; none for the margin, which every answer has."""
        if isinstance(self.score, IsotonicScore):
            return (self.score.signal,)
        if self.score is not None:
            return self.score.signals
        return () if self.signal is SignalName.MARGIN else (self.signal,)

    @property
    def router(self) -> Router:
        """How further answers are sampled."""
        given = {"samples": self.samples, "temperature": self.temperature}
        return Router.model_validate({name: value for name, value in given.items() if value is not None})

    def confidence(
        self, margin: float | None, signals: Mapping[str, float], *, label: str | None, chars: int
    ) -> float | None:
        """A valid answer's confidence, from its calibrated margin, the signals that were looked at, its decisive label
        and the characters of the row's message; None always escalates."""
        if self.score is not None:
            known = {SignalName(name): value for name, value in signals.items()}
            return self.score.confidence(Features("", known, label, chars))
        return margin if self.signal is SignalName.MARGIN else signals.get(self.signal)


MEANINGS = {
    SignalName.MARGIN: "the distance of the largest of these probabilities to the second",
    SignalName.PROBABILITY: "the largest of these probabilities",
    SignalName.ENTROPY: "1 minus the entropy of these probabilities over its largest possible value",
    SignalName.MINIMUM: "the probability of the least probable token of the decisive value, as the model wrote it",
    SignalName.ALLOWED_MASS: "the probability, before scaling, of all tokens with which an allowed value can begin",
    SignalName.JOINT: "the product over all fields of the probability of their values",
    SignalName.WORST_FIELD: "the probability of the value of the field that has the least",
    SignalName.SELF_CONSISTENCY: "the share of further answers, sampled at random, with the same decisive value",
    SignalName.P_TRUE: "the probability that the cheap model says its answer is right, when it is asked",
    SignalName.ISOTONIC: "a learned monotone map of the margin, for each decisive value its own",
    SignalName.REGRET: "a learned estimate of what the strong model would do better, for its price",
}
"""How each signal follows from the answer."""
