"""Verdicts: what a certificate says, what is said where there is none, and the curve behind both."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from domain.intervals import Interval

Kind = Literal["absolute", "relative", "agreement"]


class CurvePoint(BaseModel):
    """What one threshold does on the calibration rows; costs are USD per row."""

    model_config = ConfigDict(frozen=True)

    threshold: float
    kept: float
    quality: float
    gap: float
    worse: int
    better: int
    cost: float
    p_value: float
    passed: bool


class _Verdict(BaseModel):
    """What both verdicts share; costs are USD per row, intervals two-sided at 95 %.

    `declared` signals share what the `tuning`-th use of the rows takes of delta; each is tested at `level`.
    `effective_n` counts rows with the same inputs as fewer (Kish). Fields with a default came later than the first
    verdicts. One that a stored verdict lacks is not written either, so that the hash of its bundle stays what it was.
    """

    model_config = ConfigDict(frozen=True)

    signal: str | None = None
    declared: int = 1
    tuning: int = 1
    effective_n: float | None = None
    level: float | None = None
    grid_hash: str = ""
    cost_interval: Interval | None = None

    @model_serializer(mode="wrap")
    def _as_it_was(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        later = type(self).model_fields.keys() - self.model_fields_set - {"certified"}
        return {name: value for name, value in dump(self).items() if name not in later}


class Certificate(_Verdict):
    """A promise, and everything needed to check it."""

    certified: Literal[True] = True
    kind: Kind
    threshold: float
    eps: float
    delta: float
    n: int
    test: str
    p_value: float
    gap: float
    worse: int
    better: int
    cost: float
    cost_all_strong: float
    grid: tuple[float, ...]
    promise: str
    gap_interval: Interval | None = None


class NotCertified(_Verdict):
    """No threshold could be certified at a saving: everything goes to the strong tier, at its cost.

    The p-value is that of the most cautious threshold.
    """

    certified: Literal[False] = False
    kind: Kind
    eps: float
    delta: float
    n: int
    test: str
    reason: str
    rows_needed: int | None
    p_value: float | None = None
    cost: float | None = None
