"""Headrace's own figures for Prometheus, read from the ledger: GET /metrics of the receiver.

A run that has ended does not change: it is counted once and remembered; only the others are counted again, and that at
most every few seconds, however often somebody asks. Labels hold what the user's own files name (workloads, tiers,
models), and no more of them than MOST; what is beyond counts as `other`. A run that retention deletes still counts in
the sums of this process: a counter that fell would be taken for one that began anew, and all of it for an increase.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from domain.errors import StoreError
from infra.db.session import transaction
from infra.db.store import metrics as store
from infra.db.store.metrics import Calls, RunHead, Waiting

FRESH_S = 10.0
"""So long figures are given again before the ledger is read."""
MOST = 100
"""Workloads that have labels of their own."""
OTHER = "other"
NONE = Waiting(0, 0.0)
_RUNS_A_QUERY = 200
_COUNTED: dict[str, tuple[str, Callable[[Calls], float]]] = {
    "headrace_calls": ("Calls of models that were made", lambda calls: calls.made),
    "headrace_failed_calls": ("Calls of models that were not answered", lambda calls: calls.failed),
    "headrace_ledger_hits": ("Answers that the ledger gave instead of a model", lambda calls: calls.ledger_hits),
    "headrace_prompt_tokens": ("Tokens of prompts, those in the server's cache included", lambda c: c.prompt_tokens),
    "headrace_cached_prompt_tokens": ("Tokens of prompts that the server had in its cache", lambda c: c.cached_tokens),
    "headrace_completion_tokens": ("Tokens that models wrote", lambda calls: calls.completion_tokens),
    "headrace_cost_usd": ("USD at list price", lambda calls: calls.usd),
    "headrace_call_seconds": ("Seconds that calls took, added up", lambda calls: calls.seconds),
}
"""Counters by workload, tier and model: what they are called, say, and are."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What a run came to, and when it had ended by then (None: it goes on)."""

    ended_at: datetime | None
    calls: tuple[Calls, ...]
    rows: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class _Figures:
    """Everything that is given at once; `gone` are runs that the ledger has forgotten since this process began."""

    heads: Sequence[RunHead] = ()
    known: dict[str, _Known] = field(default_factory=dict[str, _Known])
    gone: tuple[RunHead, ...] = ()
    changes: Waiting = NONE
    notices: Waiting = NONE
    dead: int = 0
    up: bool = False


class LedgerCollector(Collector):
    """The ledger as metrics; `clock` gives seconds that only grow."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._figures = _Figures()
        self._read_at = float("-inf")

    def describe(self) -> list[Metric]:
        """Nothing: registering it must not read the ledger."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All figures; those of the last time, and `headrace_ledger_up` 0, while Postgres is away."""
        with self._lock:
            if self._clock() - self._read_at >= FRESH_S:
                self._figures = self._read()
                self._read_at = self._clock()
            figures = self._figures
        yield GaugeMetricFamily("headrace_ledger_up", "Whether the ledger answered the last time", value=figures.up)
        yield from _of_runs(figures.heads)
        yield from _of_calls(figures)
        yield _of_rows(figures)
        yield from _of_queues(figures)

    def _read(self) -> _Figures:
        last = self._figures
        try:
            with transaction() as db:
                heads = store.heads(db)
                known = {
                    head.id: last.known[head.id]
                    for head in heads
                    if head.id in last.known and head.ended_at and last.known[head.id].ended_at == head.ended_at
                }
                missing = [head for head in heads if head.id not in known]
                here = {head.id for head in heads}
                gone = tuple(head for head in (*last.gone, *last.heads) if head.id not in here)
                known |= {head.id: last.known[head.id] for head in gone}
                for first in range(0, len(missing), _RUNS_A_QUERY):
                    known |= _count(db, missing[first : first + _RUNS_A_QUERY])
                waiting = (store.waiting_changes(db), store.waiting_notices(db))
                return _Figures(heads, known, gone, *waiting, store.dead_notices(db), up=True)
        except StoreError:
            return replace(last, up=False)


def registry() -> CollectorRegistry:
    """A registry with the ledger in it, and nothing of this process."""
    made = CollectorRegistry(auto_describe=False)
    made.register(LedgerCollector())
    return made


def _count(db: store.Session, heads: Sequence[RunHead]) -> dict[str, _Known]:
    ids = [head.id for head in heads]
    calls, rows = store.calls(db, ids), store.rows(db, ids)
    return {
        head.id: _Known(
            head.ended_at,
            tuple(asked for run_id, asked in calls if run_id == head.id),
            tuple((what, count) for run_id, what, count in rows if run_id == head.id),
        )
        for head in heads
    }


def _names(heads: Sequence[RunHead]) -> dict[str, str]:
    """The label of each workload: its name, or `other` where there are too many; those with most runs first."""
    counted = Counter(head.workload for head in heads).most_common()
    return {name: name if place < MOST else OTHER for place, (name, _) in enumerate(counted)}


def _of_runs(heads: Sequence[RunHead]) -> Iterator[Metric]:
    runs = GaugeMetricFamily("headrace_runs", "Runs in the ledger", labels=["kind", "state"])
    for labels, count in sorted(Counter((head.kind, head.state) for head in heads).items()):
        runs.add_metric(labels, count)
    yield runs


def _of_calls(figures: _Figures) -> Iterator[Metric]:
    heads = [*figures.heads, *figures.gone]
    names = _names(heads)
    for name, (said, value) in _COUNTED.items():
        sums: defaultdict[tuple[str, str, str], float] = defaultdict(float)
        for head in heads:
            label = names[head.workload]
            for asked in figures.known[head.id].calls:
                model = head.models.get(asked.tier, "") if label != OTHER else OTHER
                sums[label, asked.tier, model] += value(asked)
        family = CounterMetricFamily(name, said, labels=["workload", "tier", "model"])
        for labels, total in sorted(sums.items()):
            family.add_metric(labels, total)
        yield family


def _of_rows(figures: _Figures) -> Metric:
    heads = [*figures.heads, *figures.gone]
    names = _names(heads)
    sums: Counter[tuple[str, str]] = Counter()
    for head in heads:
        for what, count in figures.known[head.id].rows:
            sums[names[head.workload], what] += count
    family = CounterMetricFamily("headrace_rows", "Rows by what became of them", labels=["workload", "result"])
    for labels, total in sorted(sums.items()):
        family.add_metric(labels, total)
    return family


def _of_queues(figures: _Figures) -> Iterator[Metric]:
    waiting = {
        "headrace_changes": ("changes of datasets that nobody has dealt with", figures.changes),
        "headrace_notices": ("messages that have not been delivered", figures.notices),
    }
    for name, (said, queue) in waiting.items():
        yield GaugeMetricFamily(f"{name}_waiting", f"Number of {said}", value=queue.count)
        yield GaugeMetricFamily(
            f"{name}_oldest_waiting_seconds", f"Age of the oldest of the {said}", value=queue.oldest_s
        )
    yield GaugeMetricFamily("headrace_notices_dead", "Messages that were given up", value=figures.dead)
