"""Rows a second on the mock: Headrace beside the bare client, and beside other tools."""

from benchmarks.figures import Bar, Figure, ratio
from benchmarks.material import INSTRUCTIONS
from benchmarks.measures.bench import Bench, all_valid, rate
from benchmarks.processes import BenchmarkError, Mock, mock_model, run
from benchmarks.rivals.environments import python_of
from benchmarks.surroundings import empty_ledger

BARS = {"curator": 4.0, "distilabel": 12.0}
RIVAL_ROUNDS = 2


def beside_bare(bench: Bench) -> list[Figure]:
    """Headrace ÷ bare client: ledger, validation and COPY included, alternating order, an empty ledger each round."""
    ours: list[float] = []
    bare: list[float] = []
    looped: list[float] = []
    rows = bench.sizes.route
    with mock_model() as mock:
        workload = bench.workload(rows, mock.base_url)
        bodies = bench.bodies(workload)
        for number in range(bench.sizes.rounds):
            clients = [lambda: bare.append(rate(bench.bare(bodies, mock.base_url)))]
            clients.append(lambda: ours.append(_headrace(bench, rows, mock)))
            clients.append(lambda: looped.append(rate(bench.bare(bodies, mock.base_url, uvloop=True))))
            for client in clients if number % 2 == 0 else reversed(clients):
                client()
    detail = f"Headrace {_each(ours)} rows/s, bare client {_each(bare)} rows/s; {rows:,} rows, "
    detail += f"{bench.sizes.in_flight} under way at once; median of the rounds' ratios"
    same = f"bare client {_each(looped)} rows/s; for comparison: aiohttp's user who knows uvloop"
    return [
        Figure("route, rows/s ÷ bare aiohttp client", Bar("at least", 0.6), ratio(ours, bare), "×", detail),
        Figure("route, rows/s ÷ bare aiohttp client on uvloop", None, ratio(ours, looped), "×", same),
    ]


def beside_rival(bench: Bench, rival: str) -> list[Figure]:
    """Headrace ÷ another tool over the same rows; the tool gets fewer rows, since only rows a second count."""
    ours: list[float] = []
    theirs: list[float] = []
    python = python_of(rival)
    for number in range(RIVAL_ROUNDS):
        with mock_model() as mock:
            if number % 2:
                ours.append(_headrace(bench, bench.sizes.route, mock))
        with mock_model() as mock:
            theirs.append(_rival(bench, rival, python, mock))
        with mock_model() as mock:
            if not number % 2:
                ours.append(_headrace(bench, bench.sizes.route, mock))
    detail = f"Headrace {_each(ours)} rows/s, {rival} {_each(theirs)} rows/s over {bench.sizes.rival:,} rows"
    bar = Bar("at least", BARS[rival])
    return [Figure(f"route, rows/s ÷ {rival}", bar, ratio(ours, theirs), "×", detail)]


def _headrace(bench: Bench, rows: int, mock: Mock) -> float:
    workload = bench.workload(rows, mock.base_url)
    empty_ledger()
    before = mock.calls()
    figures = bench.headrace(workload).figures
    all_valid(figures, rows)
    if mock.calls() - before != rows:
        raise BenchmarkError(f"{mock.calls() - before} calls for {rows} rows")
    return rate(figures)


def _rival(bench: Bench, rival: str, python: str, mock: Mock) -> float:
    """From its first call to its last row; what it needs to start is not counted."""
    rows = bench.sizes.rival
    command = ["-m", f"benchmarks.rivals.{rival}", "--rows", str(bench.rows(rows)), "--base-url", mock.base_url]
    command += ["--model", "mock", "--system", INSTRUCTIONS, "--in-flight", str(bench.sizes.in_flight)]
    figures = run(command, python=python, timeout_s=900).figures
    all_valid(figures, rows)
    return rows / (float(figures["ended_at"]) - mock.first_call_at())


def _each(rates: list[float]) -> str:
    return " and ".join(f"{one:,.0f}" for one in rates)
