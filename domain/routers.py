"""Routers: how a row's confidence is read, and which rows the cheap tier is not asked about."""

from pydantic import BaseModel, ConfigDict, Field

from domain.workloads import SignalName


def _absent(value: object) -> bool:
    return value is None


class Routing(BaseModel):
    """Part of a bundle: the signal that is the confidence, and the length from which the cheap tier is not asked."""

    model_config = ConfigDict(frozen=True)

    signal: SignalName = SignalName.MARGIN
    straight_from: int | None = Field(
        default=None,
        exclude_if=_absent,
        description="Characters of the row's message; longer ones skip the cheap tier.",
    )


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
