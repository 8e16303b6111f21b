"""What the router benchmark draws from: tables as fixed populations, and laws whose truth is known in closed form."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from domain.certificates import PairedRows
from domain.confidences import FloatArray
from infra.routing_tables import RoutingTable, read_table


@dataclass(frozen=True, slots=True)
class Drawn:
    """n rows, and each signal's confidences of them."""

    rows: PairedRows
    signals: Mapping[str, FloatArray]

    def by(self, signal: str) -> PairedRows:
        """The rows under one signal."""
        rows = self.rows
        return PairedRows(self.signals[signal], rows.cheap, rows.strong, rows.cheap_usd, rows.strong_usd)


class Population(Protocol):
    """Where rows come from, and the truth about every threshold."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def signals(self) -> tuple[str, ...]:
        """The confidences there are."""
        ...

    def draw(self, rng: np.random.Generator, n: int) -> Drawn:
        """n independent rows."""
        ...

    def truth(self, signal: str, thresholds: FloatArray) -> tuple[FloatArray, FloatArray]:
        """True gap, and cost as a share of always-strong, at each threshold."""
        ...

    def oracle(self, signal: str, eps: float) -> float:
        """The lowest cost, as a share of always-strong, whose true gap is within eps."""
        ...


class TablePopulation:
    """A table drawn from with replacement: what is true of it is known exactly."""

    def __init__(self, name: str, table: RoutingTable) -> None:
        self.name, self.signals = name, tuple(table.signals)
        self._table = table
        self._strong_usd = float(table.rows.strong_usd.mean())
        self._sums = {signal: self._sum_by(confidence) for signal, confidence in table.signals.items()}

    def _sum_by(self, confidence: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        rows, n = self._table.rows, len(self._table.rows)
        known = np.where(np.isnan(confidence), -np.inf, confidence)
        order = np.argsort(-known, kind="stable")
        lost = np.concatenate([[0.0], np.cumsum((rows.strong - rows.cheap)[order])]) / n
        spared = np.concatenate([[0.0], np.cumsum(rows.strong_usd[order])]) / n
        cost = (rows.cheap_usd.mean() + rows.strong_usd.mean() - spared) / self._strong_usd
        return np.sort(known), lost, cost

    def draw(self, rng: np.random.Generator, n: int) -> Drawn:
        """n rows with replacement."""
        rows = self._table.rows
        some = rng.integers(0, len(rows), n)
        columns = (rows.confidence, rows.cheap, rows.strong, rows.cheap_usd, rows.strong_usd)
        drawn = PairedRows(*(column[some] for column in columns))
        return Drawn(drawn, {name: confidence[some] for name, confidence in self._table.signals.items()})

    def truth(self, signal: str, thresholds: FloatArray) -> tuple[FloatArray, FloatArray]:
        """On the whole table."""
        known, lost, cost = self._sums[signal]
        kept = len(known) - np.searchsorted(known, thresholds, side="left")
        return lost[kept], cost[kept]

    def oracle(self, signal: str, eps: float) -> float:
        """Over every confidence that occurs."""
        thresholds = np.unique(self._sums[signal][0])
        gap, cost = self.truth(signal, thresholds[np.isfinite(thresholds)])
        return min(1.0, float(cost[gap <= eps].min(initial=1.0)))


@dataclass(frozen=True)
class KnownLaw:
    """Confidence uniform on (0, 1); the cheap model's mean quality is low + (high - low) times it, the strong's fixed.

    Graded: both qualities are beta distributed about these means. The gap at t is the integral of strong - cheap.
    """

    name: str
    graded: bool
    low: float = 0.45
    high: float = 0.98
    strong: float = 0.90
    usd: tuple[float, float] = (1.0, 20.0)
    signals: tuple[str, ...] = ("confidence",)

    def draw(self, rng: np.random.Generator, n: int) -> Drawn:
        """n fresh rows."""
        confidence = rng.random(n)
        mean = self.low + (self.high - self.low) * confidence
        if self.graded:
            cheap, strong = rng.beta(6 * mean, 6 * (1 - mean)), rng.beta(6 * self.strong, 6 * (1 - self.strong), n)
        else:
            cheap, strong = (rng.random(n) < mean), (rng.random(n) < self.strong)
        usd = (np.full(n, price) for price in self.usd)
        rows = PairedRows(confidence, cheap.astype(np.float64), strong.astype(np.float64), *usd)
        return Drawn(rows, {self.signals[0]: confidence})

    def truth(self, signal: str, thresholds: FloatArray) -> tuple[FloatArray, FloatArray]:
        """By the law."""
        t = np.clip(thresholds, 0, 1)
        gap = (self.strong - self.low) * (1 - t) - (self.high - self.low) * (1 - t**2) / 2
        return gap, (self.usd[0] + t * self.usd[1]) / self.usd[1]

    def oracle(self, signal: str, eps: float) -> float:
        """On a fine grid."""
        gap, cost = self.truth(signal, np.linspace(0, 1, 100_001))
        return min(1.0, float(cost[gap <= eps].min(initial=1.0)))


def populations(folder: Path) -> dict[str, Population]:
    """The tables of a folder and the two laws, by name; the tables' signals are the columns called conf…."""
    found: dict[str, Population] = {
        file.stem: TablePopulation(file.stem, read_table(file)) for file in sorted(folder.glob("*.csv"))
    }
    laws = (KnownLaw("known law, 0/1", graded=False), KnownLaw("known law, graded", graded=True))
    return found | {law.name: law for law in laws}
