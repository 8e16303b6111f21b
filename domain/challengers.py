"""Challengers by hand: a certified bundle with another of the thresholds that its certificate's rows prove."""

import math

import numpy as np

from domain.bundles import Bundle
from domain.certificates import Bound, Certificate, CurvePoint, Tuned, Use, tune
from domain.confidences import FloatArray
from domain.errors import PromotionRefused
from domain.intervals import gap_interval, mean_interval
from domain.tallies import PairedRows, saves, tally

SAME = 1e-9
"""Relative difference up to which a figure that was computed again is the same."""
NOTHING = 1e-15
"""Two losses below this are the same: where rows made better and worse cancel, a sum may leave a rounding behind."""


def at_threshold(bundle: Bundle, rows: PairedRows, threshold: float) -> Bundle:
    """The bundle with this threshold, and its certificate for it; `rows` are those that it was certified on.

    Fixed-sequence testing bounds the chance that any threshold that passed breaks the promise (Learn then Test, arXiv
    2110.01052), so that one of them may be chosen for whatever reason, and nothing of delta is spent.
    Raises PromotionRefused for any other threshold, for a bundle that is not certified, and for other rows.
    """
    made = bundle.certificate
    if not isinstance(made, Certificate):
        raise PromotionRefused(
            f"the bundle {bundle.hash[:12]} is not certified: none of its thresholds is proven.",
            hint=f"`headrace bundle show {bundle.hash[:12]}` says what is missing.",
        )
    found = _again(made, rows)
    _require_same(bundle, made, found)
    proven = {point.threshold: point for point in found.curve if point.passed and _is_saved(point.cost, found)}
    if threshold not in proven:
        raise PromotionRefused(
            f"threshold {threshold!r} is none of those that are proven to keep the promise at a saving.",
            hint=f"{len(proven)} are, from {min(proven)!r} to {max(proven)!r}; the dashboard's page Router shows each.",
        )
    certificate = made.model_copy(update=_said(made, rows, proven[threshold]))
    return bundle.model_copy(update={"threshold": threshold, "certificate": certificate})


def _again(made: Certificate, rows: PairedRows) -> Tuned:
    """The certificate's own tests, at its own level."""
    share = 1.0 if made.level is None else made.level * made.declared / made.delta
    goal, use = Bound(made.kind, made.eps, made.delta), Use(made.tuning, share)
    return tune(rows, goal, grid=_grid(made), signal=made.signal, declared=made.declared, use=use)


def _said(made: Certificate, rows: PairedRows, point: CurvePoint) -> dict[str, object]:
    """What a certificate says of its threshold; all else it says of the rows and of the terms."""
    sums, i = tally(rows, _grid(made)), made.grid.index(point.threshold)
    return {
        **{name: getattr(point, name) for name in ("threshold", "p_value", "gap", "worse", "better", "cost")},
        "gap_interval": gap_interval(float(sums.loss[i]), float(sums.loss_squared[i]), sums.n),
        "cost_interval": mean_interval(float(sums.usd[i]), float(sums.usd_squared[i]), sums.n),
    }


def _grid(made: Certificate) -> FloatArray:
    return np.array(made.grid, dtype=np.float64)


def _is_saved(cost: float, found: Tuned) -> bool:
    return bool(saves(np.array([cost]), found.strong.cost)[0])


def _require_same(bundle: Bundle, made: Certificate, found: Tuned) -> None:
    """Raises PromotionRefused when the rows do not give the certificate again, in every figure."""
    point = next((p for p in found.curve if p.threshold == made.threshold and p.passed), None)
    if point is None or found.verdict.n != made.n or not _is_said(made, point):
        seen = f"p = {point.p_value:.3g}, loss {point.gap:.3g}, ${point.cost:.3g} a row" if point else "no proof"
        raise PromotionRefused(
            f"the ledger's rows do not give the certificate of {bundle.hash[:12]} again: {found.verdict.n} rows, "
            f"{seen} instead of {made.n} rows, p = {made.p_value:.3g}, loss {made.gap:.3g}, ${made.cost:.3g} a row.",
            hint=f"Tune anew: `headrace run {bundle.workload} --scope retune --no-route`.",
        )


def _is_said(made: Certificate, point: CurvePoint) -> bool:
    """Whether a certificate says this of its threshold. The p-value alone is no proof of the same rows: that of the
    paired test has a least value."""
    pairs = ((made.p_value, point.p_value), (made.gap, point.gap), (made.cost, point.cost))
    counted = (made.worse, made.better) == (point.worse, point.better)
    return counted and all(math.isclose(old, new, rel_tol=SAME, abs_tol=NOTHING) for old, new in pairs)
