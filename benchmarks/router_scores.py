"""Do learned scores pay? The raw margin, the isotonic score and the regret score on the same rows.

    python -m benchmarks.router_scores [--tables FOLDER] [--draws R] [--fit N …] [--rows N …]

Each draw takes fit rows from a table without replacement; what is left is the population. Rows to certify on are drawn
from it with replacement, and every threshold is judged by the whole of it. Exit code 1 when a promise breaks more often
than delta and two standard errors.
"""

import argparse
import csv
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.router import MOST_PROCESSES, pass_line
from domain.certificates import Bound, Certificate, PairedRows, Tuned, cheapest, grid_of, tune
from domain.confidences import FloatArray
from domain.learned_scores import FeatureTable, unseen_confidences
from domain.rankings import empirical_cost
from domain.tallies import tally
from domain.workloads import SignalName
from infra.fitting import FitRows, Fitted, fit_isotonic, fit_regret
from infra.routing_tables import read_table

MARGIN, TRUTH = "margin", "true regret"
SCORES = (MARGIN, "isotonic", "regret")
ALL = "cheapest of the three, delta/3 each"
LAW_ROWS = 10_000
LENGTHS = "prompt_chars"


@dataclass(frozen=True, slots=True)
class Source:
    """Rows with their features; where a law made them, also the confidence that no score can better."""

    name: str
    rows: FitRows
    truth: FloatArray | None = None

    @property
    def signals(self) -> list[SignalName]:
        """The raw signals, the margin first."""
        return sorted(self.rows.features.signals, key=lambda name: name is not SignalName.MARGIN)


@dataclass(frozen=True, slots=True)
class Cell:
    """One score after so many fit rows: the oracle's cost, and of each number of rows the certified cost (both shares
    of always-strong) and the share of draws that violate; None where nothing is certified for it."""

    source: str
    fit: int
    score: str
    oracle: float
    certified: dict[int, tuple[float, float]]


def table_source(file: Path) -> Source:
    """A routing table: its last confidence plays the margin, its first another signal."""
    named = [name for name in _header(file) if name.startswith("conf")]
    table = read_table(file, signals=[*named, LENGTHS])  # read as one more signal, so that it keeps the rows' order
    chars = table.signals[LENGTHS]
    signals = {SignalName.MARGIN: table.signals[named[-1]], SignalName.PROBABILITY: table.signals[named[0]]}
    n = len(chars)
    keys = tuple(f"{number:06d}" for number in np.random.default_rng(0).permutation(n))
    return Source(file.stem, FitRows(FeatureTable(keys, signals, (None,) * n, chars), table.rows))


def _header(file: Path) -> list[str]:
    with file.open(encoding="utf-8", newline="") as opened:
        return next(csv.reader(opened))


def law_source(*, spread: float, n: int = LAW_ROWS) -> Source:
    """Six labels whose margins are miscalibrated each in its own way; long inputs are harder for both models and cost
    the strong one more, the more so the larger the spread of lengths."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 6, n)
    length = rng.normal(0, spread, n)
    evidence = rng.normal(0, 1.5, n)
    shift = np.array([-1.5, -0.6, 0.0, 0.5, 1.2, 2.0])[label]
    slope = np.array([0.5, 1.5, 1.0, 0.7, 1.3, 1.0])[label]
    chance = (_logistic(0.8 + slope * evidence + shift - 0.3 * length),
              _logistic(2.2 + 0.35 * evidence + 0.2 * shift - 0.15 * length))  # fmt: skip
    cheap, strong = ((rng.random(n) < p).astype(np.float64) for p in chance)
    signals = {
        SignalName.MARGIN: _logistic(1.2 * evidence + 0.5 + rng.normal(0, 0.4, n)),
        SignalName.ALLOWED_MASS: _logistic(2 + 0.6 * evidence + rng.normal(0, 1, n)),
    }
    chars: FloatArray = np.floor(np.exp(5.5 + length))
    expected = 13 + 0.06 * chars
    usd = np.full(n, 1.0), expected - 3 + rng.exponential(3, n)
    features = FeatureTable(tuple(f"{i:06d}" for i in range(n)), signals, tuple(map(str, label)), chars)
    rows = FitRows(features, PairedRows(signals[SignalName.MARGIN], cheap, strong, *usd))
    return Source(f"six labels, spread of lengths {spread:g}", rows, (chance[0] - chance[1]) / expected)


def _logistic(odds: FloatArray) -> FloatArray:
    return 1 / (1 + np.exp(-odds))


def sources(folder: Path) -> dict[str, Source]:
    """The tables of a folder that know their prompts' lengths, and two laws, by name."""
    files = [file for file in sorted(folder.glob("*.csv")) if LENGTHS in _header(file)]
    found = [*map(table_source, files), law_source(spread=0.3), law_source(spread=0.9)]
    return {source.name: source for source in found}


def scored(source: Source, fit: FitRows, rest: FitRows, bound: Bound) -> dict[str, FloatArray]:
    """Each score's confidences of rows it was not fitted on; a score that cannot be fitted escalates them all."""
    never = np.full(len(rest.features), np.nan)
    isotonic, regret = fit_isotonic(fit, bound), fit_regret(fit, bound, signals=source.signals)
    keys = fit.features.keys
    found = {MARGIN: rest.features.signal(SignalName.MARGIN)}
    for name, made in zip(SCORES[1:], (isotonic, regret), strict=True):
        found[name] = (
            unseen_confidences(made.score, rest.features, fit_keys=keys) if isinstance(made, Fitted) else never
        )
    return found


