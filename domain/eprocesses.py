"""E-processes: evidence against a promise that may be looked at after every row, and goes on from audit to audit.

All work on one value a row, in an order that knows nothing of the values, and keep their state as a few numbers.

- E-process: a gambler who bets the fixed shares `STAKES` of the most that may be bet against "the mean is at most the
  bound". While that is true, the chance that the wealth ever reaches 1/alpha is at most alpha (Ville's inequality).
- E-detector (Shiryaev-Roberts, arXiv 2203.03532): a new gambler begins before every row, and their wealth is summed. It
  sees a change that comes late, when the first gambler has lost nearly everything. While the bound holds, a false alarm
  at M comes after at least M rows on average.
- Confidence sequence: an interval of the mean that holds at all times at once, by the predictable plug-in empirical
  Bernstein bound (Waudby-Smith and Ramdas, arXiv 2010.09686).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

STAKES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Shares of the most that may be bet without going broke; the wealth is the mean over them."""
DETECTOR_ALARM = 1e4
"""Rows before a false alarm of an e-detector, on average and at least."""
CEILING = 1e300
"""Wealth is not counted beyond: far behind any alarm, and JSON has no word for infinity."""
SEQUENCE_ALPHA = 0.05
_NONE = (0.0,) * len(STAKES)
_LOG_STAKES = math.log(len(STAKES))


class _State(BaseModel):
    model_config = ConfigDict(frozen=True)


@dataclass(frozen=True, slots=True)
class Game:
    """What is bet against: "the mean of values in [low, high] is at most the bound"."""

    low: float
    high: float
    bound: float

    def wagers(self) -> tuple[float, ...]:
        """The stakes in units of wealth a unit of value: 1/(1 + eps) of them for losses from -1 on."""
        return tuple(stake / (self.bound - self.low) for stake in STAKES)


class Evidence(_State):
    """State of e-process, e-detector and confidence sequence after n values; JSON gives every number back as it was."""

    n: int = 0
    total: float = 0.0
    log_wealth: tuple[float, ...] = _NONE
    peak: float = 0.0
    crossed: int | None = None
    detector: tuple[float, ...] = _NONE
    detector_peak: float = 0.0
    detector_crossed: int | None = None
    deviation: float = 0.0
    weight: float = 0.0
    weighted: float = 0.0
    spread: float = 0.0

    @property
    def mean(self) -> float | None:
        """The mean value; None without any."""
        return self.total / self.n if self.n else None


def gather(before: Evidence, values: Iterable[float], game: Game, *, alpha: float) -> Evidence:
    """Go on with more values. In pieces or at once, the same values in the same order give the same state, bit for bit.

    `crossed` and `detector_crossed` are the rows until the alarm; both stand once they are there. Raises ValueError for
    a value outside of the game's range.
    """
    wagers, bar = game.wagers(), math.log(1 / alpha)
    n, wealth, detector = before.n, list(before.log_wealth), list(before.detector)
    total, peak, top = before.total, before.peak, before.detector_peak
    crossed, found = before.crossed, before.detector_crossed
    sequence = _Sequence(before, game)
    for value in values:
        if not game.low <= value <= game.high:
            raise ValueError(f"{value} is not in [{game.low}, {game.high}]")
        sequence.add(value, n)
        n, total = n + 1, total + value
        for i, wager in enumerate(wagers):
            factor = 1 + wager * (value - game.bound)
            wealth[i] += math.log(factor)
            detector[i] = min((detector[i] + 1) * factor, CEILING)
        peak = max(peak, log_mean(wealth))
        top = max(top, sum(detector) / len(detector))
        crossed = n if crossed is None and peak >= bar else crossed
        found = n if found is None and top >= DETECTOR_ALARM else found
    return Evidence(
        n=n,
        total=total,
        log_wealth=tuple(wealth),
        peak=peak,
        crossed=crossed,
        detector=tuple(detector),
        detector_peak=top,
        detector_crossed=found,
        deviation=sequence.deviation,
        weight=sequence.weight,
        weighted=sequence.weighted,
        spread=sequence.spread,
    )


def log_mean(logs: Sequence[float]) -> float:
    """The logarithm of the mean of values given by their logarithms."""
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs)) - _LOG_STAKES


class _Sequence:
    """The sums of the confidence sequence; values are scaled to [0, 1], and each weight is set before its value."""

    def __init__(self, before: Evidence, game: Game) -> None:
        self.low, self.width = game.low, game.high - game.low
        self.total = before.total
        self.deviation, self.weight = before.deviation, before.weight
        self.weighted, self.spread = before.weighted, before.spread

    def add(self, value: float, n: int) -> None:
        """Take the value number n + 1."""
        # From the unscaled total each time: a sum of scaled values would depend on where an audit ended.
        x, guess = (value - self.low) / self.width, (0.5 + self._scaled(n)) / (n + 1)
        variance, t = (0.25 + self.deviation) / (n + 1), n + 1
        weight = min(0.5, math.sqrt(2 * math.log(2 / SEQUENCE_ALPHA) / (variance * t * math.log(1 + t))))
        self.weight += weight
        self.weighted += weight * x
        self.spread += (x - guess) ** 2 * (-math.log1p(-weight) - weight)
        self.total += value
        self.deviation += (x - (0.5 + self._scaled(t)) / (t + 1)) ** 2

    def _scaled(self, n: int) -> float:
        return (self.total - n * self.low) / self.width


def interval(found: Evidence, game: Game) -> tuple[float, float]:
    """The confidence sequence as it stands: the mean, at 95 % for all rows at once; the whole range without any row."""
    if not found.n:
        return game.low, game.high
    centre, half = found.weighted / found.weight, (math.log(2 / SEQUENCE_ALPHA) + found.spread) / found.weight
    width = game.high - game.low
    return game.low + width * max(0.0, centre - half), game.low + width * min(1.0, centre + half)


class Rates(_State):
    """State of the two-sided e-detector of a share: gamblers on "it is more" and on "it is less"."""

    n: int = 0
    count: int = 0
    more: tuple[float, ...] = _NONE
    less: tuple[float, ...] = _NONE
    peak: float = 0.0
    crossed: int | None = None


def watch_rate(before: Rates, happened: Iterable[bool], band: tuple[float, float]) -> Rates:
    """Go on with more rows; a false alarm comes after at least DETECTOR_ALARM rows on average while the share lies
    inside the band."""
    low, high = band
    ups = [(1 - stake, 1 + stake * (1 - high) / high) for stake in STAKES] if high > 0 else []
    downs = [(1 + stake * low / (1 - low), 1 - stake) for stake in STAKES] if low < 1 else []
    n, count, more, less = before.n, before.count, list(before.more), list(before.less)
    peak, crossed = before.peak, before.crossed
    for hit in happened:
        n, count = n + 1, count + hit
        for i, factors in enumerate(ups):
            more[i] = min((more[i] + 1) * factors[hit], CEILING)
        for i, factors in enumerate(downs):
            less[i] = min((less[i] + 1) * factors[hit], CEILING)
        peak = max(peak, (sum(more) + sum(less)) / (len(more) + len(less)))
        crossed = n if crossed is None and peak >= DETECTOR_ALARM else crossed
    return Rates(n=n, count=count, more=tuple(more), less=tuple(less), peak=peak, crossed=crossed)
