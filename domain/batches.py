"""Batches: what routing came to, and what all-strong would have cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast

from pydantic import JsonValue

from domain.workloads import TierName

Json = dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of a tier's calls: the median and the 95th percentile."""

    calls: int
    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class BatchFigures:
    """Counts of a routed batch, and USD at list price.

    `usd` is of its outcomes together, `kept_usd` of those kept on cheap, `strong_usd` of all strong answers, and
    `both_…` of the rows that both tiers answered. `straight` rows went to the strong tier past the cheap one,
    `unanswered` ones into quarantine.
    """

    answered: int
    unanswered: int
    on_cheap: int
    escalated: int
    straight: int
    cheap_asked: int
    cheap_invalid: int
    usd: float
    kept_usd: float
    strong_usd: float
    both_cheap_usd: float
    both_strong_usd: float
    latencies: Mapping[TierName, Latency]

    def all_strong_usd(self, usual: float | None) -> float | None:
        """What the answered rows would have cost on the strong tier alone; None when nothing tells.

        A row that it answered has its price. A kept row gets its cheap price times strong over cheap on the rows that
        both answered (a ratio estimate: longer rows cost either tier more); where there are none, the `usual` price of
        a strong answer, USD.
        """
        if not self.on_cheap:
            return self.strong_usd
        if self.both_cheap_usd > 0:
            return self.strong_usd + self.kept_usd * self.both_strong_usd / self.both_cheap_usd
        return None if usual is None else self.strong_usd + self.on_cheap * usual


def batch_summary(figures: BatchFigures, threshold: float | None, *, usual_strong_usd: float | None) -> Json:
    """What routing came to, as JSON; `usual_strong_usd` is a strong answer's mean price on the calibration rows."""
    n, spent = figures.answered, figures.usd
    ended = n + figures.unanswered
    summary: Json = {
        "answered": n,
        "unanswered": figures.unanswered,
        "kept_on_cheap": figures.on_cheap,
        "escalated": figures.escalated,
        "straight_to_strong": figures.straight,
        "threshold": threshold,
        "usd_per_row": spent / n if n else 0.0,
        "usd_per_1000": 1000 * spent / n if n else 0.0,
        "escalation_rate": (n - figures.on_cheap) / n if n else 0.0,
        "valid_rate": n / ended if ended else 0.0,
        "latency_s": {name.value: cast(JsonValue, asdict(took)) for name, took in sorted(figures.latencies.items())},
    }
    if figures.cheap_asked:
        summary["cheap_valid_rate"] = 1 - figures.cheap_invalid / figures.cheap_asked
    all_strong = figures.all_strong_usd(usual_strong_usd)
    if all_strong and n:
        summary["usd_per_1000_all_strong"] = 1000 * all_strong / n
        summary["saving"] = 1 - spent / all_strong
    return summary