def simulate(source: Source, bound: Bound, *, fit: int, sizes: Sequence[int], draws: int, seed: int = 0) -> list[Cell]:
    """All scores on the same draws."""
    n = len(source.rows.features)
    names = [*SCORES, ALL]
    oracle: dict[str, list[float]] = {name: [] for name in (*SCORES, TRUTH)}
    cost, broken = ({name: {size: list[float]() for size in sizes} for name in names} for _ in range(2))
    for draw in range(draws):
        rng = np.random.default_rng([seed, fit, draw])
        order = rng.permutation(n)
        rest = source.rows.take(order[fit:])
        found = scored(source, source.rows.take(order[:fit]), rest, bound)
        for name, confidence in found.items():
            oracle[name].append(empirical_cost(replace(rest.outcomes, confidence=confidence), bound))
        if source.truth is not None:
            oracle[TRUTH].append(empirical_cost(replace(rest.outcomes, confidence=source.truth[order[fit:]]), bound))
        for size in sizes:
            some = rng.integers(0, n - fit, size)
            for name, (share, violates) in _certified(found, rest, some, bound).items():
                cost[name][size].append(share)
                broken[name][size].append(violates)
    cells = [Cell(source.name, fit, TRUTH, float(np.mean(oracle[TRUTH])), {})] if oracle[TRUTH] else []
    for name in names:
        best = (
            oracle[name] if name in oracle else [min(each) for each in zip(*(oracle[s] for s in SCORES), strict=True)]
        )
        both = {size: (float(np.mean(cost[name][size])), float(np.mean(broken[name][size]))) for size in sizes}
        cells.append(Cell(source.name, fit, name, float(np.mean(best)), both))
    return cells


def _certified(
    found: Mapping[str, FloatArray], rest: FitRows, some: np.ndarray, bound: Bound
) -> dict[str, tuple[float, float]]:
    """(true cost as a share of always-strong, 1 where the true gap is above eps) of each score's certified threshold,
    and of the cheapest one when they share delta."""

    def judged(choice: tuple[str, float] | None) -> tuple[float, float]:
        if choice is None:
            return 1.0, 0.0
        truth = tally(replace(rest.outcomes, confidence=found[choice[0]]), np.array([choice[1]]))
        return float(truth.cost[0] / rest.outcomes.strong_usd.mean()), float(truth.gap[0] > bound.eps + 1e-12)

    def tuned(name: str, declared: int) -> Tuned:
        rows = replace(rest.take(some).outcomes, confidence=found[name][some])
        return tune(rows, bound, grid=grid_of(rows.confidence), declared=declared)

    answers: dict[str, tuple[float, float]] = {}
    for name in SCORES:
        verdict = tuned(name, 1).verdict
        answers[name] = judged((name, verdict.threshold) if isinstance(verdict, Certificate) else None)
    together = {name: tuned(name, len(SCORES)) for name in SCORES}
    verdict = together[best := cheapest(together)].verdict
    answers[ALL] = judged((best, verdict.threshold) if isinstance(verdict, Certificate) else None)
    return answers


def shown(cells: Sequence[Cell], bound: Bound, draws: int) -> Table:
    """A line a source, number of fit rows and score."""
    sizes = sorted({size for cell in cells for size in cell.certified})
    line = pass_line(bound.delta, draws)
    table = Table(
        title=f"cost % of always-strong (violations %); eps {bound.eps:g}, delta {bound.delta:g}, {draws} draws; "
        f"! above {100 * line:.1f} %",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for heading in ("population", "fit rows", "score", "oracle", *(f"certified, n = {size}" for size in sizes)):
        table.add_column(heading, justify="left" if heading in {"population", "score"} else "right")
    before = None
    for cell in cells:
        group = cell.source, cell.fit
        parts = [
            f"{100 * cell.certified[size][0]:.1f} ({100 * cell.certified[size][1]:.1f}"
            f"{'!' if cell.certified[size][1] > line else ''})"
            for size in sizes
            if size in cell.certified
        ]
        heading = (cell.source, str(cell.fit)) if group != before else ("", "")
        table.add_row(*heading, cell.score, f"{100 * cell.oracle:.1f}", *(parts or ["" for _ in sizes]))
        before = group
    return table


def _job(job: tuple[Path, str, Bound, int, list[int], int]) -> list[Cell]:
    folder, name, bound, fit, sizes, draws = job
    return simulate(sources(folder)[name], bound, fit=fit, sizes=sizes, draws=draws)


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate and print; 1 when a promise breaks too often."""
    parser = argparse.ArgumentParser(prog="benchmarks.router_scores", description="Learned scores beside the margin.")
    parser.add_argument("--tables", type=Path, default=Path("../shared/data/router"), help="folder of csv tables")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--fit", type=int, nargs="+", default=[100, 300], metavar="N")
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 1000], metavar="N")
    parser.add_argument("--eps", type=float, default=0.02)
    parser.add_argument("--delta", type=float, default=0.10)
    parser.add_argument("--processes", type=int, default=MOST_PROCESSES, choices=range(1, MOST_PROCESSES + 1))
    options = parser.parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if not options.tables.is_dir():
        console.print(f"there is no folder {options.tables}: the laws alone are drawn from")
    bound = Bound("absolute", options.eps, options.delta)
    jobs = [
        (options.tables, name, bound, fit, options.rows, options.draws)
        for name in sources(options.tables)
        for fit in options.fit
    ]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        cells = [cell for part in pool.imap(_job, jobs) for cell in part]
    console.print(shown(cells, bound, options.draws))
    line = pass_line(bound.delta, options.draws)
    return int(any(broken > line for cell in cells for _, broken in cell.certified.values()))


if __name__ == "__main__":
    sys.exit(main())
