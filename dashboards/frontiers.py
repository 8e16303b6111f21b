"""Frontiers: what every threshold costs and keeps on a run's rows, tested exactly as the run tested them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from dashboards import queries
from dashboards.queries import Row as Found
from domain.certificates import Bound, Certificate, Tuned, Use, grid_of, tune
from domain.comparisons import Difference
from domain.confidences import FloatArray
from domain.datasets import Split
from domain.figures import Row, figures_of, loss_of, paired_rows, routed
from domain.intervals import Interval, gap_interval, mean_interval
from domain.outcomes import TierAnswer
from domain.prompts import PromptVersion
from domain.routers import Routing
from domain.scores import Estimate, estimate
from domain.tallies import PairedRows, tally
from domain.thresholds import tuning_share
from domain.verdicts import CurvePoint
from domain.workloads import SignalName, Target

MOST = 20_000
"""Rows of each split that are looked at. Keys are hashes, so that the first of them are a sample drawn at random."""
STEP, LARGEST = 0.001, 500
"""Steps in which a loss that would do is looked for, and how many of them at most."""
HARDEST, FURTHER = 8, 20
"""Thresholds that are tested while it is looked for: those that lose most, in sum and in rows made worse. The whole
curve is tested at the end, for so many steps further should one of the others have failed."""
ROWS = """
WITH chosen AS MATERIALIZED (
    SELECT key FROM router_keys WHERE run_id = :run AND split = :split ORDER BY key LIMIT :most
)
SELECT key, split, label, cheap_valid, strong_valid, confidence, signals, signal_usd, cheap_usd, strong_usd,
       cheap_tokens, strong_tokens, cheap_quality, strong_quality{inputs}
FROM router_rows INNER JOIN chosen USING (key) WHERE run_id = :run AND split = :split ORDER BY key
"""


@dataclass(frozen=True, slots=True)
class Frontier:
    """The rows of a run as a router reads them, and every threshold tested on its calibration rows.

    `use` says which use of these rows the tests count as, `declared` how many signals shared delta. A signal that
    was not declared does not count: whatever its tests say, nothing is certified by it.
    """

    calibration: list[Row]
    test: list[Row]
    pairs: PairedRows
    target: Target
    tuned: Tuned
    use: Use
    declared: int
    counts: bool = True

    @property
    def level(self) -> float:
        """The level at which each threshold was tested."""
        return self.target.delta * self.use.share / self.declared

    def certified(self, place: int) -> bool:
        """Whether the threshold at this place of the curve keeps the promise, proven, at a saving."""
        point = self.tuned.curve[place]
        return self.counts and point.passed and point.cost < self.tuned.strong.cost


@dataclass(frozen=True, slots=True)
class Point:
    """One threshold on the calibration rows and on the test rows; intervals are two-sided at 95 %, USD per row."""

    seen: CurvePoint
    n: int
    quality: Estimate
    gap_interval: Interval
    cost_interval: Interval | None
    tested: Estimate
    test_loss: Difference
    test_usd: float
    test_cost_interval: Interval | None
    test_escalated: float


def load_rows(run_id: str, prompt: PromptVersion, *, decisive: str, with_inputs: bool) -> dict[Split, list[Row]]:
    """The judged rows of a run, at most MOST of a split; lengths are 0 where no router looks at them."""
    query = ROWS.format(inputs=", inputs" if with_inputs else "")
    found = {split: queries.rows(query, run=run_id, split=split.value, most=MOST) for split in JUDGED}
    return {split: [_row(row, prompt, decisive) for row in rows] for split, rows in found.items()}


JUDGED = (Split.CALIBRATION, Split.TEST)


def _row(found: Found, prompt: PromptVersion, decisive: str) -> Row:
    cheap = TierAnswer(
        {decisive: found["label"]} if found["cheap_valid"] else None,
        found["confidence"],
        tokens=found["cheap_tokens"],
        usd=found["cheap_usd"],
        failed=None,
        signals=found["signals"] or {},
        signal_usd=found["signal_usd"] or {},
    )
    strong = TierAnswer(
        {} if found["strong_valid"] else None, None, tokens=found["strong_tokens"], usd=found["strong_usd"], failed=None
    )
    chars = len(prompt.question(found["inputs"])["content"]) if "inputs" in found else 0
    split = Split(found["split"])
    return Row(found["key"], split, cheap, strong, found["cheap_quality"], found["strong_quality"], chars=chars)


def looks_at_length(routing: Routing) -> bool:
    """Whether a router needs to know how long a row's message is."""
    return routing.straight_from is not None or (routing.score is not None and routing.signal is SignalName.REGRET)


