"""`make bench`: run the measures one after another and print one table.

    python -m benchmarks.run [MEASURE …] [--rows-… N] [--json FILE]

Ratios are of clients that ran in turns within this run, on this machine: compare them, not rows a second of two days.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from benchmarks.figures import Figure, table
from benchmarks.measures import ledger, route, served
from benchmarks.measures.bench import Bench, Sizes
from benchmarks.processes import BenchmarkError
from benchmarks.surroundings import embedded_stack
from infra.settings import Settings
from infra.startup import StackError

MEASURES: dict[str, Callable[[Bench], list[Figure]]] = {
    "route": route.beside_bare,
    "curator": lambda bench: route.beside_rival(bench, "curator"),
    "distilabel": lambda bench: route.beside_rival(bench, "distilabel"),
    "rerun": ledger.rerun,
    "large": ledger.large,
    "vllm": served.beside_bare,
}
SERVICES = {"vllm": ("postgres", served.ENGINE)}


def measure(names: Sequence[str], sizes: Sizes, console: Console) -> list[Figure]:
    """Run the named measures; one that cannot run is a figure that says why."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="headrace-rows-") as folder, ExitStack() as stack:
        running: tuple[str, ...] = ()
        for name in names:
            began = time.monotonic()
            wanted = SERVICES.get(name, ("postgres",))
            try:
                if running != wanted:
                    stack.close()
                    stack.enter_context(embedded_stack(*wanted))
                    running = wanted
                found = MEASURES[name](Bench(Path(folder), sizes))
            except (BenchmarkError, StackError) as error:
                found = [Figure(name, None, None, detail=f"not run: {error}")]
            figures += found
            for figure in found:
                console.print(f"{name} ({time.monotonic() - began:.0f} s): {figure.measure}: {figure.shown}")
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 unless a measure could not run."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description="Speed and memory, side by side.")
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=f"{', '.join(MEASURES)}; default: all")
    for name, rows in {"route": 20_000, "rival": 2_000, "rerun": 100_000, "large": 200_000, "served": 300}.items():
        parser.add_argument(f"--rows-{name}", type=int, default=rows, metavar="N", help=f"default {rows:,}")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of the comparisons with the bare client")
    parser.add_argument("--in-flight", type=int, default=Settings.model_fields["in_flight"].default)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args(argv)
    if unknown := set(options.measures) - MEASURES.keys():
        parser.error(f"no measure is called {', '.join(sorted(unknown))}")
    sizes = Sizes(
        route=options.rows_route,
        rival=options.rows_rival,
        rerun=options.rows_rerun,
        large=options.rows_large,
        served=options.rows_served,
        rounds=options.rounds,
        in_flight=options.in_flight,
    )
    console = Console(width=None if sys.stdout.isatty() else 160)
    figures = measure([name for name in MEASURES if name in (options.measures or MEASURES)], sizes, console)
    console.print(table(figures))
    if options.json:
        options.json.write_text(json.dumps([figure.as_json() for figure in figures], indent=1) + "\n")
    return 1 if any(figure.verdict == "not run" for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
