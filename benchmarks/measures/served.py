"""Real vLLM on the CPU: Headrace beside the bare client with the same requests."""

from pathlib import Path

from benchmarks.figures import Bar, Figure, ratio
from benchmarks.measures.bench import Bench, all_valid, rate
from benchmarks.processes import BenchmarkError
from benchmarks.surroundings import empty_ledger
from infra.servers import MODELS
from infra.settings import load_settings

ENGINE = "engine-cheap"


def beside_bare(bench: Bench) -> list[Figure]:
    """Throughput ÷ bare client, alternating order, an empty ledger each round.

    One round of the bare client goes before, unmeasured: whoever is measured finds the server and its prefix cache as
    a round over the same rows left them.
    """
    model, rows = MODELS[ENGINE], bench.sizes.served
    settings = load_settings()
    base_url = settings.engines[model]
    workload = bench.workload(rows, base_url, model=model, revision=settings.engine_revisions.get(model, "unknown"))
    bodies = bench.bodies(workload)
    ours: list[float] = []
    bare: list[float] = []
    bench.bare(bodies, base_url)
    for number in range(2 * (bench.sizes.rounds // 2) or 2):
        clients = [lambda: bare.append(rate(bench.bare(bodies, base_url)))]
        clients.append(lambda: ours.append(_headrace(bench, workload, rows)))
        for client in clients if number % 2 == 0 else reversed(clients):
            client()
    detail = f"Headrace {' and '.join(f'{one:.1f}' for one in ours)} rows/s, "
    detail += f"bare client {' and '.join(f'{one:.1f}' for one in bare)} rows/s; {rows} rows of {model}"
    return [Figure("vLLM on the CPU, rows/s ÷ bare client", Bar("at least", 0.97), ratio(ours, bare), "×", detail)]


def _headrace(bench: Bench, workload: Path, rows: int) -> float:
    empty_ledger()
    figures = bench.headrace(workload).figures
    all_valid(figures, rows)
    if figures["calls"] != rows:
        raise BenchmarkError(f"{figures['calls']} calls for {rows} rows: not the same work")
    return rate(figures)
