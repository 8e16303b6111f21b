"""Certified routing beside what else is done: how often the promise breaks, what it costs, what an oracle would save.

    python -m benchmarks.router [--tables FOLDER] [--draws R] [--rows N …] [--json FILE]

Each draw is n rows; the chosen threshold is judged by the truth about the population, never by the rows drawn. Exit
code 1 when Headrace breaks its promise more often than delta and two standard errors.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.router_methods import METHODS, saving
from benchmarks.router_populations import Population, populations
from domain.certificates import Bound
from domain.tallies import is_binary

MOST_PROCESSES = 2
OURS = ("Headrace", "Headrace, all signals at delta/m")
ONLY_BINARY = "(0/1 only)"


@dataclass(frozen=True, slots=True)
class Cell:
    """One method on draws of n rows: shares of the draws that violate and that choose a threshold; the mean cost and
    the oracle's as shares of always-strong."""

    population: str
    method: str
    n: int
    draws: int
    violations: float
    certified: float
    cost: float
    oracle: float

    @property
    def captured(self) -> float:
        """The share of the oracle's saving."""
        return (1 - self.cost) / (1 - self.oracle) if self.oracle < 1 else 0.0


def pass_line(delta: float, draws: int) -> float:
    """The highest share of violations that may be chance: delta and two standard errors."""
    return delta + 2 * float(np.sqrt(delta * (1 - delta) / draws))


def simulate(
    population: Population, bound: Bound, *, n: int, draws: int, seed: int = 0, only: Sequence[str] = tuple(METHODS)
) -> list[Cell]:
    """The methods on the same draws; the signal, where a method takes one, is the population's last."""
    signal = population.signals[-1]
    graded = not is_binary(population.draw(np.random.default_rng(seed), n).rows)
    left_out = {OURS[1]} if len(population.signals) == 1 else set[str]()
    methods = {
        name: METHODS[name] for name in only if name not in left_out and not (graded and name.endswith(ONLY_BINARY))
    }
    broken, chosen, cost = ({name: np.zeros(draws) for name in methods} for _ in range(3))
    for draw in range(draws):
        drawn = population.draw(np.random.default_rng([seed, n, draw]), n)
        for name, method in methods.items():
            choice = saving(method(drawn, signal, bound), drawn)
            cost[name][draw] = 1.0
            if choice is not None:
                gap, share = population.truth(choice[0], np.array([choice[1]]))
                broken[name][draw], chosen[name][draw], cost[name][draw] = gap[0] > bound.eps + 1e-12, 1, share[0]
    oracle = population.oracle(signal, bound.eps)
    best = min(population.oracle(each, bound.eps) for each in population.signals)
    return [
        Cell(
            population.name,
            name,
            n,
            draws,
            float(broken[name].mean()),
            float(chosen[name].mean()),
            float(cost[name].mean()),
            best if name == OURS[1] else oracle,
        )
        for name in methods
    ]


def _job(job: tuple[str, str, Bound, int, int, list[str]]) -> list[Cell]:
    folder, name, bound, n, draws, only = job
    return simulate(populations(Path(folder))[name], bound, n=n, draws=draws, only=only)


def shown(cells: Sequence[Cell], bound: Bound) -> Table:
    """One table: a line a method and population, a cell a number of rows."""
    sizes = sorted({cell.n for cell in cells})
    draws = cells[0].draws
    table = Table(
        title=f"violations % / cost % of always-strong / share % of the oracle's saving; eps {bound.eps:g}, delta "
        f"{bound.delta:g}, {draws} draws; ! above {100 * pass_line(bound.delta, draws):.1f} %",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("population (oracle's cost %)")
    table.add_column("method")
    for n in sizes:
        table.add_column(f"n = {n}", justify="right")
    found = {(cell.population, cell.method, cell.n): cell for cell in cells}
    for population in dict.fromkeys(cell.population for cell in cells):
        heading = True
        for method in METHODS:
            row = [found[key] for n in sizes if (key := (population, method, n)) in found]
            if row:
                name = f"{population} ({100 * row[0].oracle:.0f})" if heading else ""
                table.add_row(name, method, *(_cell(cell, bound) for cell in row))
                heading = False
    return table


def _cell(cell: Cell, bound: Bound) -> str:
    mark = "!" if cell.violations > pass_line(bound.delta, cell.draws) else " "
    return f"{100 * cell.violations:.1f}{mark}/ {100 * cell.cost:.0f} / {100 * cell.captured:.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate and print; 1 when Headrace's promise breaks too often."""
    parser = argparse.ArgumentParser(prog="benchmarks.router", description="Certified routing, side by side.")
    parser.add_argument(
        "--tables", type=Path, default=Path("../shared/data/router"), help="folder of csv tables; default: %(default)s"
    )
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 500, 1000, 3000], metavar="N")
    parser.add_argument("--eps", type=float, default=0.02)
    parser.add_argument("--delta", type=float, default=0.10)
    parser.add_argument("--processes", type=int, default=MOST_PROCESSES, choices=range(1, MOST_PROCESSES + 1))
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--json", type=Path, help="write the cells to this file too")
    options = parser.parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if not options.tables.is_dir():
        console.print(f"there is no folder {options.tables}: the known laws alone are drawn from")
    bound = Bound("absolute", options.eps, options.delta)
    names = list(populations(options.tables))
    jobs = [(str(options.tables), name, bound, n, options.draws, options.only) for name in names for n in options.rows]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        cells = [cell for part in pool.imap(_job, jobs) for cell in part]
    console.print(shown(cells, bound))
    if options.json:
        options.json.write_text(json.dumps([asdict(cell) | {"captured": cell.captured} for cell in cells], indent=1))
    line = pass_line(options.delta, options.draws)
    return int(any(cell.violations > line for cell in cells if cell.method in OURS))


if __name__ == "__main__":
    sys.exit(main())
