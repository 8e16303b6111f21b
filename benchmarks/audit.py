"""How soon an audit sees what it should, and how often it sees what is not there: streams of known truth, in a table.

Each stream is routed rows of a cascade that keeps a share of them. In a clean stream the mean loss stays under eps; in
the others the cheap tier changes behind the first rows: it gets worse at unchanged confidences, or other rows arrive
that do no harm. Nothing is modelled of labels that come late: they are there at once.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from domain.audits import place_of
from domain.confidences import FloatArray
from domain.eprocesses import Evidence, Game, Rates, gather, watch_rate
from infra.drifting import count_drifts

EPS, ALPHA, TOLERANCE = 0.02, 0.05, 0.03
BEFORE, AFTER = 3_000, 6_000
REFERENCE = 1_000
"""Calibration confidences that ADWIN is shown first."""
SHARES = (0.05, 0.20)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What rows are like: the share kept, the mean loss over all rows, the share of rows whose qualities differ, and
    the law of the confidences."""

    kept: float
    gap: float
    differ: float
    beta: tuple[float, float] = (4.0, 3.0)


@dataclass(frozen=True, slots=True)
class Event:
    """Traffic before and after a change."""

    name: str
    before: Traffic
    after: Traffic


CLEAN = Traffic(kept=0.41, gap=0.015, differ=0.08)
EVENTS = (
    Event("clean: gap .015 throughout", CLEAN, CLEAN),
    Event("clean at the bound: gap .020 throughout", *2 * (Traffic(0.41, 0.020, 0.08),)),
    Event("harmless shift: kept .41 to .18, gap .010", CLEAN, Traffic(0.18, 0.010, 0.05, (3.0, 4.0))),
    Event("silent drop: gap .015 to .062", CLEAN, Traffic(0.41, 0.062, 0.13)),
    Event("silent drop: gap .015 to .120", CLEAN, Traffic(0.41, 0.120, 0.18)),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """Rows behind the change until each detector's alarm, by its name; None where it stayed quiet. -1: before it."""

    rows: dict[str, int | None]
    audits: dict[str, int | None]


def draw(rng: np.random.Generator, traffic: Traffic, n: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(kept as 0 or 1, loss, confidence) of n rows; the confidence knows nothing of the loss."""
    confidence = rng.beta(*traffic.beta, size=n)
    kept = rng.random(n) < traffic.kept
    worse, better = (traffic.differ + traffic.gap) / 2, (traffic.differ - traffic.gap) / 2
    lost = rng.choice([1.0, -1.0, 0.0], size=n, p=_chances(worse / traffic.kept, better / traffic.kept))
    return kept.astype(np.float64), np.where(kept, lost, 0.0), confidence


def _chances(worse: float, better: float) -> list[float]:
    return [worse, better, 1 - worse - better]


def watch(event: Event, share: float, seed: int) -> Seen:
    """One stream under all detectors."""
    rng = np.random.default_rng(seed)
    parts = [draw(rng, traffic, n) for traffic, n in ((event.before, BEFORE), (event.after, AFTER))]
    kept, lost, confidence = (np.concatenate(column) for column in zip(*parts, strict=True))
    places = np.array([place_of(f"{seed}/{i}", "benchmark") for i in range(BEFORE + AFTER)])
    rows = np.flatnonzero(places < share)
    found = gather(Evidence(), lost[rows].tolist(), Game(-1.0, 1.0, EPS), alpha=ALPHA)
    rate = 1 - event.before.kept
    moved = watch_rate(Rates(), (kept == 0).tolist(), (rate - TOLERANCE, rate + TOLERANCE))
    drifted = count_drifts(
        [*rng.beta(*event.before.beta, size=REFERENCE).tolist(), *confidence.tolist()], after=REFERENCE
    )
    before = int((rows < BEFORE).sum())
    audits = {"e-process": found.crossed, "e-detector": found.detector_crossed}
    behind = {name: _rows(rows, crossed) for name, crossed in audits.items()}
    return Seen(
        {**behind, "escalation": _behind(moved.crossed), "ADWIN": AFTER if drifted else None},
        {name: None if n is None else n - before for name, n in audits.items()},
    )


def _rows(rows: "np.ndarray[tuple[int], np.dtype[np.intp]]", crossed: int | None) -> int | None:
    return None if crossed is None else _behind(int(rows[crossed - 1]) + 1)


def _behind(row: int | None) -> int | None:
    return None if row is None else max(-1, row - BEFORE)


def _job(job: tuple[int, float, int]) -> Seen:
    return watch(EVENTS[job[0]], job[1], job[2])


def shown(found: dict[tuple[int, float], list[Seen]], *, streams: int, seed: int) -> Table:
    """A line an event and share: the share of streams alarmed, and the median of rows until then."""
    table = Table(
        title=f"{streams} streams each, seeds from {seed}; {BEFORE:,} rows before and {AFTER:,} after; eps {EPS:g}, "
        f"alpha {ALPHA:g}. Alarmed %, median rows (audited rows) behind the change",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for heading in ("event", "audited", "e-process", "e-detector", "either", "escalation (cost)", "ADWIN (advice)"):
        table.add_column(heading)
    for (event, share), seen in found.items():
        either = [s.rows["e-process"] is not None or s.rows["e-detector"] is not None for s in seen]
        table.add_row(
            EVENTS[event].name,
            f"{share:.0%}",
            *(_cell(seen, name) for name in ("e-process", "e-detector")),
            f"{100 * float(np.mean(either)):.1f}",
            _cell(seen, "escalation"),
            f"{100 * float(np.mean([s.rows['ADWIN'] is not None for s in seen])):.1f}",
        )
    return table


def _cell(seen: Sequence[Seen], name: str) -> str:
    rows = [found for s in seen if (found := s.rows[name]) is not None]
    text = f"{100 * len(rows) / len(seen):.1f}"
    if not rows:
        return text
    audits = [found for s in seen if (found := s.audits.get(name)) is not None]
    return f"{text}  {np.median(rows):,.0f}" + (f" ({np.median(audits):,.0f})" if audits else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate and print; 1 when clean streams are alarmed more often than alpha allows."""
    parser = argparse.ArgumentParser(prog="benchmarks.audit", description="Audits of streams whose truth is known.")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2))
    options = parser.parse_args(argv)
    kinds = [(event, share) for event in range(len(EVENTS)) for share in SHARES]
    seeds = range(options.seed, options.seed + options.streams)
    jobs = [(*kind, seed) for kind in kinds for seed in seeds]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        seen = pool.map(_job, jobs, chunksize=20)
    found = {kind: seen[i * options.streams : (i + 1) * options.streams] for i, kind in enumerate(kinds)}
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    console.print(shown(found, streams=options.streams, seed=options.seed))
    line = ALPHA + 3 * (ALPHA * (1 - ALPHA) / options.streams) ** 0.5
    clean = [found[kind] for kind in kinds if EVENTS[kind[0]].before == EVENTS[kind[0]].after]
    false = [float(np.mean([s.rows["e-process"] is not None for s in streams])) for streams in clean]
    console.print(f"false alarms of the e-process on clean streams: {max(false):.1%} at most, {line:.1%} allowed")
    return int(max(false) > line)


if __name__ == "__main__":
    sys.exit(main())