def frontier(
    rows: Mapping[Split, Sequence[Row]],
    routing: Routing,
    target: Target,
    *,
    decisive: str,
    declared: int,
    use: Use,
    counts: bool,
) -> Frontier:
    """Test every threshold of the signal's grid, as a tuning with these terms does."""
    read = {split: routed(rows[split], routing, decisive=decisive) for split in JUDGED}
    calibration = read[Split.CALIBRATION]
    pairs = paired_rows(calibration)
    grid = grid_of(pairs.confidence)
    tuned = tune(pairs, target, grid=grid, signal=routing.signal.value, declared=declared, use=use)
    return Frontier(calibration, read[Split.TEST], pairs, target, tuned, use, declared, counts)


def point_of(found: Frontier, place: int) -> Point:
    """Look closely at one threshold."""
    seen = found.tuned.curve[place]
    sums = tally(found.pairs, np.array([seen.threshold], dtype=np.float64))
    kept = found.pairs.confidence >= seen.threshold
    tested = figures_of(found.test, seen.threshold)
    spent = tally(paired_rows(found.test), np.array([seen.threshold], dtype=np.float64))
    return Point(
        seen=seen,
        n=sums.n,
        quality=estimate(np.where(kept, found.pairs.cheap, found.pairs.strong)),
        gap_interval=gap_interval(float(sums.loss[0]), float(sums.loss_squared[0]), sums.n),
        cost_interval=mean_interval(float(sums.usd[0]), float(sums.usd_squared[0]), sums.n),
        tested=tested.cascade,
        test_loss=loss_of(found.test, seen.threshold, found.target),
        test_usd=tested.cascade_usd,
        test_cost_interval=mean_interval(float(spent.usd[0]), float(spent.usd_squared[0]), spent.n),
        test_escalated=tested.escalation_rate,
    )


def of_threshold(found: Frontier, threshold: float) -> tuple[float, float]:
    """Cost (USD per row) and quality of any threshold on the calibration rows, whether or not it is in the curve."""
    sums = tally(found.pairs, np.array([threshold], dtype=np.float64))
    return float(sums.cost[0]), (sums.strong - float(sums.loss[0])) / sums.n


def test_curve(found: Frontier) -> list[tuple[float, float]]:
    """Cost (USD per row) and quality of every threshold of the curve on the test rows."""
    if not found.test or not found.tuned.curve:
        return []
    sums = tally(paired_rows(found.test), np.array([point.threshold for point in found.tuned.curve], dtype=np.float64))
    qualities = (sums.strong - sums.loss) / sums.n
    return [(float(cost), float(quality)) for cost, quality in zip(sums.cost, qualities, strict=True)]


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows whose confidences lie between two others: how many, their mean confidence, how often the cheap answer is
    right there."""

    low: float
    high: float
    confidence: float
    right: Estimate


def reliability(found: Frontier, bins: int = 10) -> list[Bin]:
    """The calibration rows in up to so many bins of about equally many rows, by confidence; rows without one are left
    out. Equal confidences stay together."""
    known = np.isfinite(found.pairs.confidence)
    confidence, quality = found.pairs.confidence[known], found.pairs.cheap[known]
    if not len(confidence):
        return []
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1), method="inverted_cdf"))
    place = np.clip(np.searchsorted(edges, confidence, side="left"), 1, max(1, len(edges) - 1))
    return [_bin(confidence[place == i], quality[place == i]) for i in np.unique(place)]


def _bin(confidence: FloatArray, quality: FloatArray) -> Bin:
    return Bin(float(confidence.min()), float(confidence.max()), float(confidence.mean()), estimate(quality))


def asked_for(found: Frontier, place: int, *, uses: int) -> tuple[float, Certificate] | None:
    """The smallest loss allowed, in steps of .001, at which another tuning on these rows chooses this threshold or a
    lower one, and what it then certifies; None where none below one half does.

    `uses` is how often the rows were used before: the next tuning has what is left of delta.
    """
    curve = found.tuned.curve
    wanted, use = curve[place].threshold, Use(uses + 1, tuning_share(found.target.spend, uses + 1))
    by_gap = sorted(curve[: place + 1], key=lambda point: point.gap)[-HARDEST:]
    by_worse = sorted(curve[: place + 1], key=lambda point: point.worse)[-HARDEST:]
    hard = sorted({wanted, *(point.threshold for point in (*by_gap, *by_worse))}, reverse=True)
    low, high = 0, LARGEST
    while high - low > 1:
        middle = (low + high) // 2
        made = _tuned_with(found, hard, middle * STEP, use)
        low, high = (low, middle) if made is not None and made.threshold <= wanted else (middle, high)
    for eps in range(high, min(high + FURTHER, LARGEST)):
        made = _tuned_with(found, [point.threshold for point in curve], eps * STEP, use)
        if made is not None and made.threshold <= wanted:
            return eps * STEP, made
    return None


def _tuned_with(found: Frontier, thresholds: Sequence[float], eps: float, use: Use) -> Certificate | None:
    goal, grid = Bound(found.target.kind, eps, found.target.delta), np.array(thresholds, dtype=np.float64)
    verdict = tune(found.pairs, goal, grid=grid, declared=found.declared, use=use).verdict
    return cast(Certificate, verdict) if verdict.certified else None
