"""Ways to choose a router's threshold: Headrace's, and what else is done."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import special

from benchmarks.router_populations import Drawn
from domain.certificates import Bound, Certificate, cheapest, grid_of, tune, tune_signals
from domain.confidences import FloatArray
from domain.losses import BETTING, EXACT, PAIRED, binomial_p, p_values
from domain.tallies import PairedRows, Tally, tally
from domain.thresholds import fixed_sequence

Choice = tuple[str, float] | None
"""The signal and its threshold; None: everything to the strong model."""
Method = Callable[[Drawn, str, Bound], Choice]
"""(rows, the signal to use where a method takes one, the bound) -> choice."""
STRONG_CALLS = 0.5


def headrace(drawn: Drawn, signal: str, bound: Bound) -> Choice:
    """What `headrace certify --signal` does."""
    rows = drawn.by(signal)
    verdict = tune(rows, bound, grid=grid_of(rows.confidence)).verdict
    return (signal, verdict.threshold) if isinstance(verdict, Certificate) else None


def headrace_all_signals(drawn: Drawn, signal: str, bound: Bound) -> Choice:
    """What `headrace certify` does: every signal at its share of delta, then the cheapest."""
    tuned = tune_signals(drawn.signals, drawn.rows, bound)
    verdict = tuned[name := cheapest(tuned)].verdict
    return (name, verdict.threshold) if isinstance(verdict, Certificate) else None


def _sequence(test: str) -> Method:
    def choose(drawn: Drawn, signal: str, bound: Bound) -> Choice:
        rows, grid, sums = _prepared(drawn, signal)
        found = p_values(rows, sums, grid, bound, test=test, level=bound.delta)
        return _last(signal, grid, fixed_sequence(found, bound.delta))

    return choose


def clt(drawn: Drawn, signal: str, bound: Bound) -> Choice:
    """The normal approximation in the place of an exact test."""
    _, grid, sums = _prepared(drawn, signal)
    error = np.sqrt(np.maximum(sums.loss_squared / sums.n - sums.gap**2, 0) / sums.n)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(error > 0, special.ndtr((sums.gap - bound.eps) / error), (sums.gap > bound.eps) * 1.0)
    return _last(signal, grid, fixed_sequence(found, bound.delta))


def holm(drawn: Drawn, signal: str, bound: Bound) -> Choice:
    """Binomial tests of every threshold, Holm's correction, the lowest threshold that is left."""
    _, grid, sums = _prepared(drawn, signal)
    found = binomial_p(sums.worse, sums.n, bound.eps)
    order = np.argsort(found, kind="stable")
    steps = fixed_sequence(found[order] * (len(grid) - np.arange(len(grid))), bound.delta)
    rejected = order[steps]
    return (signal, float(grid[rejected].min())) if len(rejected) else None


def best_empirical(drawn: Drawn, signal: str, bound: Bound) -> Choice:
    """The lowest threshold that looks good enough."""
    _, grid, sums = _prepared(drawn, signal)
    fitting = grid[sums.gap <= bound.eps]
    return (signal, float(fitting.min())) if len(fitting) else None


def conformal_risk_control(drawn: Drawn, signal: str, bound: Bound) -> Choice:
    """The lowest threshold with (sum of losses + 1)/(n + 1) <= eps, gains not counted: an expectation is bounded."""
    rows, grid, _ = _prepared(drawn, signal)
    losses = tally(PairedRows(rows.confidence, np.minimum(rows.cheap, rows.strong), *_others(rows)), grid).loss
    return _last(signal, grid, fixed_sequence((losses + 1) / (len(rows) + 1), bound.eps))


def fixed_quantile(drawn: Drawn, signal: str, bound: Bound) -> Choice:
    """A fixed share of strong calls, as RouteLLM calibrates its routers."""
    return signal, float(np.quantile(drawn.signals[signal], STRONG_CALLS, method="inverted_cdf"))


def _others(rows: PairedRows) -> tuple[FloatArray, FloatArray, FloatArray]:
    return rows.strong, rows.cheap_usd, rows.strong_usd


def _prepared(drawn: Drawn, signal: str) -> tuple[PairedRows, FloatArray, Tally]:
    rows = drawn.by(signal)
    grid = grid_of(rows.confidence)
    return rows, grid, tally(rows, grid)


def _last(signal: str, grid: FloatArray, passed: npt.NDArray[np.bool_]) -> Choice:
    return (signal, float(grid[passed.sum() - 1])) if passed.any() else None


def saving(choice: Choice, drawn: Drawn) -> Choice:
    """The choice, where it costs less than always-strong on the rows drawn; else None, whoever chose."""
    if choice is None:
        return None
    kept = drawn.signals[choice[0]] >= choice[1]
    return choice if drawn.rows.cheap_usd.sum() < drawn.rows.strong_usd[kept].sum() else None


METHODS: dict[str, Method] = {
    "Headrace": headrace,
    "Headrace, all signals at delta/m": headrace_all_signals,
    "paired alone (0/1 only)": _sequence(PAIRED),
    "betting alone": _sequence(BETTING),
    "binomial alone (0/1 only)": _sequence(EXACT),
    "CLT + fixed sequence": clt,
    "Holm over the grid (0/1 only)": holm,
    "conformal risk control": conformal_risk_control,
    "best empirical": best_empirical,
    "50 % strong calls (RouteLLM)": fixed_quantile,
}
